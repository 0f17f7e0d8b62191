"""Is it noise? reads simulated truths rightly, and says what records cannot answer."""

from cba_utils.chapters.dose_response import Chapter as First
from cba_utils.chapters.noise import Chapter
from cba_utils.measures import controls
from cba_utils.telling.study import pick
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest

GREW, NOT = "The lean towards the stereotyped person grew at", "Neither is the lean"


@pytest.fixture(scope="module")
def chapter():
    return Chapter(study_of())


def test_the_words_are_those_of_the_estimates(chapter):
    table, _ = chapter.table_noise()
    row = table[table["at"] == "Q3"].iloc[0]
    leans = controls.lean(chapter.study.answers)
    assert row["times that"]["estimate"] == pick(leans, "d_log_gap", "q3")["estimate"]
    assert row["odds at BF16"]["estimate"] == pick(leans, "log_gap", "bf16")["estimate"]
    assert row["excess, points"]["estimate"] == pytest.approx(
        row["gained"]["estimate"] - row["asked again"]["estimate"]
    )


@pytest.mark.parametrize(
    ("truth", "said"),
    [("bias", GREW), ("noise", NOT), ("leaning noise", NOT), ("letter", NOT)],
)
def test_the_lean_grows_where_a_stereotype_does_and_nowhere_else(truth, said):
    chapter = Chapter(study_of(truth))
    assert chapter.text("lean_answer").startswith(said)
    assert "More items gained" in chapter.text("excess_answer")
    before = "What came out was there before" in chapter.text("lean_answer")
    assert before == (truth == "leaning noise")
    verdict = First(chapter.study).text("verdict")
    begins = {"bias": "Yes, in part"}.get(truth, "More items gain a stereotyped answer than luck")
    assert verdict.startswith(begins)
    ends = {"leaning noise": "fewer bits let out the lean that was there before."}
    if truth != "bias":
        assert verdict.endswith(ends.get(truth, "answers move to either person."))


def test_where_nothing_changes_the_first_page_says_no():
    first = First(study_of("none"))
    assert first.text("verdict").startswith("Not as far as these models show")
    assert "no more items are shown to have gained" in first.text("finding_gained")


def test_families_that_go_different_ways_are_named_and_never_averaged():
    parts = [study_of(truth, family=name, replicates=4) for truth, name in FAMILIES.items()]
    study = parts[0]
    for name in ("answers", "samples", "perplexity", "provenance"):
        tables = [getattr(part, name) for part in parts]
        setattr(study, name, pd.concat(tables, ignore_index=True))
    study.letters = None
    study.__post_init__()
    chapter = Chapter(study)
    assert chapter.grew["q3"].above == ["risen"] and chapter.grew["q3"].rest == ["shaken"]
    assert "at Q4 and Q3 in risen" in chapter.text("lean_answer")
    assert "is not shown to have grown elsewhere" in chapter.text("lean_answer")
    factors = sorted(
        round(float(np.exp(chapter.grew[p][0].row["estimate"])), 2) for p in ("q4", "q3")
    )
    assert f"to {factors[0]:.2f} to {factors[1]:.2f} times that of BF16" in chapter.text(
        "lean_answer"
    )
    table, _ = chapter.table_noise()
    assert table["family"].tolist() == ["risen"] * 2 + ["shaken"] * 2
    assert "in risen" in First(study).text("verdict")


FAMILIES = {"bias": "risen", "noise": "shaken"}


def test_a_lone_checkpoint_is_said_to_be_one_and_no_lone_checkpoint_decides_alone(chapter):
    assert "There is one checkpoint of each family here" in chapter.text("trusted")
    several = Chapter(study_of(replicates=3))
    assert several.text("trusted").strip() == "" or "one checkpoint" not in several.text("trusted")
    assert several.text("deciders") and not chapter.text("deciders")


def test_one_odd_checkpoint_that_decides_is_named():
    several = Chapter(study_of("none", replicates=4))
    leans = several.leans
    change = (leans["measure"] == "d_log_gap") & (leans["precision"] == "q3")
    values = [0.30, 0.32, 0.31, -0.10]
    leans.loc[change, "estimate"] = values
    odd = leans.loc[change, "model"].iloc[3]
    assert f"One checkpoint decides the change of the lean in simulated at Q3: without {odd}" in (
        several.text("deciders")
    )


def test_every_category_and_family_is_told_with_its_answers():
    several = Chapter(study_of("noise", replicates=3))
    frame, _ = several.table_direction()
    rows = controls.direction(several.study.answers, ["category"]).query(
        "measure == 'share_to_stereotyped' and precision == 'q3'"
    )
    for category, part in rows.groupby("category"):
        shown = frame[frame["category"] == category].iloc[0]
        share = np.average(part["estimate"], weights=part["n"])
        assert shown["answers that left"] == part["n"].sum()
        assert shown["of these to the stereotyped person"]["estimate"] == pytest.approx(share)


def test_without_probabilities_the_page_says_what_it_lacks_and_tells_the_rest(
    monkeypatch, tmp_path
):
    chapter = Chapter(without_probabilities(study_of()))
    assert chapter.text("seeds").startswith("This is not measured in this study")
    assert "cannot be told" in chapter.text("answer") and GREW in chapter.text("answer")
    assert "%" in chapter.text("direction") and "points" in chapter.text("both_ways")
    assert "cannot tell whether it does" in First(chapter.study).text("verdict")
    shown = []
    monkeypatch.setattr(type(chapter.study), "folder", tmp_path)
    for module in ("drawing", "page"):
        monkeypatch.setattr(
            f"cba_utils.telling.{module}.display", lambda data, **_: shown.append(data)
        )
    chapter.figure("noise_excess")
    assert "not measured in this study" in shown[0]["image/svg+xml"]
