"""How sure are we? says what its numbers rest on, and no more than they show."""

from cba_utils.chapters.certainty import Chapter, steps_of
from cba_utils.measures import certainty, models
from cba_utils.measures.frames import item_table
from cba_utils.telling.numbers import percent
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def chapter():
    found = Chapter(study_of())
    found.simulations = 50
    return found


def test_no_change_is_said_where_there_is_none(chapter):
    alike = Chapter(study_of("retrained", precisions=["bf16", "q8"], effect=0.05))
    assert (
        "in 1 of 1 checkpoint, and to lie between 0.80 and 1.25 times BF16's in 1 ("
        in alike.text("same")
    )
    assert (
        "in 0 of 1 checkpoint, and to lie between 0.80 and 1.25 times BF16's in 0 ("
        in chapter.text("same")
    )


def test_power_starts_from_the_rate_at_full_precision(chapter):
    exact = (
        item_table(chapter.study.answers, "study", "original")
        .query("precision == 'bf16' and context_condition == 'ambig'")["stereotyped"]
        .mean()
    )
    assert f"(BF16: {percent(exact, 2)})" in chapter.text("power")


@pytest.mark.parametrize("found", [None, 0.02])
def test_a_rise_that_no_simulation_found_is_not_reached(chapter, found):
    read = Chapter(chapter.study)
    read.power = pd.DataFrame(
        {
            "family": ["one"] * 2,
            "effect": [0.0, 0.4],
            "power": [0.0, 0.5],
            "mde": [found or np.nan] * 2,
            "baseline": [0.1] * 2,
        }
    )
    _, alt, _ = read.figure_sure_power()
    shown = "not reached" if found is None else percent(found)
    assert shown in alt and shown in read.text("power")


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (1.5, 4.0, "change more easily."),
        (0.2, 0.9, "change less easily."),
        (0.5, 4.0, "cannot be told."),
    ],
)
def test_flips_are_read_from_their_interval(chapter, monkeypatch, low, high, reading):
    row = pd.DataFrame(
        {"precision": ["q3"], "estimate": [np.sqrt(low * high)], "low": low, "high": high}
    )
    monkeypatch.setattr(certainty, "flip_ratio", lambda answers: row)
    assert chapter.text("flip_sentence").endswith(reading)
    monkeypatch.setattr(certainty, "flip_ratio", lambda answers: row.assign(estimate=np.inf))
    assert "there is no ratio" in chapter.text("flip_sentence")


def test_steps_multiply_to_the_odds_of_the_lowest_precision(chapter):
    odds = chapter.odds.set_index("term")["estimate"]
    found = steps_of(chapter.odds, chapter.study.drawn, "q3")
    assert found["factor"] * found["rest"][0] == pytest.approx(odds["q3"])
    without = models.dose_response(chapter.study.drawn.query("precision != 'q3'"))
    assert found["without"]["estimate"] == pytest.approx(
        without.set_index("term")["estimate"]["q4"]
    )


def test_draws_tell_what_they_can():
    page = Chapter(without_probabilities(study_of()))
    page.simulations = 50
    assert "hold no probabilities" in page.text("flips") and "hold no probabilities" in page.text(
        "choices"
    )
    assert "not in these records" in page.text("same")
    assert "These records hold draws" in page.text("power")


def test_what_the_parser_changes_is_counted_on_the_same_answers():
    study = study_of()
    samples = study.samples
    slips = (samples["precision"] == "q3") & (samples["seed"] == samples["seed"].min())
    samples["raw_response"] = samples["raw_response"].astype(object).mask(slips, "Because of it")
    page = Chapter(study)
    asked = samples[(samples["context_condition"] == "ambig") & (samples["precision"] == "q3")]
    target = asked["item_id"].map(study.items.set_index("item_id")["stereotyped_index"])
    slip = slips[asked.index]
    read = asked["raw_response"].str[0] == target.map(
        dict(enumerate("ABC"))
    )  # "Because" begins with its slip
    assert page.by_parser("unparsed_rate", "strict")["estimate"] == pytest.approx(slip.mean())
    assert page.by_parser("unparsed_rate", "published")["estimate"] == 0
    assert page.by_parser("srs", "strict")["estimate"] == pytest.approx(read[~slip].mean())
    assert page.by_parser("srs", "published")["estimate"] == pytest.approx(read.mean())
    assert page.reread["row"]["estimate"] == pytest.approx(read.mean() - read[~slip].mean())
    frame, _ = page.table_parsers()
    assert (frame["items"] == asked["item_id"].nunique()).all()
    assert (
        f"they read {slip.sum():,} of {len(asked):,} answers to ambiguous questions differently"
        in page.text("parsers")
    )
    alike = Chapter(study_of("noise"))
    assert alike.text("parsers").endswith(
        f"all {len(asked):,} answers to ambiguous questions alike."
    )


def test_odds_are_said_to_be_clustered_as_they_are():
    study = study_of(replicates=4, templates=6)
    assert "template and by checkpoint" in Chapter(study).text("odds_clusters")
    half = {f"simulated-s{k}": f"b{k % 2}" for k in range(1, 5)}
    study.samples["base"] = study.samples["model"].map(half)
    assert "template and by base" in Chapter(study).text("odds_clusters")
    alone = study_of(templates=6)
    assert Chapter(alone).text("odds_clusters").endswith("by question template")
