import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cba_utils import load_items
from cba_utils.answering import scoring
from cba_utils.answering.prompts import PARSERS
from cba_utils.measures.sensitivity import reparse
from cba_utils.names import RESULTS
from cba_utils.study import cell, files
from cba_utils.study.cell import select_items
from cba_utils.study.provenance import items_hash
from cba_utils.study.published_jsonl import read_jsonl, write_jsonl
from cba_utils.study.tables import TEXTS, collect, load_study, refresh_items, shrink
from conftest import ROOT

import numpy as np
import pandas as pd
import pytest

PARAMETERS = dict(
    model=None,
    adapter=None,
    precision="q4",
    items="bundled",
    categories=None,
    condition="both",
    limit=1100,
    orders="original",
    prompt="published",
    date="2024-07-26",
    compute=None,
    drift=True,
    seeds=[42, 123],
    temperature=0.3,
    max_tokens=2,
    parser="strict",
    text="bundled",
    sequences=4,
    sequence_length=64,
    text_seed=1,
    perplexity_method="own",
)
FILES = ("answers.parquet", "samples.parquet", "perplexity.parquet")


@pytest.fixture
def parameters(mistral):
    return {**PARAMETERS, "model": str(mistral)}


def small(parameters):
    return {**parameters, "limit": 20}


def test_a_killed_run_resumes_to_the_same_bytes(parameters, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cell.evaluate(parameters, whole)
    code = f"from cba_utils.study import cell; cell.evaluate({parameters!r}, {str(killed)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (killed / "parts" / "samples-0.parquet").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "provenance.json").exists()
    first = (killed / "parts" / "samples-0.parquet").stat().st_mtime_ns
    seen = []
    original = cell.write_table
    cell.write_table = lambda table, path: (seen.append(path.name), original(table, path))
    try:
        cell.evaluate(parameters, killed)
    finally:
        cell.write_table = original
    assert "samples-0.parquet" not in seen and first
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_stopped_at_any_write_resumes_to_the_same_bytes(parameters, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ITEMS_AT_ONCE", 8)  # three blocks, the last one short
    monkeypatch.setenv("CBA_CACHE", str(tmp_path / "cache"))
    parameters, write, written = small(parameters), files.write_whole, []

    def stop_at(number):
        shutil.rmtree(tmp_path / "cache" / "states", ignore_errors=True)

        def counted(path, function):
            written.append(path.name)
            if len(written) == number:
                raise KeyboardInterrupt
            write(path, function)

        written.clear()
        monkeypatch.setattr(files, "write_whole", counted)

    stop_at(None)
    cell.evaluate(parameters, tmp_path / "whole")
    for number in range(1, len(written) + 1):
        stopped = tmp_path / str(number)
        stop_at(number)
        with pytest.raises(KeyboardInterrupt):
            cell.evaluate(parameters, stopped)
        monkeypatch.setattr(files, "write_whole", write)
        cell.evaluate(parameters, stopped)
        for name in FILES:
            assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cell_is_reused_only_if_all_that_decides_it_is_the_same(parameters, tmp_path):
    parameters = small(parameters)
    cell.evaluate(parameters, tmp_path)
    stamp = (tmp_path / "provenance.json").stat().st_mtime_ns
    cell.evaluate(parameters, tmp_path)
    assert (tmp_path / "provenance.json").stat().st_mtime_ns == stamp
    for change in ({"temperature": 0.5}, {"seeds": [1, 2]}, {"precision": "q3"}, {"limit": 19}):
        cell.evaluate({**parameters, **change}, tmp_path)
        known = json.loads((tmp_path / "provenance.json").read_text())
        assert known["identity"]["parameters"] == {**parameters, **change}
    known["identity"]["weights_sha256"] = "0" * 64
    (tmp_path / "provenance.json").write_text(json.dumps(known))
    cell.evaluate({**parameters, "limit": 19}, tmp_path)
    again = json.loads((tmp_path / "provenance.json").read_text())
    assert again["identity"]["weights_sha256"] != "0" * 64


def test_every_item_is_there_once(parameters, tmp_path):
    tables = cell.evaluate(small(parameters), tmp_path)
    items = cell.select_items(small(parameters))
    assert tables["answers"]["item_id"].tolist() == items["item_id"].tolist()
    for break_it in (lambda t: t.iloc[1:], lambda t: pd.concat([t, t.iloc[:1]])):
        broken = {**tables, "samples": break_it(tables["samples"])}
        with pytest.raises(ValueError, match=f"samples: item '{items['item_id'][0]}' has"):
            cell._check_complete(broken, items, small(parameters))


def test_a_full_disk_is_named_and_loses_nothing(parameters, tmp_path, monkeypatch):
    parameters = small(parameters)
    original = os.fsync

    def full(descriptor):
        if (tmp_path / "parts" / "answers-0.parquet").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="samples-0.parquet: cannot be written .No space left"):
        cell.evaluate(parameters, tmp_path)
    assert (tmp_path / "parts" / "answers-0.parquet").exists()
    assert not list(tmp_path.rglob(".*parquet*"))
    monkeypatch.setattr(os, "fsync", original)
    cell.evaluate(parameters, tmp_path)


def test_jsonl_of_the_published_code_survives_a_round_trip(parameters, tmp_path):
    tables = cell.evaluate(small(parameters), tmp_path)
    items = load_items("bundled", condition="both")
    ours = tables["samples"].assign(model="m", precision="q4")
    written = write_jsonl(ours, items, tmp_path)
    assert [path.name for path in written] == ["m_q4.jsonl"]
    back, found = read_jsonl(written)
    ours = ours[ours["context_condition"] == "ambig"].reset_index(drop=True)
    same = ["item_id", "category", "seed", "raw_response", "parsed_answer", "role", "correct"]
    pd.testing.assert_frame_equal(
        back[same].astype(str),
        ours[same].astype(object).fillna(np.nan).astype(str),
        check_dtype=False,
    )
    roles = ["item_id", "category", "stereotyped_index", "anti_stereotyped_index", "unknown_index"]
    asked = items[items["item_id"].isin(ours["item_id"])][roles].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[roles], asked.astype(found[roles].dtypes), check_like=True)


def test_items_without_a_target_are_asked_and_kept_apart(parameters, tmp_path, monkeypatch):
    """As many records as the published study has; the measures' tables hold none of these items."""
    from cba_utils.study import published_jsonl
    from cba_utils.study.protocol import cells, read_study
    from test_items import ROW

    (tmp_path / "items").mkdir()
    both = {"stereotyped_groups": ["old", "nonOld"]}
    rows = [
        {
            **ROW,
            "example_id": n,
            "context": f"X met Y {n} times.",
            "additional_metadata": both if n % 4 == 1 else ROW["additional_metadata"],
        }
        for n in range(8)
    ]
    (tmp_path / "items" / "Test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = read_study(ROOT / "config" / "smoke.yml")
    study["models"][0] |= {"source": parameters["model"], "adapter": None}
    study["items"] = {"source": str(tmp_path / "items"), "condition": "ambig"}
    for asked in cells(study):
        folder = tmp_path / "smoke" / asked.folder
        tables = cell.evaluate(asked.parameters(), folder)
        assert set(tables["samples"]["item_id"]) == {f"Test/{n}" for n in (0, 2, 3, 4, 6, 7)}
        again = (folder / "undefined.parquet").read_bytes()
        # A target of -1 was Python's last answer, C; nobody is left to be the other person.
        kept = pd.read_parquet(folder / "undefined.parquet")
        assert set(kept["stereotyped_index"]) == {2} and set(kept["anti_stereotyped_index"]) == {-1}
        (folder / "provenance.json").unlink()
        cell.evaluate(asked.parameters(), folder)
        assert (folder / "undefined.parquet").read_bytes() == again
    collect(study, tmp_path)
    monkeypatch.setattr(published_jsonl, "RESULTS", tmp_path)
    monkeypatch.setattr(
        "cba_utils.study.tables.load_study", lambda name: load_study(name, tmp_path)
    )
    files, left_out = published_jsonl.export("smoke")
    records = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(records) == 2 * 8 * 5 and left_out == []
    targets = {row["item_id"]: row["stereotype_target_index"] for row in records}
    assert {n for n, target in targets.items() if target == -1} == {1, 5}
    assert all(row["unknown_index"] == 2 for row in records)
    _, items = read_jsonl(files)
    assert items.attrs["undefined_targets"] == ["Test/1", "Test/5"] and len(items) == 6
    small = {**cells(study)[0].parameters(), "limit": 3}
    assert cell.undefined_items(small, cell.select_items(small)).empty


def test_collected_tables_hold_what_the_cells_hold(parameters, tmp_path, monkeypatch):
    from cba_utils.study.protocol import cells, read_study

    study = read_study(ROOT / "config" / "smoke.yml")
    study["models"][0] |= {"source": parameters["model"], "adapter": None}
    study["items"]["limit"] = 12
    with pytest.raises(FileNotFoundError, match="not finished; run the study again"):
        collect(study, tmp_path)
    for asked in cells(study):
        single = cell.evaluate(asked.parameters(), tmp_path / "smoke" / asked.folder)
    collect(study, tmp_path)
    tables = load_study("smoke", tmp_path)
    assert tables["answers"].groupby("precision").size().to_dict() == {"bf16": 12, "q3": 12}
    last = tables["answers"].query("precision == 'q3'")
    np.testing.assert_array_equal(last["logp_A"], single["answers"]["logp_A"])
    assert tables["provenance"]["precision"].tolist() == ["bf16", "q3"]
    with pytest.raises(FileNotFoundError, match="make book STUDY=other"):
        load_study("other", tmp_path)


def test_small_tables_are_the_tables_without_the_words(tmp_path):
    shutil.copytree(RESULTS / "organisms" / "tables", tmp_path / "organisms" / "tables")
    before = load_study("organisms", tmp_path)
    size = (tmp_path / "organisms" / "tables" / "answers.parquet").stat().st_size
    folder = shrink("organisms", tmp_path)
    assert (folder / "answers.parquet").stat().st_size < size
    after = load_study("organisms", tmp_path)
    assert after["items"][TEXTS].isna().all(axis=None)
    columns = [c for c in before["items"] if c not in TEXTS]
    pd.testing.assert_frame_equal(
        after["items"][columns], before["items"][columns], check_dtype=False
    )
    pd.testing.assert_frame_equal(
        after["samples"][[*before["samples"].drop(columns="raw_response")]],
        before["samples"].drop(columns="raw_response"),
        check_dtype=False,
    )
    for parser in PARSERS:
        drawn = [reparse(s["samples"], s["items"], parser)["role"] for s in (before, after)]
        assert (drawn[0] == drawn[1]).all()
    # 16 bits of a logarithm are eleven of precision: at most 0.2 % of a probability above 1 %.
    pd.testing.assert_frame_equal(
        after["answers"], before["answers"], check_dtype=False, rtol=6e-4, atol=6e-4
    )
    again = shrink("organisms", tmp_path)
    pd.testing.assert_frame_equal(load_study("organisms", tmp_path)["answers"], after["answers"])
    assert again == folder


def test_committed_tables_of_other_peoples_items_hold_none_of_their_words():
    folder = RESULTS / "smollm2" / "tables"
    assert not set(TEXTS) & set(pd.read_parquet(folder / "items.parquet"))
    for path in folder.glob("*.parquet"):
        assert "raw_response" not in pd.read_parquet(path), path
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000


@pytest.fixture
def asked_before(parameters, tmp_path):
    """A small study in committed form, made before items had groups; its file, and its tables' folder."""
    from cba_utils.study.protocol import cells, read_study

    study = read_study(ROOT / "config" / "smoke.yml")
    study["models"][0] |= {"source": parameters["model"], "adapter": None}
    study["items"] = {"source": "bundled", "condition": "ambig", "limit": 12}
    for asked in cells(study):
        cell.evaluate(asked.parameters(), tmp_path / "smoke" / asked.folder)
    collect(study, tmp_path)
    folder = shrink("smoke", tmp_path)
    groups = ["target_group", "other_group"]
    then = select_items(cells(study)[0].parameters()).drop(columns=groups)
    known = json.loads((folder / "provenance.json").read_text())
    for one in known["cells"]:
        one["identity"]["items_sha256"] = items_hash(then)
    (folder / "provenance.json").write_text(json.dumps(known))
    items = pd.read_parquet(folder / "items.parquet")
    items.drop(columns=groups).to_parquet(folder / "items.parquet")
    return study, folder


def test_groups_come_to_tables_that_were_made_before_them(asked_before, tmp_path):
    study, folder = asked_before
    before, cells = (
        load_study("smoke", tmp_path),
        json.loads((folder / "provenance.json").read_text())["cells"],
    )
    assert "target_group" not in before["answers"] and "target_group" not in before["items"]
    assert refresh_items(study, tmp_path) == ["target_group", "other_group"]
    after = load_study("smoke", tmp_path)
    groups = load_items("bundled").set_index("item_id")["target_group"]
    for name in ("answers", "samples"):
        told = after[name]["target_group"]
        assert (told == after[name]["item_id"].map(groups)).all()
        pd.testing.assert_frame_equal(after[name].drop(columns="target_group"), before[name])
    noted = json.loads((folder / "provenance.json").read_text())
    assert noted["items_read_again"]["columns_added"] == ["target_group", "other_group"]
    assert noted["cells"] == cells
    assert refresh_items(study, tmp_path) == []
    assert not set(TEXTS) & set(pd.read_parquet(folder / "items.parquet"))


def test_groups_of_other_items_are_refused(asked_before, tmp_path):
    study, folder = asked_before
    study["items"]["limit"] = 11
    before = (folder / "items.parquet").read_bytes()
    with pytest.raises(ValueError, match="bundled: the hash of these items is .* not the same"):
        refresh_items(study, tmp_path)
    assert (folder / "items.parquet").read_bytes() == before


@pytest.mark.parametrize("study", ["null-real", "recipes-real", "smollm2"])
def test_committed_records_name_no_place_of_the_machine_that_made_them(study):
    for cell_ in json.loads((RESULTS / study / "tables" / "provenance.json").read_text())["cells"]:
        assert not Path(cell_["identity"]["parameters"]["items"]).is_absolute()
