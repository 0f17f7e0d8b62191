import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from cba_utils.study.notebooks import execute
from cba_utils.names import RESULTS
from cba_utils.study.estimate import estimate
from cba_utils.study.protocol import cells, input_files, narrow, parse_items, read_study
from conftest import ROOT

CONFIGS = sorted((ROOT / "config").glob("*.yml"))


def changed(tmp_path, change):
    study = yaml.safe_load((ROOT / "config" / "smoke.yml").read_text())
    change(study)
    path = tmp_path / "smoke.yml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_studies_pass_their_own_schema(path, monkeypatch):
    monkeypatch.setenv("BBQ_DIR", "somewhere")
    study = read_study(path)
    folders = [cell.folder for cell in cells(study)]
    assert study["name"] == path.stem and len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", ["paper", "paper-converted"])
def test_the_paper_study_is_the_published_grid(name):
    study = read_study(ROOT / "config" / f"{name}.yml")
    assert len(cells(study)) == 15
    asked = {(c.prompt, c.parser, c.perplexity_method, c.seeds, c.max_tokens) for c in cells(study)}
    assert asked == {("published", "published", "published", (42, 123, 456, 789, 1024), 5)}
    # 12,148 items, five seeds each, in fifteen cells: the 911,100 records of the abstract.
    assert study["items"]["expected"] * 5 * 15 == 911_100
    expected = estimate(study)
    assert 25e9 < expected["memory"] < 45e9 and 85e9 < expected["disk"] < 95e9


def test_the_estimate_is_printed_and_nothing_is_downloaded():
    done = subprocess.run(
        [sys.executable, "-m", "cba_utils.study.protocol", "config/paper.yml"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={"HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert "cells    15" in done.stdout and "nothing was downloaded" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(precison=["q4"]), "unknown key 'precison'; the keys are schema_version"),
        (lambda s: s["models"][0].update(sauce="x"), r"models\.0: unknown key 'sauce'"),
        (lambda s: s.update(precisions=["q9"]), "precision: 'q9' is unknown; use bf16, q8"),
        (lambda s: s["samples"].update(temperature=0), "samples.temperature"),
        (lambda s: s["models"].append(s["models"][0]), "two models have the same name"),
        (lambda s: s.update(name="organisms"), "name is 'organisms'; it must be 'smoke'"),
        (lambda s: s["models"][0].update(base="mistral/bse"), "no organism 'mistral/bse' .*mistral/base"),
        (lambda s: s["items"].update(source="$NO_SUCH_DIR"), "environment variable NO_SUCH_DIR"),
        (lambda s: s.pop("orders"), "'orders' is a required property"),
    ],
)
def test_bad_studies_are_refused_by_key(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_study(changed(tmp_path, change))


def test_an_unknown_notebook_parameter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no parameter 'precison'; it has categories"):
        execute(ROOT / "notebooks" / "10_evaluate.ipynb", tmp_path / "out.ipynb", {"precison": "q4"})


@pytest.mark.parametrize("engine", ["in-process", None])
def test_a_failing_notebook_says_why_and_leaves_no_half_result(tmp_path, engine):
    with pytest.raises(RuntimeError, match="FileNotFoundError: model: 'nowhere/at/all' is no"):
        execute(
            ROOT / "notebooks" / "10_evaluate.ipynb",
            tmp_path / "out.ipynb",
            {"model": "nowhere/at/all", "output": str(tmp_path / "cell")},
            engine=engine,
        )
    assert [p.name for p in tmp_path.glob("*.ipynb")] == ["failed.out.ipynb"]


def test_a_study_of_ones_own_keeps_the_protocol_and_refuses_what_cannot_be():
    study = read_study(ROOT / "config" / "smoke.yml")
    mine = narrow(study, "mine", ["mistral-s1", "phi3/aligned-s2"], ["bf16", "q2"], 50)
    assert [cell.folder for cell in cells(mine)] == [
        "mistral-s1/bf16", "mistral-s1/q2", "phi3-aligned-s2/bf16", "phi3-aligned-s2/q2"]
    assert {(cell.limit, cell.seeds) for cell in cells(mine)} == {(50, (42, 123, 456, 789, 1024))}
    assert cells(study)[0].limit != 50, "the study it was made from is left as it was"
    for change, told in [
        (dict(models=["mistral/alinged"]), "mistral/aligned"),
        (dict(precisions=["bf16", "q9"]), "q9"),
        (dict(precisions=["q4"]), "bf16 is missing"),
    ]:
        with pytest.raises(ValueError, match=told):
            narrow(study, "mine", **change)
    for name in ("organisms", "bbq", "instrument"):
        with pytest.raises(ValueError, match=f"NAME: '{name}' is"):
            narrow(study, name)
    with pytest.raises(ValueError, match="ITEMS: 'many'"):
        parse_items("many")


def test_what_decides_an_answer_is_an_input_of_the_workflow(tmp_path, mistral, monkeypatch):
    """Snakemake runs a cell again, whose hashes then decide, when one of these files changes."""
    monkeypatch.setenv("BBQ_DIR", str(tmp_path))
    (tmp_path / "Age.jsonl").touch()
    study = read_study(ROOT / "config" / "bbq.yml")
    study["models"][0] |= {"source": os.path.relpath(mistral), "base": "mistral/base"}
    found = {os.path.relpath(file, ROOT) for file in input_files(cells(study))}
    own = {os.path.relpath(mistral / name, ROOT) for name in
           ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")}
    assert own | {os.path.relpath(tmp_path / "Age.jsonl", ROOT), "organisms/mistral/base/config.json",
                  "organisms/mistral/base/model.safetensors", "data/heldout.txt"} <= found


@pytest.fixture
def study_of_one_cell():
    """A study file in the project's results, gone with all of its results afterwards."""
    study = narrow(read_study(ROOT / "config" / "smoke.yml"), "test-workflow", ["mistral/base"],
                   ["bf16"], 20)
    path = RESULTS / "test-workflow" / "study.yml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(study))
    yield path
    shutil.rmtree(path.parent)


def test_a_study_runs_once_at_a_time_and_again_after_a_kill(study_of_one_cell):
    command = [sys.executable, "-m", "cba_utils.study.workflow", str(study_of_one_cell)]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    first.stderr.read1()  # Snakemake is at work
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.stderr == ("error: study 'test-workflow': another run is at work on it; wait for it or "
                             "end it\n")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    study = yaml.safe_load(study_of_one_cell.read_text())
    study["models"][0]["source"] = "nowhere/at-all"
    study_of_one_cell.write_text(yaml.safe_dump(study))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                           env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert again.returncode == 1 and "Lock" not in again.stderr
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "'nowhere/at-all' cannot be had from the hub" in again.stderr.splitlines()[-1]
