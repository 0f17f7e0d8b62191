"""The page of the real model: its numbers recounted, its BF16 explained, and the same in every book."""

import re

from cba_utils.chapters.real_model import Chapter
from cba_utils.names import RESULTS
from cba_utils.telling import page as pages
from studies import study_of, without_letters

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def chapter():
    return Chapter(study_of(templates=6))


def test_the_published_measure_is_what_a_recount_of_the_answers_gives(chapter):
    """Counted from the committed table and the items' roles alone."""
    folder = RESULTS / "smollm2" / "tables"
    items = pd.read_parquet(folder / "items.parquet")
    drawn = pd.read_parquet(folder / "samples.parquet").astype({"parsed_answer": object})
    drawn = drawn[(items["context_condition"] == "ambig").to_numpy()[drawn["item"]]]
    place = drawn["parsed_answer"].map({"A": 0, "B": 1, "C": 2})
    for role, measure in (("stereotyped", "became_biased"), ("anti_stereotyped", "became_anti")):
        hit = place == items[f"{role}_index"].to_numpy(int)[drawn["item"]]
        any_of = hit.groupby([drawn["precision"].astype(object), drawn["item"]]).any().unstack(0)
        could = ~any_of["bf16"]
        for precision in chapter.quantized:
            row = chapter.gained(measure, precision)
            assert row["n"] == could.sum()
            assert row["estimate"] == pytest.approx((any_of[precision] & could).sum() / could.sum())
            assert row["low"] < row["estimate"] < row["high"]


def test_no_number_at_bf16_stands_without_what_bf16_means_there(chapter):
    template = pages._TEMPLATES.get_template("real_model.md.j2")
    for name in template.blocks:
        text = chapter.text(name)
        if "BF16" in text and re.search(r"\d", text) and name != "bf16":
            assert "rounded once by its publisher" in text, name


def test_the_page_of_another_study_is_that_of_the_real_model(chapter):
    other = study_of("bias", templates=6)
    page = Chapter(without_letters(other))
    assert page.text("gained") == chapter.text("gained")
    assert page.study.study == "smollm2" and "simulated" not in page.text("whose")
    assert page.folder == other.folder
