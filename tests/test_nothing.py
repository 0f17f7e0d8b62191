"""Nothing to find: read from a simulated study of a coin's items, in which one truth is planted or none."""

from cba_utils.chapters import nothing
from cba_utils.chapters.nothing import Chapter, Part
from studies import study_of

import pytest


@pytest.fixture
def told(monkeypatch):
    """The page on simulated records of organisms and of another model."""

    def page(truth, other="noise", **options):
        parts = {
            "organisms": Part(study_of(truth, templates=30, replicates=3, effect=0.5, **options)),
            "real": Part(study_of(other, templates=30, effect=0.5, family="real")),
        }
        monkeypatch.setattr(nothing, "_records", lambda: parts)
        return Chapter(study_of("none", templates=6))

    return page


def test_noise_moves_items_and_sends_them_nowhere(told):
    page = told("noise")
    where, moved = page.counted(), page.counted(moves=True)
    assert where["of"] == 20 and where["said"] <= 3
    assert moved["above"] == moved["of"] == 4
    frame, _ = page.table_nothing()
    assert {"measure", "at", "simulated", "real"} <= set(frame) and len(frame) == 12


def test_a_bias_is_said_where_there_is_one(told):
    page = told("bias", "bias")
    leans = [one for one in page.said if one["measure"] == "d_log_gap"]
    assert {(one["name"], one["precision"]) for one in leans} == {
        (name, precision) for name in ("simulated", "real") for precision in ("Q4", "Q3")
    }
    assert "lean, times BF16's, simulated at Q3" in page.text("said")
    far = page.distances.set_index(["measure", "precision", "name"])["estimate"].abs() > 1
    said = {(one["measure"], one["precision"].lower(), one["name"]) for one in page.said}
    assert set(far[far].index) == said


def test_the_page_keeps_its_drawings_with_the_study_that_was_asked_for(told):
    page = told("noise")
    frame, formats = page.table_null_rates()
    assert len(frame) == 6 and set(formats) <= set(frame)
    assert page.folder == page._asked.folder
