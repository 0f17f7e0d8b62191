"""A verdict a claim: a study in which the claims hold, one in which they do not, one that cannot tell."""

from cba_utils.chapters import verdicts
from cba_utils.chapters.verdicts import CLAIMS, HELD, NOT_HELD, OPEN, Chapter
from cba_utils.telling.page import CHAPTERS
from studies import study_of, without_probabilities

import pandas as pd
import pytest

LADDER = ["bf16", "q8", "q6", "q4", "q3"]


@pytest.fixture(autouse=True)
def real(monkeypatch):
    study = study_of("none", templates=8, precisions=LADDER, family="small")
    study.study = "small"
    monkeypatch.setattr(verdicts, "records", lambda: type("Records", (), {"study": study}))


def said(chapter, real=False):
    found = chapter.found[chapter.found["real"] == real]
    return {(row.claim, row.precision): row.verdict for row in found.itertuples()}


@pytest.fixture(scope="module")
def rising():
    return study_of("bias", templates=40, precisions=LADDER, effect=1.0)


def test_a_study_in_which_bias_comes_back_holds_the_claims(rising):
    found = said(Chapter(rising))
    for claim in (
        *[(name, p) for name in ("beyond", "grew", "own_odds") for p in ("q4", "q3")],
        ("dose", ""),
    ):
        assert found[claim] == HELD, claim
    assert found["unknown", "q3"] == HELD


def test_a_study_in_which_next_to_nothing_changes_does_not():
    chapter = Chapter(study_of("noise", templates=40, precisions=LADDER, effect=0.02))
    found = said(chapter)
    for claim in [(name, p) for name in ("grew", "own_odds") for p in ("q4", "q3")]:
        assert found[claim] == NOT_HELD, claim
    assert found["unknown", "q3"] == NOT_HELD
    assert "it did not in simulated" in chapter.text("direction")


def test_noise_in_a_model_that_leaned_is_no_lean_that_grew():
    found = said(Chapter(study_of("leaning noise", templates=40, precisions=LADDER)))
    assert found["beyond", "q3"] == HELD
    assert HELD not in {found[name, p] for name in ("grew", "own_odds") for p in ("q4", "q3")}


def test_what_records_lack_cannot_be_told(rising):
    draws = Chapter(without_probabilities(study_of("bias", templates=12, precisions=LADDER)))
    found = said(draws)
    for name in ("beyond", "grew", "own_odds"):
        assert found[name, "q3"] == OPEN
    assert found["perplexity", "q4"] == found["unseen", "q4"] == OPEN
    short = said(Chapter(study_of("bias", templates=12)))
    assert short["range", "q8"] == short["perplexity", "q8"] == OPEN


def test_a_published_range_is_read_from_the_published_table(rising):
    """The verdict moves with the table, and with nothing else."""
    chapter = Chapter(rising)
    row = (
        chapter.here.seen["simulated"]
        .query("measure == 'became_biased' and precision == 'q3'")
        .iloc[0]
    )
    around = {"low": 100 * row["estimate"] - 1, "high": 100 * row["estimate"] + 1}
    table = chapter.published.copy()
    at = (table["quantity"] == "items_became_biased") & (table["precision"] == "q3")
    for ends, verdict in (
        (around, HELD),
        ({"low": 0.0, "high": 100 * row["low"] - 1}, NOT_HELD),
        ({"low": 100 * row["high"] + 1, "high": 100.0}, NOT_HELD),
    ):
        table.loc[at, ["low", "high"]] = [ends["low"], ends["high"]]
        chapter = Chapter(rising)
        chapter.published = table
        assert said(chapter)["range", "q3"] == verdict


def test_the_table_has_every_claim_and_names_pages_that_exist(rising):
    chapter = Chapter(rising)
    frame, _ = chapter.table_verdicts()
    assert len(frame) == len(CLAIMS) and {"simulated", "small"} <= set(frame)
    assert frame["simulated"].str.startswith((HELD, NOT_HELD, OPEN)).all()
    for one in chapter.pages:
        assert (CHAPTERS.parents[1] / "notebooks" / one["file"]).is_file()
        assert f"]({one['file']})" in chapter.text("pages")
    counted = chapter.counted()
    told = pd.Series(said(chapter))
    assert counted["held"] == (told == HELD).sum() and counted["open"] == (told == OPEN).sum()
