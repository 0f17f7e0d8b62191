"""Is it lost skill? reads simulated truths rightly, and says what records cannot answer."""

from cba_utils.chapters.skill import Chapter
from studies import study_of, without_probabilities

import pytest


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ("bias", "and the lean itself grew"),
        ("leaning noise", "nowhere shown to be above"),
        ("noise", "nowhere shown to be above"),
    ],
)
def test_bias_is_read_beside_what_guessing_would_leave(truth, said):
    chapter = Chapter(study_of(truth))
    assert said in chapter.text("answer") and said in chapter.text("matched")


def test_a_lean_that_was_there_is_not_called_new_bias():
    chapter = Chapter(study_of("leaning noise"))
    rows = chapter.estimates["measure"] == "s_amb_beyond_guessing"
    chapter.estimates.loc[rows, ["low", "high"]] = 2.0, 4.0
    assert "which a model that leaned before shows without any new bias" in chapter.text("answer")


def test_accuracy_that_falls_is_said_to_fall_where_it_does():
    chapter = Chapter(study_of("noise"))
    rows = chapter.estimates["measure"] == "d_accuracy"
    chapter.estimates.loc[rows, ["low", "high"]] = 0.0, 0.0
    assert "no loss of right answers is shown" in chapter.text("skill_answer")
    fresh = Chapter(study_of("noise"))
    fresh.estimates.loc[rows & (fresh.estimates["precision"] == "q3"), ["low", "high"]] = -0.2, -0.1
    fresh.estimates.loc[rows & (fresh.estimates["precision"] == "q4"), ["low", "high"]] = -0.2, 0.1
    assert "fewer answers are right than at BF16 at Q3 in simulated, and no loss" in fresh.text(
        "skill_answer"
    )


def test_items_are_counted_by_whether_the_right_answer_agrees_with_the_stereotype():
    chapter = Chapter(study_of())
    asked = chapter.study.items.query("context_condition == 'disambig'")
    agrees = sum(row.label == row.stereotyped_index for row in asked.itertuples())
    assert chapter.text("kinds").startswith(
        f"On {agrees} of the {len(asked)} disambiguated items ("
    )


def test_without_disambiguated_items_the_page_says_so():
    ambiguous = study_of()
    ambiguous.items = ambiguous.items.query("context_condition == 'ambig'")
    for study in (ambiguous, without_probabilities(study_of())):
        chapter = Chapter(study)
        for name in ("kinds", "answer", "gap", "matched", "disambiguated", "skill_answer"):
            assert chapter.text(name).endswith("its records hold no disambiguated questions.")
