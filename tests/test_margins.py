"""What happened to margins is known here: shrinkage, noise, or a drift to a letter."""

from cba_utils.measures import margins
from cba_utils.measures.transitions import placebo
from moved import drifted, moved, shaken, shrunk

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

ALONE = {"shrinkage": shrunk, "noise": shaken}


def mean(frame):
    return frame.groupby("measure")["estimate"].mean()


def test_slope_shift_and_spread_are_those_of_least_squares():
    answers = moved(shaken, models=1)
    table = margins.margins(answers)
    found = margins.regression(answers).set_index("measure")
    for name, part in table.groupby("margin"):
        fit = sm.OLS(part["y"], sm.add_constant(part["x"])).fit()
        wanted = {
            "shift": fit.params["const"], "slope": fit.params["x"],
            "spread": np.sqrt(fit.scale), "kept": fit.rsquared,
        }  # fmt: skip
        for what, value in wanted.items():
            assert found.loc[f"{name}_{what}", "estimate"] == pytest.approx(value, rel=1e-6)


def test_what_was_done_is_what_the_line_says():
    for name, change in ALONE.items():
        found = mean(margins.regression(moved(change)))
        slope, spread = (0.6, 0.0) if name == "shrinkage" else (1.0, 0.9 * np.sqrt(2))
        for kind in ("unknown", "lean"):
            assert found[f"{kind}_slope"] == pytest.approx(slope, abs=0.08), kind
            assert found[f"{kind}_spread"] == pytest.approx(spread, abs=0.08), kind
            assert found[f"{kind}_shift"] == pytest.approx(0, abs=0.15), kind


def test_the_planted_slope_is_the_truths_although_both_margins_hold_something_beside_it():
    """Half of the margin's spread is not the plant's and survives: the plain slope is no measure of it."""
    rng = np.random.default_rng(1)
    answers = moved(lambda logits, *_: logits)
    each = answers[answers["precision"] == "bf16"]
    truth = (
        pd.Series(np.where(rng.random(len(each)) < 0.5, 1.0, 4.0), index=each.index)
        .groupby(each["item_id"])
        .first()
    )
    planted = answers["item_id"].map(truth).to_numpy()
    kept = np.where(answers["precision"] == "bf16", 1.0, 0.5)
    at_unknown = np.stack([answers[f"role_{x}"] == "unknown" for x in "ABC"], 1)
    logp = (
        answers[["logp_A", "logp_B", "logp_C"]].to_numpy() + (planted * kept)[:, None] * at_unknown
    )
    answers[["logp_A", "logp_B", "logp_C"]] = logp - np.logaddexp.reduce(
        logp, axis=1, keepdims=True
    )
    items = pd.DataFrame({"item_id": truth.index, "margin": truth.to_numpy()})
    found = mean(margins.regression(answers, items))
    assert found["truth_slope"] == pytest.approx(0.5, abs=0.05)
    assert found["unknown_slope"] > 0.6
    assert "truth_slope" not in margins.regression(answers)["measure"].unique()


@pytest.mark.parametrize("name", ALONE)
def test_the_right_account_predicts_and_the_other_does_not(name):
    found = margins.predictions(moved(ALONE[name]))
    errors = mean(found)
    for outcome in ("flips", "biased"):
        assert errors[f"{outcome}_{name}_error"] < 0.025
        assert errors[f"{outcome}_both_error"] < 0.03
    assert errors["biased_placebo_error"] > 0.08
    over = found[found["measure"] == "biased_shrinkage_over_noise"]
    sign = -1 if name == "shrinkage" else 1
    assert (sign * over["estimate"] > 0.02).all()
    assert (over["high"] < 0).any() if name == "shrinkage" else (over["low"] > 0).any()


def test_a_letter_that_gains_is_seen_by_the_account_with_letters_alone():
    errors = mean(margins.predictions(moved(drifted)))
    best = min(margins.ACCOUNTS, key=lambda account: errors[f"biased_{account}_error"])
    assert best == "shifts" and errors["biased_shifts_error"] < 0.01 < errors["biased_both_error"]


def test_what_is_seen_and_the_placebo_are_those_of_the_book():
    answers = moved(shaken)
    ours = margins.predictions(answers).set_index(["model", "measure"])["estimate"]
    theirs = placebo(answers, method="jackknife").set_index(["model", "measure"])["estimate"]
    for model in answers["model"].unique():
        for mine, known in (("biased_seen", "expected"), ("biased_placebo", "placebo")):
            assert ours[model, mine] == pytest.approx(theirs[model, f"became_biased_{known}"])


def test_nothing_is_fitted_on_what_is_predicted():
    """One template shrinks and one does not: each is predicted as the other was seen."""
    answers = moved(shrunk, models=1, templates=2, items=400)
    first = answers["template_id"] == answers["template_id"].iloc[0]
    same = first & (answers["precision"] == "q4")
    values = [f"{name}{end}" for end in ("", "_t") for name in ("logp_A", "logp_B", "logp_C")]
    values += ["mass_other", "mass_other_t"]
    answers.loc[same, values] = answers.loc[
        first & (answers["precision"] == "bf16"), values
    ].to_numpy()
    found = margins.predictions(answers, by=["question_index"])
    found = found.set_index(["question_index", "measure"])["estimate"]
    still, shrank = answers["question_index"].unique()
    assert found[still, "biased_seen"] == pytest.approx(found[still, "biased_placebo"])
    assert found[shrank, "biased_shrinkage"] == pytest.approx(
        found[shrank, "biased_placebo"], rel=0.01
    )
    assert found[still, "biased_shrinkage"] > 2 * found[still, "biased_seen"]


def test_how_often_shaken_options_flip_is_what_shaking_them_gives():
    centre = np.array([[0.2, -0.4, 0.5], [1.0, 0.8, -0.9], [-0.3, 0.9, 0.8], [0.1, 0.0, 0.05]])
    rng = np.random.default_rng(3)
    shaken_options = centre + 0.7 * rng.standard_normal((40_000, *centre.shape))
    wanted = (shaken_options.argmax(2) != centre.argmax(1)).mean(0)
    found, _ = margins._expected(centre, centre, 0.7, 0.3, np.ones(len(centre)))
    assert found == pytest.approx(wanted, abs=0.01)


def test_one_template_cannot_predict_another():
    with pytest.raises(ValueError, match="at least two question templates"):
        margins.predictions(moved(shrunk, models=1, templates=1))
