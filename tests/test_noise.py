"""Is it noise? reads simulated truths rightly, and says what records cannot answer."""

from cba_utils.chapters.noise import Chapter
from cba_utils.measures import controls, transitions
from cba_utils.telling.numbers import interval, points
from cba_utils.telling.study import pick
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def chapter():
    return Chapter(study_of())


def test_the_words_are_those_of_the_estimates(chapter):
    moves = transitions.placebo(chapter.study.answers, chapter.study.samples)
    tests = controls.direction_tests(chapter.study.answers)
    assert chapter.text("lean").endswith("(the lean grew).")
    assert f"from one half in {(tests['p_holm'] < 0.05).sum()} of 2 cells" in chapter.text("left")
    left = pick(controls.direction(chapter.study.answers), "left_unknown", "q3")
    assert interval(left) in chapter.text("left")
    one, other = (pick(moves, f"became_{x}_expected_excess", "q3") for x in ("biased", "anti"))
    assert interval(one) in chapter.text("excess")
    contrast = points({**one, "estimate": one["estimate"] - other["estimate"]}).split(" ")[0]
    assert f"simulated {contrast} (" in chapter.text("mirror")
    assert "more became biased" in chapter.text("mirror")


@pytest.mark.parametrize("truth", ["noise", "leaning noise", "letter"])
def test_no_grown_lean_is_found_in_noise_and_letters(truth):
    chapter = Chapter(study_of(truth))
    assert chapter.text("lean").endswith("(the lean is not shown to have grown).")
    if truth != "leaning noise":
        assert "not to be told" in chapter.text("mirror")


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [(0.6, 0.8, "more than"), (0.2, 0.4, "less than"), (0.4, 0.6, "not to be told from")],
)
def test_a_direction_is_read_from_its_interval_not_its_estimate(chapter, low, high, reading):
    share = pd.DataFrame(
        {
            "measure": ["share_to_stereotyped"],
            "precision": "q3",
            "estimate": (low + high) / 2,
            "low": low,
            "high": high,
        }
    )

    class Study:
        lowest, exact, speechless = "q3", True, False

        def pooled(self, frame):
            return frame

    read = Chapter(Study())
    read.moved = share
    assert reading in read.text("direction")


def test_categories_are_weighted_by_the_answers_that_left():
    several = Chapter(study_of("noise", replicates=3))
    frame, _ = several.table_direction()
    table = frame.set_index("category")
    rows = controls.direction(several.study.answers, ["category"]).query(
        "measure == 'share_to_stereotyped' and precision == 'q3'"
    )
    for category, part in rows.groupby("category"):
        share = np.average(part["estimate"], weights=part["n"])
        assert table.loc[category, "answers that left"] == part["n"].sum()
        shown = table.loc[category, "of these to the stereotyped person"]
        assert shown["estimate"] == pytest.approx(share)


def test_without_probabilities_the_page_says_what_it_lacks_and_tells_the_rest(
    monkeypatch, tmp_path
):
    chapter = Chapter(without_probabilities(study_of()))
    for name in ("lean", "seeds"):
        assert chapter.text(name).startswith("This is not measured in this study")
    assert "cannot tell" in chapter.text("lean_reading")
    assert "%" in chapter.text("left") and "%" in chapter.text("both_ways")
    shown = []
    monkeypatch.setattr(type(chapter.study), "folder", tmp_path)
    for module in ("drawing", "page"):
        monkeypatch.setattr(
            f"cba_utils.telling.{module}.display", lambda data, **_: shown.append(data)
        )
    chapter.figure("noise_lean")
    assert "not measured in this study" in shown[0]["image/svg+xml"]
