import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from cba_utils.names import RESULTS
from cba_utils.study.estimate import estimate
from cba_utils.study.notebooks import execute
from cba_utils.study.protocol import (
    cells,
    check_parameters,
    input_files,
    model_slug,
    narrow,
    parse_items,
    parse_models,
    read_study,
    rounding_parameters,
)
from conftest import ROOT

import papermill
import pytest
import yaml

CONFIGS = sorted((ROOT / "config").glob("*.yml"))


def changed(tmp_path, change):
    study = yaml.safe_load((ROOT / "config" / "smoke.yml").read_text())
    change(study)
    path = tmp_path / "smoke.yml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_studies_pass_their_own_schema(path, monkeypatch, tmp_path):
    monkeypatch.setenv("BBQ_DIR", str(tmp_path))
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


def cba(*arguments, **more):
    command = [sys.executable, "-m", "cba_utils.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **more)


def test_the_estimate_is_printed_and_nothing_is_downloaded():
    done = cba("estimate", "paper", env={"HF_HUB_OFFLINE": "1", "PATH": ""})
    assert "cells    15" in done.stdout and "nothing was downloaded" in done.stdout, done.stderr


def of_model(**values):
    return lambda study: study["models"][0].update(values)


def of_section(name, **values):
    return lambda study: study[name].update(values)


def second_model(**values):
    return lambda study: study["models"].append({**study["models"][0], **values})


BAD_STUDIES = [
    # keys
    (
        lambda s: s.update(precison=["q4"]),
        "the top level: unknown key 'precison', did you mean 'precisions'?",
    ),
    (
        of_model(sauce="x"),
        "models.0: unknown key 'sauce', did you mean 'source'? The keys are name,",
    ),
    (of_section("perplexity", seed=1), "perplexity: unknown key 'seed'"),
    (lambda s: s.pop("orders"), "orders: is missing"),
    (lambda s: s.update(items=[]), "items: must be"),
    (lambda s: s.update(models={}), "models: must be a list"),
    (lambda s: s.update(schema_version=2), "schema_version: "),
    # precisions
    (lambda s: s.update(precisions=["q9"]), "precision: 'q9' is unknown; use bf16, q8"),
    (lambda s: s.update(precisions=["bf16"]), "bf16 alone leaves nothing to compare"),
    (lambda s: s.update(precisions=["q4"]), "precisions of toy-mistral-b1-a1: bf16 is missing"),
    (
        lambda s: s.update(precisions=["bf16", "q4", "q4-g64"]),
        "'q4' and 'q4-g64' are the same precision",
    ),
    (lambda s: s.update(precisions=[]), "precisions: must have at least 1 item"),
    (lambda s: s.update(precisions="bf16"), "precisions: must be a list"),
    # numbers: strict, finite, bounded
    *[
        (of_section("samples", temperature=value), "samples.temperature: must be")
        for value in (0, -1, float("inf"), float("nan"), 1e-300, 1e300, "0.3", True, None)
    ],
    *[
        (of_section("samples", max_tokens=value), "samples.max_tokens: must be")
        for value in (0, 10**9, 2.0, "5", True)
    ],
    *[
        (of_section("samples", seeds=value), "samples.seeds")
        for value in ([], [1, 1], [-1], [2**63], [2**70], [1.5], ["1"], [True], 42)
    ],
    *[
        (of_section("items", limit=value), "items.limit: must be")
        for value in (0, -5, 2**64, "many", 1.5)
    ],
    (of_section("perplexity", sequence_length=1), "perplexity.sequence_length: must be"),
    (of_section("perplexity", text_seed=2**32), "perplexity.text_seed: must be"),
    (of_model(replicate=0), "models.0.replicate: must be"),
    # words
    (
        lambda s: s.update(families={"mistrel": "Mine"}),
        "families: no model has the family 'mistrel'; there are toy-mistral",
    ),
    (
        lambda s: (
            s["models"].append(
                {**s["models"][0], "name": "other", "family": "other", "source": "toy-phi3/b1"}
            ),
            s.update(families={"toy-mistral": "Mine (1M)", "other": "Mine (2M)"}),
        ),
        "families: two are called 'Mine' in sentences",
    ),
    (
        of_section("samples", parser="lazy"),
        "samples.parser: must be 'strict' or 'published', not 'lazy'",
    ),
    (of_section("items", condition="all"), "items.condition: must be 'ambig'"),
    (of_section("items", condition="disambig"), "nothing to measure a stereotype on"),
    (of_section("items", categories=[]), "items.categories: must have at least 1 item"),
    (of_section("items", categories=["Age", "Age"]), "'Age' is there twice"),
    (lambda s: s.update(orders="some"), "orders: must be"),
    (lambda s: s.update(compute="fast"), "compute: must be 'dense' or 'native'"),
    (lambda s: s.update(prompt="shouted"), "prompt: must be"),
    (lambda s: s.update(date="yesterday"), "date: 'yesterday' is no day; write it as 2024-07-26"),
    (lambda s: s.update(date="2024-02-30"), "date: '2024-02-30' is no day"),
    (lambda s: s.update(title="two\nlines"), "title: must match"),
    (lambda s: s.update(title=" "), "title: must match"),
    # names
    (lambda s: s.update(name="organisms"), "name is 'organisms'; it must be 'smoke'"),
    *[
        (of_model(name=name), "models.0.name")
        for name in (
            "tables",
            "Book",
            "reports",
            "figures",
            "cells",
            "a\n",
            "..",
            ".hidden",
            "a/b",
            "/a",
            "a b",
            "",
            "\u6a21",
            "x" * 201,
            7,
        )
    ],
    (second_model(), "two models have the same name"),
    (
        second_model(name="Toy-Mistral-B1-A1"),
        "'toy-mistral-b1-a1' and 'Toy-Mistral-B1-A1' differ in case alone",
    ),
    (second_model(name="other"), "'toy-mistral-b1-a1' and 'other' are the same model"),
    # sources
    (of_model(base="toy-mistral/b11"), "no organism 'toy-mistral/b11' (nearest: toy-mistral/b1"),
    (of_model(source="/no/such/folder"), "'/no/such/folder' is no folder"),
    (
        of_model(source="pypi:smollm2"),
        "is no package that is known to hold a model; there are pypi:llm",
    ),
    (of_model(source="organisms"), "'organisms' holds no config.json"),
    (of_model(source="/no/m-{precision}-mlx"), "'/no/m-bf16-mlx' is no folder"),
    (
        of_section("items", source="$NO_SUCH_DIR"),
        "items.source: needs the environment variable NO_SUCH_DIR",
    ),
    (of_section("items", source="nowhere"), "items.source: 'nowhere' is not 'bundled'"),
    (of_section("items", source="/dev/null"), "is there and is not a folder"),
    (of_section("perplexity", text="/dev/null"), "is there and is not a text file"),
]


@pytest.mark.parametrize(("change", "message"), BAD_STUDIES, ids=range(len(BAD_STUDIES)))
def test_bad_studies_are_refused_by_key_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError) as told:
        read_study(changed(tmp_path, change))
    line = str(told.value)
    assert message in line and "\n" not in line and str(tmp_path / "smoke.yml") in line


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2: aliases"),
        ("name: smoke\nname: smoke\n", "line 2: the key 'name' is there twice"),
        ("samples: {seeds: [1], seeds: [2]}", "line 1: the key 'seeds' is there twice"),
        ("? [a, b]\n: c", "not YAML"),
        ("name: [", "not YAML"),
        ("", "must be a list of keys with values, not None"),
        ("- a", "must be a list of keys with values"),
        ("[" * 3000, "nested too deeply"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("1: 2", "unknown key"),
        ("name: \x00", "not YAML"),
        (b"title: \xff", "not UTF-8"),
        ("title: " + "x" * 10**6, "more than a megabyte"),
    ],
    ids=range(13),
)
def test_what_is_no_study_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "smoke.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as told:
        read_study(path)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_named_pipe_is_no_study(tmp_path):
    os.mkfifo(tmp_path / "smoke.yml")
    with pytest.raises(ValueError, match="no such study"):
        read_study(tmp_path / "smoke.yml")


def test_the_run_notebooks_have_the_parameters_of_a_cell():
    """The models are the one list: a field that is added there is asked for here."""
    grid = cells(read_study(ROOT / "config" / "smoke.yml"))
    for name, parameters in [
        ("10_evaluate", grid[0].parameters()),
        ("12_rounding", rounding_parameters(grid, grid[0].name)),
    ]:
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
        assert set(known) == {*parameters, "output"}
        defaults = {
            key: yaml.safe_load(value["default"].replace("None", "null"))
            for key, value in known.items()
        }
        if name == "10_evaluate":
            defaults.pop("output")
            check_parameters(defaults)


def test_parameters_by_hand_are_checked_like_those_of_a_study():
    good = cells(read_study(ROOT / "config" / "smoke.yml"))[0].parameters()
    for change, told in [
        ({"temperature": "0.3"}, "temperature: must be a valid number, not '0.3'"),
        ({"max_tokens": 10**9}, "max_tokens: must be less than"),
        ({"limit": 0}, "limit: must be"),
        ({"precision": "q9"}, "'q9' is unknown"),
        ({"parsr": "strict"}, "unknown key 'parsr', did you mean 'parser'"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_parameters(good | change)


def test_a_source_names_the_precision_in_every_kind_of_place(tmp_path, mistral):
    """Local folders and hub ids, in study files and in MODELS; each cell reads its own checkpoint."""
    for precision in ("bf16", "q4"):
        (tmp_path / f"m-{precision}-mlx").symlink_to(mistral)
    local = f"{tmp_path}/m-{{precision}}-mlx"
    study = read_study(
        changed(
            tmp_path,
            lambda s: (
                s.update(precisions=["bf16", "q4"]),
                s["models"][0].update(source=local),
                s["models"][0].pop("base"),
            ),
        )
    )
    own = input_files(cells(study))
    assert {Path(file).parent.name for file in own} >= {"m-bf16-mlx", "m-q4-mlx"}
    for source in (local, "owner/m-{precision}-mlx"):
        mine = narrow(study, "mine", parse_models(source), ["bf16", "q4"])
        assert [cell.model for cell in cells(mine)] == [source, source]
        assert "{" not in mine["models"][0]["name"]
    with pytest.raises(ValueError, match="m-q3-mlx' is no folder"):
        narrow(study, "mine", [local], ["bf16", "q3"])


@pytest.mark.parametrize(
    "folder", ["with space", "a,b", "quo'te", "br{ace}", "\u6a21\u578b", "$(touch x)"]
)
def test_a_folder_of_any_name_is_a_model(tmp_path, mistral, folder):
    (tmp_path / folder).symlink_to(mistral)
    path = str(tmp_path / folder)
    assert parse_models(f"{path},toy-mistral/b1") == [path, "toy-mistral/b1"]
    mine = narrow(read_study(ROOT / "config" / "smoke.yml"), "mine", [path], ["bf16", "q4"])
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(mine, allow_unicode=True))
    assert cells(read_study(tmp_path / "mine.yml"))[0].model == path


def test_folders_of_other_letters_do_not_share_a_name(tmp_path, mistral):
    names = ["\u6a21\u578b", "\u5b57\u6bcd", "x" * 230]
    for name in names:
        (tmp_path / name).symlink_to(mistral)
    slugs = {model_slug(str(tmp_path / name)) for name in names}
    assert len(slugs) == len(names) and all(
        re.fullmatch(r"[A-Za-z0-9._-]{8,80}", slug) for slug in slugs
    )


def test_an_unknown_notebook_parameter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no parameter 'precison'; it has adapter"):
        execute(
            ROOT / "notebooks" / "10_evaluate.ipynb", tmp_path / "out.ipynb", {"precison": "q4"}
        )


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
    mine = narrow(study, "mine", ["toy-mistral-b1-a1", "toy-phi3/b1"], ["bf16", "q2"], 50)
    assert [cell.folder for cell in cells(mine)] == [
        "toy-mistral-b1-a1/bf16",
        "toy-mistral-b1-a1/q2",
        "toy-phi3-b1/bf16",
        "toy-phi3-b1/q2",
    ]
    assert {(cell.limit, cell.seeds) for cell in cells(mine)} == {(50, (42, 123, 456, 789, 1024))}
    assert cells(study)[0].limit != 50, "the study it was made from is left as it was"
    for change, told in [
        (dict(models=["toy-mistral/b1a"]), "toy-mistral/b1"),
        (dict(precisions=["bf16", "q9"]), "q9"),
        (dict(precisions=["q4"]), "bf16 is missing"),
    ]:
        with pytest.raises(ValueError, match=told):
            narrow(study, "mine", **change)
    for name in (
        "organisms",
        "bbq",
        "instrument",
        "cells",
        "../evil",
        "/tmp/evil",
        "Mine",
        "a b",
        "a\n",
        "",
    ):
        with pytest.raises(ValueError, match=re.escape(f"NAME: {name!r} is")):
            narrow(study, name)
    with pytest.raises(ValueError, match="ITEMS: 'many'"):
        parse_items("many")


def test_what_decides_an_answer_is_an_input_of_the_workflow(tmp_path, mistral, monkeypatch):
    """Snakemake runs a cell again, whose hashes then decide, when one of these files changes."""
    monkeypatch.setenv("BBQ_DIR", str(tmp_path))
    (tmp_path / "Age.jsonl").touch()
    study = read_study(ROOT / "config" / "bbq.yml")
    study["models"][0] |= {"source": os.path.relpath(mistral), "base": "toy-mistral/b1"}
    found = {os.path.relpath(file, ROOT) for file in input_files(cells(study))}
    own = {
        os.path.relpath(mistral / name, ROOT)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert (
        own
        | {
            os.path.relpath(tmp_path / "Age.jsonl", ROOT),
            "organisms/toy-mistral/b1/config.json",
            "organisms/toy-mistral/b1/model.safetensors",
            "data/heldout.txt",
        }
        <= found
    )


@pytest.fixture
def study_of_one_cell():
    """A study file in the project's results, gone with all of its results afterwards."""
    study = narrow(
        read_study(ROOT / "config" / "smoke.yml"),
        "test-workflow",
        ["toy-mistral/b1"],
        ["bf16", "q4"],
        20,
    )
    path = RESULTS / "test-workflow" / "study.yml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(study))
    yield path
    shutil.rmtree(path.parent)


def test_a_study_runs_once_at_a_time_and_again_after_a_kill(study_of_one_cell):
    command = [sys.executable, "-m", "cba_utils.cli", "run", str(study_of_one_cell)]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    first.stderr.read1()  # Snakemake is at work
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.stderr == (
        "error: study 'test-workflow': another run is at work on it; wait for it or end it\n"
    )
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    study = yaml.safe_load(study_of_one_cell.read_text())
    study["models"][0] |= {"source": "nowhere/at-all", "adapter": None}
    study_of_one_cell.write_text(yaml.safe_dump(study))
    again = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert again.returncode == 1 and "Lock" not in again.stderr
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "'nowhere/at-all' cannot be had from the hub" in again.stderr.splitlines()[-1]
