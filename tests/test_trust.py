"""The page of kills, inputs and machines says what its tables hold."""

from cba_utils.chapters import trust
from studies import study_of

import pandas as pd
import pytest

COLUMNS = dict(kind="cell", signal="KILL", ended_after_s=1.0)


@pytest.fixture(scope="module")
def study():
    return study_of("none", templates=4)


def test_a_run_that_ended_otherwise_is_the_first_thing_said(study):
    page = trust.Chapter(study)
    page.kills = pd.DataFrame([COLUMNS | {"run": run, "identical": True} for run in (0, 0, 1, 2)])
    assert page.text("answer").startswith(
        "**Answer.** All 3 runs that were killed at random moments, 4 times"
    )
    page = trust.Chapter(study)
    page.kills = pd.DataFrame(
        [COLUMNS | {"run": run, "identical": run != 1} for run in (0, 0, 1, 2)]
    )
    assert page.text("answer").startswith("**Answer.** 1 of 3 runs")
    assert page.chance["estimate"] == 2 / 3


def test_hours_are_those_of_a_schedule_in_which_references_come_first(study, tmp_path, monkeypatch):
    path = tmp_path / "gpu.csv"
    rows = [("bf16", 3600.0), ("q4", 1800.0), ("q3", 1800.0)]
    pd.DataFrame(rows, columns=["precision", "seconds"]).assign(device="one").to_csv(path)
    monkeypatch.setattr(trust, "REHEARSAL", path)
    table, _ = trust.Chapter(study).table_gpus()
    # Six hours of work; on 15 GPUs a reference and then all others at once.
    assert table["hours"].tolist() == [6.0, 2.0, 1.5] and (table["GPU hours"] == 6.0).all()


def test_what_is_said_of_slips_and_of_pythons_is_what_the_files_hold(study):
    page = trust.Chapter(study)
    rows = [
        ("roles", "a", "killed", "killed", ""),
        ("roles", "a", "survived", "survived", "The value is never read."),
        ("scoring", "b", "survived", "killed", ""),
        ("scoring", "c", "killed", "killed", ""),
    ]
    page.mutants = pd.DataFrame(rows, columns=["part", "module", "first", "result", "note"])
    # A test that was written for a change says nothing about others.
    assert page.noticed["estimate"] == 0.5
    assert "Of the 2 that none noticed, 1 are noticed by a test that was written" in page.text(
        "mutants"
    )
    table, _ = page.table_mutants()
    assert table["modules"].tolist() == [1, 2] and table["n"].tolist() == [2, 2]
    assert table["noticed since"].tolist() == [0, 1] and table["explained"].tolist() == [1, 0]
    columns = ["platform", "python", "from_source", "tests", "passed"]
    told = [
        ("Linux on x86-64", "3.9", "", "", ""),
        ("Linux on x86-64", "3.14", "one two", "8", "7"),
    ]
    page.environments = pd.DataFrame(told, columns=columns)
    assert "Python 3.14 (Linux on x86-64) alone" in page.text("environment")
    assert page.table_environments()[0].iloc[1].tolist()[2:] == ["one, two", "7 of 8"]
    page.environments = pd.DataFrame(told[:1], columns=columns)
    assert "No tests were run" in page.text("environment")
