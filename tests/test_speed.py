"""How fast: ratios are those of the committed measurements, and what was not reached is said."""

from cba_utils.chapters.speed import BENCHMARKS, Chapter
from cba_utils.telling.numbers import timing
from studies import study_of

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def chapter():
    return Chapter(study_of("none"))


def test_the_page_says_the_ratios_of_the_measurements(chapter):
    rows = chapter.results.query("benchmark == 'loop' and precision == 'q4'").set_index("contender")
    ratio = rows.loc["ours", "per_second"] / rows.loc["loop", "per_second"]
    assert f"at Q4 {timing(ratio)} times" in chapter.text("loop")
    worst = rows.loc["ours", "high"] / rows.loc["ours", "answers"] * rows.loc["loop", "answers"]
    found = chapter.loop.set_index(["contender", "precision"]).loc[("the published loop", "q4")]
    assert found["low"] == pytest.approx(rows.loc["loop", "low"] / worst)
    assert found["low"] <= found["estimate"] <= found["high"]


@pytest.mark.parametrize("seconds", [None, 100.0])
def test_what_was_not_reached_is_named(chapter, seconds):
    slow = Chapter(chapter.study)
    slow.results = chapter.results.copy()
    orders = (slow.results["benchmark"] == "orders") & (slow.results["contender"] == "all")
    if seconds:
        slow.results.loc[orders, "seconds"] *= seconds
    named = "cost of six option orders, in runs of one" in slow.text("aims")
    assert named == bool(seconds)
    assert set(slow.missed) == set(slow.aims.loc[slow.aims["met"] == "no", "what"])


def test_a_difference_on_the_gpu_is_not_called_none(chapter):
    assert "differed at all" in chapter.text("kernels")
    apart = Chapter(chapter.study)
    apart.kernels = chapter.kernels.assign(largest=1.0, largest_probability=0.25)
    assert "letter's probability is 0.25." in apart.text("kernels")
    assert isinstance(apart.table_gpu()[0], pd.DataFrame)


def test_architectures_are_counted_as_the_table_has_them(chapter):
    rows = pd.read_csv(BENCHMARKS / "architectures.csv")
    asked = (rows["result"] == "asked").sum()
    assert f"Of the {len(rows)} architectures" in chapter.text("architectures")
    assert f"{asked} can be asked, {(rows['result'] == 'refused').sum()} are" in chapter.text(
        "architectures"
    )
    table, formats = chapter.table_architectures()
    assert sorted(table["architecture"]) == sorted(rows["architecture"])
    assert formats["off by"](1.23e-6) == "1.2·10⁻⁶" and formats["off by"](float("nan")) == ""
    other = Chapter(chapter.study)
    other.architectures = pd.DataFrame(
        {
            "architecture": ["a", "b", "c"],
            "result": ["native only", "refused", "asked"],
            "reason": ["", "no layers", ""],
            "native": ["asked", "no layers", ""],
            "dense_logits": [1e-6] * 3,
        }
    )
    said = other.text("architectures")
    assert "1 can be asked, 1 only with native kernels, 1 are refused by name, and 0 could" in said
    assert said.endswith("no layers (1).")
