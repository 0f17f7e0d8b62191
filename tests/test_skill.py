"""Is it lost skill? reads simulated truths rightly, and says what records cannot answer."""

from cba_utils.chapters.skill import Chapter
from cba_utils.measures import controls
from cba_utils.telling.numbers import scores
from cba_utils.telling.study import pick
from studies import study_of, without_probabilities

import pytest


@pytest.mark.parametrize(
    ("truth", "reading"),
    [("bias", "is more than an equal loss"), ("noise", "cannot be told from what an equal loss")],
)
def test_bias_is_read_beside_what_guessing_would_leave(truth, reading):
    chapter = Chapter(study_of(truth))
    assert reading in chapter.text("matched") and reading in chapter.text("skill_answer")
    beyond = pick(controls.matched_skill(chapter.study.answers), "s_amb_beyond_guessing", "q3")
    assert f"the difference is {scores(beyond)}." in chapter.text("matched")


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
        for name in ("kinds", "accuracy_and_gap", "matched", "disambiguated", "skill_answer"):
            assert chapter.text(name).endswith("its records hold no disambiguated questions.")
