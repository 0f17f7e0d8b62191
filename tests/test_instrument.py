"""The instrument's own validation: what controls say of known truths, and what the page says of that."""

from cba_utils.chapters.instrument import Chapter, read_rejections
from cba_utils.instrument import verdicts as instrument
from cba_utils.instrument.respondents import simulate_respondents
from cba_utils.measures import controls
from cba_utils.measures import rates as metrics
from cba_utils.telling.study import pick
from studies import study_of

import pytest


def chapter_on(table):
    """The chapter on a table of its own."""
    page = Chapter(study_of("none"))
    page.rejections = table
    return page


@pytest.fixture(scope="module")
def instrument_table():
    return instrument.rejections(
        simulations=5,
        templates=10,
        items_per_template=12,
        truths=("none", "leaning noise", "bias"),
        effects=(0.1,),
    )


def test_instrument_counts_verdicts(instrument_table, tmp_path):
    single = instrument_table[instrument_table["checkpoints"] == 1]
    row = single.set_index(["truth", "effect", "control"]).loc[("bias", 1.0, "lean grew")]
    assert (row["should"], row["n"], row["estimate"]) == ("yes", 5, 1.0)
    path = tmp_path / "table.csv"
    instrument_table.to_csv(path, index=False)
    page = chapter_on(read_rejections(path))
    assert "judged 5 simulated studies" in page.text("respondents")
    assert page.text("weaker").startswith("The same controls on effects of 0.1 of that size")
    with pytest.raises(FileNotFoundError, match="cba instrument"):
        read_rejections(tmp_path / "none.csv")


def test_what_cannot_fail_is_no_success(instrument_table):
    none = instrument_table[instrument_table["truth"] == "none"].set_index("control")
    exact = none.loc[["direction", "lean grew", instrument.SAME]]
    assert exact["estimate"].isna().all() and set(exact["should"]) == {instrument.NOT_APPLICABLE}
    assert none.loc[["change", instrument.SAME_DRAWN], "estimate"].notna().all()
    worst = chapter_on(instrument_table).worst
    assert worst["truth"] != "none" or worst["control"] in instrument.DRAWN


def test_equivalence_is_labelled_by_the_true_change(instrument_table):
    same = instrument_table[
        instrument_table["control"].isin([instrument.SAME, instrument.SAME_DRAWN])
    ]
    same = same[same["should"] != instrument.NOT_APPLICABLE]
    at_margin = same["truth"] == instrument.MARGIN_TRUTH
    small = same["change"].abs() < instrument.MARGIN
    assert (
        same.loc[~at_margin, "should"] == small[~at_margin].map({True: "yes", False: "no"})
    ).all()
    assert set(same.loc[at_margin, "should"]) == {"no"}
    effect = same.loc[at_margin, "effect"].iloc[0]
    many = simulate_respondents("bias", 500, 12, ("bf16", "q3"), effect=effect, seed=7)
    change = pick(metrics.paired_differences(many, method="jackknife"), "d_srs", "q3")
    assert change["estimate"] == pytest.approx(instrument.MARGIN, rel=0.1)


def test_checkpoints_decide_by_their_spread_within_families():
    said = instrument.pooled_verdicts("retrained", simulations=6, templates=4, items_per_template=8)
    assert len(said) == 6 and said["lean grew"].sum() <= 2
    by_items = simulate_respondents("retrained", 16, 12, ("bf16", "q3"), replicates=30, wander=0.6)
    alone = controls.position(by_items).query("measure == 'd_lead'")
    beyond = (alone["low"] > 0) | (alone["high"] < 0)
    assert beyond.mean() > 0.3, "one checkpoint's items know nothing of the next checkpoint"
