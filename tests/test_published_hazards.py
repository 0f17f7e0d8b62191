"""The page of known hazards says what its tables hold, and something else when these do."""

import shutil

from cba_utils.chapters.hazards import Chapter
from cba_utils.instrument import hazards
from studies import study_of

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def study():
    return study_of("none", templates=4)


@pytest.fixture
def with_table(study, tmp_path, monkeypatch):
    """A chapter on copies of the tables, of which one was changed."""
    folder = shutil.copytree(hazards.OUT, tmp_path / "hazards")
    monkeypatch.setattr(hazards, "OUT", folder)

    def changed(name, change):
        path = folder / f"{name}.csv"
        change(pd.read_csv(path)).to_csv(path, index=False)
        return Chapter(study)

    return changed


def test_how_often_letters_differ_is_the_tables_and_a_network_that_keeps_them_says_so(
    study, with_table
):
    shipped = Chapter(study)
    rows = pd.read_csv(hazards.OUT / "rope_factors.csv")
    share = (
        rows["letter_long"] != rows["letter_short"]
    ).mean()  # items are as many in every checkpoint
    assert f"another one for {100 * share:.1f}\u00a0% (" in shipped.text("rope")
    kept = with_table(
        "rope_factors", lambda t: t.assign(letter_short=t["letter_long"], agreement=0.5)
    )
    assert "another one for 0.0\u00a0%" in kept.text(
        "rope"
    ) and "less often than that" in kept.text("rope")
    assert "at most 0.5000 nats" in kept.text("rope")
    assert "at most 0.5000" in kept.figure_hazard_rope()[1]


def test_what_the_rule_does_to_a_rise_follows_the_rates(study, with_table):
    assert "where letter C gains, 7.2 points instead of 6.4, so larger" in Chapter(study).text(
        "target"
    )
    same = with_table("undefined_targets", lambda t: t.assign(letter_c=t["left_out"]))
    assert "so larger" not in same.text("target") and "so smaller" not in same.text("target")
    assert "the stereotype gains, 25.2 points with the rule and without it" in same.text("target")


def test_seeds_are_named_with_their_numbers_and_a_rerun_that_differs_is_not_called_the_same(
    study, with_table
):
    assert "none of the unbiased items became biased" in Chapter(study).text("again")
    assert (
        Chapter(study)
        .text("seeds")
        .startswith("From the lowest number to the highest: seed 123 is 0.04")
    )
    other = with_table(
        "seed_draws", lambda t: t.assign(became_biased_by_chance=0.25, all_alike=0.5)
    )
    assert "counts 25.0\u00a0% of the unbiased items" in other.text("again")
    assert "says nothing about noise" not in other.text("again")
    assert "more often than" in other.text("again")
    moved = with_table("seeds", lambda t: t.assign(uniform=1 - t["uniform"]))
    assert "lowest number to the highest: seed 42 is 0.09" in moved.text("seeds")


def test_templates_that_end_in_two_prompts_are_not_called_one(study, with_table):
    assert "same prompt, character by character" in Chapter(study).text("role")
    apart = with_table("system_role", lambda t: t.assign(rendered=["one", "other"]))
    assert "different prompts" in apart.text("role")
