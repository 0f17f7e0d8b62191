"""Is it the letter? tells letters, leanings and opinions apart, and keeps the models asked for it."""

from cba_utils.chapters.letter import Chapter, balanced
from cba_utils.instrument.respondents import simulate_study
from cba_utils.names import STUDY
from cba_utils.telling.study import Study
from studies import PROVENANCE, study_of, without_probabilities

import pandas as pd
import pytest


@pytest.mark.parametrize(
    ("truth", "lead", "drift"),
    [
        ("letter", False, True),
        ("noise", False, False),
        ("bias", True, False),
        ("mixed", True, True),
    ],
)
def test_truths_are_told_apart(truth, lead, drift):
    chapter = Chapter(study_of(truth, orders="all"))
    assert ("The first gained on the second at" in chapter.text("lead")) == lead
    assert ("The answers drift to a letter at Q4 and Q3" in chapter.text("answer")) == drift
    assert ("finds a drift in 2 of 2" in chapter.text("drift")) == drift
    assert (" C by" in chapter.text("drift")) or not drift
    assert ("person grew at Q4 and Q3" in chapter.text("leaned")) == lead


def test_unlike_families_of_one_checkpoint_speak_for_themselves():
    parts = [
        simulate_study(truth, 1, templates=15, precisions=["bf16", "q3"], family=family)
        for truth, family in (("letter", "one"), ("bias", "two"), ("noise", "three"))
    ]
    tables = {
        name: pd.concat([part[name] for part in parts], ignore_index=True)
        for name in ("answers", "samples", "perplexity")
    }
    labels = [c for c in STUDY if c in tables["samples"]]
    cells = tables["samples"][labels].drop_duplicates()
    few = Chapter(
        Study(
            "few",
            items=parts[0]["items"],
            provenance=cells.merge(PROVENANCE, how="cross"),
            **tables,
        )
    )
    assert "gained on the second at Q3 in two," in few.text("lead")
    assert "one C by" in few.text("drift") and "at Q3 in one" in few.text("drift_answer")
    assert "at Q3 in two and is not shown to have grown elsewhere" in few.text("leaned")
    assert "one checkpoint of each family" in few.text("asked")


def test_models_asked_in_balanced_orders_are_kept():
    mixed = study_of(replicates=2, orders="cyclic")
    lone = mixed.answers["model"] == "simulated-s2"
    mixed.answers = mixed.answers[~lone | (mixed.answers["order"] == "012")]
    assert len(mixed.drawn)  # a table that was derived before is no table of the study
    kept = balanced(mixed)
    for table in (kept.answers, kept.samples, kept.perplexity, kept.provenance):
        assert set(table["model"]) == {"simulated-s1"}
    alone = study_of(orders="original")
    assert balanced(alone) is alone


@pytest.mark.parametrize(
    "study",
    [study_of(orders="original"), without_probabilities(study_of())],
    ids=["one order", "draws"],
)
def test_one_order_cannot_tell_a_letter_from_an_opinion(study):
    for name in ("answer", "drift", "lead", "leaned"):
        assert "one option order" in Chapter(study).text(name)
