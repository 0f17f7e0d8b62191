"""The control chapters' words on simulated studies, and the instrument's own validation."""


import numpy as np
import pandas as pd
import pytest

from cba_utils.instrument import verdicts as instrument
from cba_utils.measures import controls, published_analysis, rates as metrics
from cba_utils.telling import report_controls
from cba_utils.telling.report import Report, pick
from cba_utils.instrument.respondents import simulate_respondents, simulate_study
from cba_utils.measures.tests import adjust

PROVENANCE = pd.DataFrame([{
    "identity.parameters.model": "simulated", "parameters_of_model": 0, "git_commit": None,
    "git_dirty": False, "identity.items_sha256": "0" * 64, "identity.packages.mlx": "0",
    "started": "2026-01-01T00:00:00+00:00"}])


def report_of(truth="bias", **options):
    study = simulate_study(truth, **{"templates": 15, "precisions": ["bf16", "q4", "q3"],
                                     **options})
    cells = study["samples"][["model", "family", "replicate", "depth", "precision"]].drop_duplicates()
    return Report("simulated", **study, provenance=cells.merge(PROVENANCE, how="cross"))


@pytest.fixture(scope="module")
def report():
    return report_of()


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
    assert "study simulated, 3 cells," in words["provenance_line"]


def test_tests_that_are_not_defined_are_not_counted():
    tests = adjust(pd.DataFrame({"p": [0.001, 0.03, 0.04, np.nan]}))
    said = report_controls.chi_sentence(tests)
    assert said.startswith("Of 3 tests (4 comparisons") and "3 are below 5 %" in said
    assert "of them 1," in said and said.endswith("Hochberg 3.")


@pytest.fixture(scope="module")
def instrument_table():
    return instrument.rejections(simulations=5, templates=10, items_per_template=12,
                                 truths=("none", "leaning noise", "bias"), effects=(0.1,))


def test_instrument_counts_verdicts(instrument_table, tmp_path):
    single = instrument_table[instrument_table["checkpoints"] == 1]
    row = single.set_index(["truth", "effect", "control"]).loc[("bias", 1.0, "lean grew")]
    assert (row["should"], row["n"], row["estimate"]) == ("yes", 5, 1.0)
    path = tmp_path / "table.csv"
    instrument_table.to_csv(path, index=False)
    words = report_controls.instrument_words(report_of("none"),
                                             report_controls.read_instrument(path))
    assert (words["simulations"], words["effects"]) == ("5", "0.1")
    with pytest.raises(FileNotFoundError, match="cba instrument"):
        report_controls.read_instrument(tmp_path / "none.csv")


def test_what_cannot_fail_is_no_success(instrument_table):
    none = instrument_table[instrument_table["truth"] == "none"].set_index("control")
    exact = none.loc[["direction", "lean grew", instrument.SAME]]
    assert exact["estimate"].isna().all() and set(exact["should"]) == {instrument.NOT_APPLICABLE}
    assert none.loc[["change", instrument.SAME_DRAWN], "estimate"].notna().all()
    words = report_controls.instrument_words(report_of("none"), instrument_table)
    assert words["worst_truth"] != "none" or words["worst_control"] in instrument.DRAWN


def test_equivalence_is_labelled_by_the_true_change(instrument_table):
    same = instrument_table[instrument_table["control"].isin([instrument.SAME, instrument.SAME_DRAWN])]
    same = same[same["should"] != instrument.NOT_APPLICABLE]
    at_margin = same["truth"] == instrument.MARGIN_TRUTH
    small = same["change"].abs() < instrument.MARGIN
    assert (same.loc[~at_margin, "should"] == small[~at_margin].map({True: "yes", False: "no"})).all()
    assert set(same.loc[at_margin, "should"]) == {"no"}
    effect = same.loc[at_margin, "effect"].iloc[0]
    many = simulate_respondents("bias", 500, 12, ("bf16", "q3"), effect=effect, seed=7)
    change = pick(metrics.paired_differences(many, method="jackknife"), "d_srs", "q3")
    assert change["estimate"] == pytest.approx(instrument.MARGIN, rel=0.1)


def test_checkpoints_decide_by_their_spread_within_families():
    said = instrument.pooled_verdicts("retrained", simulations=6, templates=4, items_per_template=8)
    assert len(said) == 6 and said["lean grew"].sum() <= 2
    by_items = simulate_respondents("retrained", 16, 12, ("bf16", "q3"), replicates=30,
                                    wander=0.6)
    alone = controls.position(by_items).query("measure == 'd_lead'")
    beyond = (alone["low"] > 0) | (alone["high"] < 0)
    assert beyond.mean() > 0.3, "one checkpoint's items know nothing of the next checkpoint"
