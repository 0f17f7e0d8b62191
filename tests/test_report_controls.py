"""The control chapters' words on simulated studies, and the instrument's own validation."""

import doctest

import pandas as pd
import pytest

from cba_utils import (
    controls,
    figures_controls,
    instrument,
    metrics,
    published_analysis,
    report_controls,
)
from cba_utils.report import Report, pick
from cba_utils.respondents import simulate_study
from cba_utils.stats import equivalence

PROVENANCE = pd.DataFrame([{
    "identity.parameters.model": "simulated", "parameters_of_model": 0, "git_commit": None,
    "git_dirty": False, "identity.items_sha256": "0" * 64, "identity.packages.mlx": "0",
    "started": "2026-01-01T00:00:00+00:00"}])


def report_of(truth="bias", **options):
    study = simulate_study(truth, **{"templates": 15, "precisions": ["bf16", "q4", "q3"],
                                     **options})
    return Report("simulated", **study, provenance=PROVENANCE)


@pytest.fixture(scope="module")
def report():
    return report_of()


def test_examples_run():
    for module in (figures_controls, report_controls, instrument):
        assert doctest.testmod(module).failed == 0


def test_noise_words_read_the_estimates(report):
    moves = report.pooled(metrics.placebo(report.answers, report.samples))
    directions = report.pooled(controls.direction(report.answers))
    tests = controls.direction_tests(report.answers)
    ranges = report_controls.seed_ranges(report)
    words = report_controls.noise_words(report, moves, directions, tests, ranges)
    assert words["lean_sentence"].endswith("the lean grew.")
    assert words["direction_holm"] == f"{(tests['p_holm'] < 0.05).sum()} of 2"
    share = directions.set_index(["measure", "precision"]).loc[("left_unknown", "q3"), "estimate"]
    assert words["left_lowest"].startswith(f"{100 * share:.1f}")
    excess = pick(moves, "became_biased_expected_excess", "q3")
    assert report_controls.interval(excess) in words["excess_sentence"]
    none = report_of("none", effect=0)
    still = none.pooled(controls.direction(none.answers))
    assert "too few answers moved" in report_controls.lean_sentence(none, still)


def test_chapters_say_what_a_study_cannot_answer():
    one_order = report_of(orders="original")
    assert report_controls.positions(one_order) is None
    assert "one option order" in report_controls.letter_words(one_order, None)["letter_drift_sentence"]
    one_order.items = one_order.items.query("context_condition == 'ambig'")
    assert report_controls.skills(one_order) is None
    words = report_controls.skill_words(one_order, None)
    assert "skill was not measured" in words["skill_accuracy_sentence"]
    assert figures_controls.together(None, {}, "nothing").axes[0].texts


def test_the_letter_page_keeps_the_models_asked_in_balanced_orders():
    mixed = report_of(replicates=2, orders="cyclic")
    mixed.provenance = mixed.provenance.assign(model="simulated-s1")
    lone = mixed.answers["model"] == "simulated-s2"
    mixed.answers = mixed.answers[~lone | (mixed.answers["order"] == "012")]
    kept = report_controls.balanced(mixed)
    for table in (kept.answers, kept.samples, kept.perplexity):
        assert set(table["model"]) == {"simulated-s1"}
    assert report_controls.positions(kept) is not None
    alone = report_of(orders="original")
    assert report_controls.balanced(alone) is alone


def test_letter_and_skill_words_tell_truths_apart(report):
    letter = report_of("letter")
    said = report_controls.letter_words(letter, report_controls.positions(letter))
    assert "changed most is C," in said["letter_drift_sentence"] and "in 2 of 2" in said["letter_drift_sentence"]
    said = report_controls.letter_words(report, report_controls.positions(report))
    assert "the letter is not what moved it" in said["letter_split_sentence"]
    assert "is more than" in report_controls.skill_words(
        report, report_controls.skills(report))["skill_matched_sentence"]


def test_published_design_keeps_one_checkpoint_a_family():
    several = report_of(replicates=2)
    table, perplexity = report_controls.published_design(several)
    assert set(table["model"]) == set(perplexity["model"]) == {"simulated"}
    first = several.samples["replicate"] == 1
    assert table["draws"].sum() == first.sum()
    _, correlation = published_analysis.perplexity_table(perplexity, table)
    words = report_controls.analysis_words(several, table, correlation)
    main = published_analysis.main_table(several.samples[first]).set_index("precision")
    assert words["rise"] == report_controls.percent(main.loc["q3", "d_srs"])
    assert "over 2 cells" in words["cells_sentence"]


def test_two_equal_rates_are_called_the_same():
    same = equivalence(report_of("none", precisions=["bf16", "q8"], effect=0).answers, 0.01)
    assert same["equivalent"].all()


def test_instrument_counts_verdicts(tmp_path):
    table = instrument.rejections(simulations=4, templates=10, items_per_template=12,
                                  truths=("bias",), effects=())
    row = table.set_index(["truth", "effect", "control"]).loc[("bias", 1.0, "direction")]
    assert (row["should"], row["n"]) == ("yes", 4)
    assert row["estimate"] >= 0.75
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    words = report_controls.instrument_words(report_of("none"),
                                             report_controls.read_instrument(path))
    assert words["simulations"] == "4"
    with pytest.raises(FileNotFoundError, match="python -m cba_utils.instrument"):
        report_controls.read_instrument(tmp_path / "none.csv")
