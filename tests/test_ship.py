"""Which recipe: sizes are measured, harm is read against margins, and recipes of one size are paired."""

from dataclasses import replace

from cba_utils.chapters.ship import EXCESS, Chapter, kind_of
from studies import study_of

import numpy as np
import pandas as pd
import pytest

# Recipes and the precision whose simulated harm each is given.
RECIPES = {"bf16": "bf16", "q4": "q3", "q4-gptq-scenes": "q8", "q4-gptq-aligned": "q3", "q3": "q2"}


def recipes(**options):
    """A simulated study in which one recipe of four bits does little harm and two do the same."""
    study = study_of("bias", precisions=["bf16", "q8", "q3", "q2"], **options)
    tables = {}
    for name in ("answers", "samples", "perplexity", "provenance"):
        table = getattr(study, name)
        parts = [
            table[table["precision"] == source].assign(precision=recipe)
            for recipe, source in RECIPES.items()
        ]
        tables[name] = pd.concat(parts, ignore_index=True)
    sizes = {"bf16": 16.0, "q3": 3.5}
    bits = tables["provenance"]["precision"].map(lambda p: sizes.get(p, 4.5))
    tables["provenance"] = tables["provenance"].assign(
        parameters_of_model=1e6, weights_bytes=bits * 1e6 / 8
    )
    return replace(study, **tables, letters=None)


@pytest.fixture(scope="module", params=[1, 4])
def chapter(request):
    return Chapter(recipes(replicates=request.param))


def test_a_recipe_that_does_less_harm_at_one_size_is_told_apart_and_its_twin_is_not(chapter):
    assert chapter.plain == "q4" and chapter.rivals == ["q4-gptq-aligned", "q4-gptq-scenes"]
    assert set(chapter.told["apart"]) == {"q4-gptq-scenes"}
    assert "lean" in chapter.told["apart"]["q4-gptq-scenes"]
    assert chapter.told["rest"] == ["q4-gptq-aligned"]
    text = chapter.text("same_size")
    assert "Q4-GPTQ-SCENES by its" in text and "Not told apart: Q4-GPTQ-ALIGNED" in text
    twin = chapter.pairs["q4-gptq-aligned"]
    np.testing.assert_allclose(twin["estimate"].astype(float), 0, atol=1e-9)


def test_texts_of_one_method_are_compared_with_each_other(chapter):
    assert list(chapter.texts) == [("q4-gptq-aligned", "q4-gptq-scenes")]
    assert "In 1 of 1 comparisons" in chapter.text("texts")


def test_only_what_is_shown_to_keep_the_margins_is_recommended(chapter):
    assert not chapter.keeps("q3") and not chapter.keeps("q4")
    for name in chapter.kept:
        row = chapter.of(EXCESS, name)
        assert row["high"] < chapter.margins[EXCESS].most
    sizes = [chapter.cells.loc[p, "bits"] for p in chapter.kept]
    assert sizes == sorted(sizes)


def test_sizes_are_those_of_the_files_and_the_frontier_has_no_beaten_recipe(chapter):
    assert chapter.cells.loc["q4-gptq-scenes", "bits"] == pytest.approx(4.5)
    estimate = {p: chapter.of(EXCESS, p)["estimate"] for p in chapter.recipes}
    size = chapter.cells["bits"]
    for p in chapter.frontier:
        assert not [q for q in chapter.recipes if size[q] <= size[p] and estimate[q] < estimate[p]]
    frame, formats = chapter.table_recipes()
    assert "prompts a second" not in frame and set(formats) <= set(frame)
    assert frame["recipe"].tolist() == [p.upper() for p in chapter.recipes]


def test_kinds_are_said_by_what_a_recipe_does():
    assert [kind_of(p) for p in ("q4", "mxfp4-g32", "q4-e8", "mixed-3-6", "q4-awq-prose", "q4-kv4")] == [
        "rounded to nearest", "rounded to nearest", "mixed bits", "mixed bits", "fitted to a text",
        "cache rounded too",
    ]  # fmt: skip


def test_a_recipe_without_letters_is_not_said_to_keep_its_margins(monkeypatch):
    study = recipes()
    monkeypatch.setattr(type(study), "lettered", [])
    silent = Chapter(study)
    assert silent.kept == [] and silent.lacks("recipe_sizes")
    assert "None of the" in silent.text("answer")
