"""The announced endpoints are those of the protocol, computed as it says."""

from cba_utils.chapters import announced
from cba_utils.measures import controls
from studies import study_of

import numpy as np
import pandas as pd
import pytest


def study(truth, **options):
    made = study_of(truth, replicates=6, **options)
    for name in ("answers", "samples", "perplexity", "provenance"):
        table = getattr(made, name)
        number = (table["replicate"] - 1) // 2 + 1
        setattr(made, name, table.assign(base="b" + number.astype(str)))
    return made


@pytest.fixture
def chapter(monkeypatch):
    monkeypatch.setattr(announced.Chapter, "needs", {})

    def made(truth):
        found = announced.Chapter(study(truth))
        templates = found.study.answers["template_id"].unique()
        found.planted = pd.DataFrame(
            {
                "lean": np.where(np.arange(len(templates)) % 3 == 0, 0.5, 0.8),
                "margin": np.where(np.arange(len(templates)) % 2 == 0, 2.0, 6.0),
            },
            index=templates,
        )
        return found

    return made


def test_the_primary_endpoint_is_the_mean_over_bases_of_the_change_of_the_lean(chapter):
    page = chapter("bias")
    kept = page.planted.index[page.planted["lean"] >= 0.65]
    answers = page.study.answers
    rows = controls.lean(answers[answers["template_id"].isin(kept)])
    rows = rows.query("measure == 'd_log_gap' and precision == 'q3'")
    base = (rows["replicate"] - 1) // 2
    assert page.primary["row"]["estimate"] == pytest.approx(
        rows.groupby(base)["estimate"].mean().mean()
    )
    assert page.primary["row"]["clusters"] == 3 and page.primary["least"] == 0.25
    assert page.control["row"]["estimate"] != page.primary["row"]["estimate"]


@pytest.mark.parametrize(("truth", "sign"), [("bias", 1), ("noise", -1)])
def test_it_is_read_by_its_test_and_not_by_its_size(chapter, truth, sign):
    page = chapter(truth)
    assert "cannot be told from no change" in page.text("primary_answer")  # three bases cannot
    page.primary = {**page.primary, "significant": True}
    page.primary["row"]["estimate"] = sign * 0.2
    assert ("is a rise" in page.text("primary_answer")) == (sign > 0)
    assert ("not as less of a stereotype" in page.text("fall")) == (sign < 0)


def test_the_secondary_endpoints_are_seven_and_corrected_together(chapter):
    page = chapter("none")
    raw = [page._endpoint(*one)["p"] for one in announced.SECONDARY]
    assert len(raw) == 7
    for one, p in zip(page.secondary, raw, strict=True):
        assert one["p"] >= p
    assert "no of the seven" not in page.text("secondary") or page.held == 0


def test_nothing_was_announced_for_the_models_of_others():
    page = announced.Chapter(study_of())
    assert page.text("answer").startswith("No test was announced")
