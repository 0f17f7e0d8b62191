"""Tests and models against closed forms, the libraries' other routes, and known truth."""

from cba_utils.instrument.respondents import draw_samples, simulate_respondents, simulate_study
from cba_utils.measures import certainty, controls, models, perplexity, sensitivity
from cba_utils.measures import tests as stats
from cba_utils.measures.frames import item_table
from cba_utils.measures.measure import Measure, ratio
from cba_utils.measures.rates import paired_differences
from cba_utils.measures.transitions import placebo, transitions

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps
from statsmodels.stats.weightstats import DescrStatsW

MEAN = Measure("mean", bounds=(-9, 9), of=ratio("d", "n"))
TWO = ["bf16", "q3"]


@pytest.fixture(scope="module")
def studies():
    return {
        truth: simulate_study(truth, templates=30, precisions=TWO, orders="all", seed=1)
        for truth in ("none", "noise", "bias", "letter", "mixed")
    }


def only(frame, measure, precision="q3"):
    frame = frame[(frame["measure"] == measure) & (frame["precision"] == precision)]
    assert len(frame) == 1
    return frame.iloc[0]


# Tests over templates


def test_jackknife_of_a_mean_is_the_t_test():
    values = np.random.default_rng(0).normal(0.4, 1, 20)
    table = pd.DataFrame({"template_id": range(20), "d": values, "n": 1.0})
    found = stats.change_tests(table, [MEAN], ["d", "n"]).iloc[0]
    assert found["p"] == pytest.approx(sps.ttest_1samp(values, 0).pvalue)
    assert found["error"] == pytest.approx(sps.sem(values))


def test_jackknife_of_a_ratio_is_close_to_the_sandwich():
    rng = np.random.default_rng(1)
    n = rng.integers(5, 40, 60)
    k = rng.binomial(n, rng.beta(2, 6, 60))
    totals = pd.DataFrame({"k": k, "n": n})
    _, error, _ = stats.jackknife(totals, Measure("r", of=ratio("k", "n")))
    rows = np.repeat(np.arange(60), n)
    hit = np.concatenate([np.r_[np.ones(a), np.zeros(b - a)] for a, b in zip(k, n, strict=True)])
    fit = sm.OLS(hit, np.ones(len(hit))).fit(cov_type="cluster", cov_kwds={"groups": rows})
    assert error == pytest.approx(fit.bse[0], rel=0.05)


def test_sign_flip_counts_all_flips():
    values = np.array([3.0, 1.0, -2.0, 5.0, 0.0, 4.0])
    nonzero = values[values != 0]
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(nonzero))).reshape(len(nonzero), -1)
    extreme = np.abs(nonzero @ signs) >= abs(nonzero.sum())
    assert stats.sign_flip(values) == pytest.approx(extreme.mean())
    assert stats.sign_flip([]) == 1.0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=15))
def test_corrections_by_their_definitions(p):
    found = stats.adjust(pd.DataFrame({"p": [*p, np.nan]}))
    p, m = np.array(p), len(p)
    order = np.argsort(p)
    holm = np.minimum(np.maximum.accumulate((m - np.arange(m)) * p[order]), 1)
    bh = np.minimum(np.minimum.accumulate((m / np.arange(m, 0, -1)) * p[order][::-1]), 1)[::-1]
    assert np.allclose(found["p_holm"][:-1].to_numpy()[order], holm)
    assert np.allclose(found["p_bh"][:-1].to_numpy()[order], bh)
    assert np.isnan(found["p_holm"].iloc[-1]), "a test that was not made is not in the family"


def test_cohens_h_and_chi_squared_by_hand():
    assert stats.cohens_h(0.3, 0.1) == pytest.approx(
        2 * (np.arcsin(np.sqrt(0.3)) - np.arcsin(np.sqrt(0.1)))
    )
    table = np.array([[30.0, 10, 60], [15, 15, 70]])
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    found = stats.chi_squared(pd.DataFrame(table))
    assert found["statistic"] == pytest.approx(statistic)
    assert found["p"] == pytest.approx(sps.chi2.sf(statistic, 2))
    assert np.isnan(stats.chi_squared(pd.DataFrame([[5, 0], [7, 0]]))["p"])


def test_equivalence_is_the_librarys_tost():
    study = simulate_study(
        "retrained", templates=30, items_per_template=40, precisions=["bf16", "q8"]
    )
    samples = study["samples"]
    found = stats.equivalence(samples, 0.01).iloc[0]
    # With five parsed draws of as many items in every template, the change is a plain mean.
    assert (samples["role"] != "unparsed").all()
    ambiguous = samples[samples["context_condition"] == "ambig"]
    srs = (
        (ambiguous["role"] == "stereotyped")
        .groupby([ambiguous["precision"], ambiguous["template_id"]])
        .mean()
    )
    change = srs["q8"] - srs["bf16"]
    p, *_ = DescrStatsW(change).ttost_mean(-0.01, 0.01)
    assert found["p"] == pytest.approx(p)
    assert found["equivalent"] == (p < 0.05)
    assert not stats.equivalence(samples, found["smallest_margin"] * 0.999)["equivalent"].any()
    assert stats.equivalence(samples, found["smallest_margin"] * 1.001)["equivalent"].all()
    with pytest.raises(ValueError, match="margin"):
        stats.equivalence(samples, 0)
    with pytest.raises(ValueError, match="d_srss"):
        stats.equivalence(samples, 0.1, "d_srss")


def test_equivalence_of_two_checkpoints_and_of_a_change_as_large_as_the_margin():
    alike = simulate_respondents("retrained", 30, 40, TWO, replicates=40, effect=0.1)
    assert stats.equivalence(alike, 0.02)["equivalent"].mean() > 0.9
    changed = simulate_respondents("bias", 30, 40, TWO, replicates=40, effect=0.2)
    change = paired_differences(changed, method="jackknife").query("measure == 'd_srs'")["estimate"]
    # A true change at the margin is called none in one study of twenty; more than 6 of 40 by luck
    # in one of two hundred.
    assert stats.equivalence(changed, change.mean())["equivalent"].sum() <= 6
    assert not stats.equivalence(changed, change.mean() / 2)["equivalent"].any()


def test_draws_that_never_differ_do_not_prove_equal_rates():
    study = simulate_study("none", templates=30, precisions=TWO)
    same = study["samples"].assign(role="unknown")
    found = stats.equivalence(same).iloc[0]
    assert found["estimate"] == 0 and not found["equivalent"] and np.isnan(found["p"])
    # Wilson's 90 % limit for no event in thirty templates.
    z = sps.norm.ppf(0.95) ** 2
    assert found["smallest_margin"] == pytest.approx(z / (30 + z))


def test_difference_tests_agree_with_their_intervals(studies):
    tests = stats.difference_tests(studies["bias"]["samples"])
    intervals = paired_differences(studies["bias"]["samples"])
    assert only(tests, "d_srs")["estimate"] == only(intervals, "d_srs")["estimate"]
    assert only(tests, "d_srs")["p"] < 0.001 < 0.05 < only(tests, "d_anti_rate")["p"]


def test_power_grows_from_the_level_to_one():
    study = simulate_study("none", templates=40, precisions=["bf16"])
    table = item_table(study["answers"], "study", "original")
    curve = stats.minimum_detectable_effect(table, simulations=400)
    assert curve["power"].iloc[0] < 0.09, "no effect is found at the level of the test"
    assert curve["power"].iloc[-1] > 0.9
    at = np.interp(0.8, curve["power"], curve["effect"])
    assert curve.attrs["mde"] == pytest.approx(at, rel=0.2)
    ambiguous = table[table["context_condition"] == "ambig"]
    assert curve.attrs["baseline"] == pytest.approx(ambiguous["stereotyped"].mean())


def test_power_starts_from_the_probabilities_and_is_that_of_the_t_test():
    # No item can be stereotyped before; every item of 30 templates may be, with 2 %, after.
    table = pd.DataFrame(
        {
            "template_id": np.repeat(np.arange(30), 8),
            "stereotyped": 0.0,
            "draws": 1.0,
            "context_condition": "ambig",
        }
    )
    curve = stats.minimum_detectable_effect(table, spread=0.01, simulations=400)
    assert curve.attrs["baseline"] == 0 and curve["power"].iloc[0] == 0
    rng = np.random.default_rng(0)
    counts = rng.binomial(40, 0.01, (4000, 30))
    by_hand = (sps.ttest_1samp(counts, 0, axis=1).pvalue < 0.05).mean()
    at = np.interp(0.01, curve["effect"], curve["power"])
    assert at == pytest.approx(by_hand, abs=0.08)


# Models


def test_published_logit_is_the_fit_to_single_draws(studies):
    samples = studies["mixed"]["samples"]
    draws = samples[(samples["context_condition"] == "ambig") & (samples["role"] != "unparsed")]
    draws = draws.assign(
        hit=(draws["role"] == "stereotyped").astype(int),
        bits=draws["precision"].map(
            {"bf16": 16, "q8": 8, "q6": 6, "q5": 5, "q4": 4, "q3": 3, "q2": 2}
        ),
    )
    direct = smf.logit("hit ~ bits + C(category)", draws).fit(disp=0)
    found = models.published_logit(samples).set_index("term")
    assert found.loc["bits", "estimate"] == pytest.approx(np.exp(direct.params["bits"]))
    assert found.loc["bits", "low"] == pytest.approx(np.exp(direct.conf_int().loc["bits", 0]))
    assert found.loc["bits", "n"] == len(draws)


def test_dose_response_is_gee_over_single_draws(studies):
    samples = studies["mixed"]["samples"]
    draws = samples[(samples["context_condition"] == "ambig") & (samples["role"] != "unparsed")]
    draws = draws.assign(hit=(draws["role"] == "stereotyped").astype(int))
    gee = smf.gee(
        "hit ~ C(precision) + C(category)", "template_id", draws, family=sm.families.Binomial()
    ).fit()
    found = models.dose_response(samples).set_index("term")
    assert found.loc["q3", "estimate"] == pytest.approx(np.exp(gee.params["C(precision)[T.q3]"]))
    z = np.log(found.loc["q3", "estimate"]) / gee.bse["C(precision)[T.q3]"]
    ours = sps.t.isf(found.loc["q3", "p"] / 2, 29)
    assert ours == pytest.approx(z, rel=0.05), "same sandwich up to its small-sample factor"
    pooled = models.published_logit(samples).set_index("term").loc["bits"]
    width = np.log(found.loc["q3", "high"] / found.loc["q3", "low"])
    assert width > 13 * np.log(pooled["high"] / pooled["low"]), "templates widen the interval"


def test_odds_are_clustered_by_template_and_by_checkpoint():
    study = simulate_study("mixed", templates=20, precisions=["bf16", "q4", "q3"], replicates=4)
    samples = study["samples"]
    # Checkpoints that quantization moves by unlike amounts: two of the four hardly change.
    calm = samples["model"].isin(["simulated-s1", "simulated-s2"]) & (samples["precision"] == "q3")
    change = (samples["role"] == "stereotyped") & (samples["seed"] != 42)
    samples = samples.assign(role=samples["role"].mask(calm & change, "unknown"))
    table = item_table(samples)
    counts = table[table["context_condition"] == "ambig"].assign(
        other=lambda d: d["parsed"] - d["stereotyped"]
    )
    groups = np.column_stack([pd.factorize(counts[c])[0] for c in ("template_id", "model")])
    model = smf.glm(
        "stereotyped + other ~ C(precision) + C(model) + C(category)",
        counts,
        family=sm.families.Binomial(),
    )
    errors = [
        model.fit(cov_type="cluster", cov_kwds={"groups": g}).bse["C(precision)[T.q3]"]
        for g in (groups, groups[:, 0], groups[:, 1])
    ]
    found = models.dose_response(samples).set_index("term")
    reach = np.log(found.loc["q3", "high"] / found.loc["q3", "estimate"]) / sps.t.ppf(0.975, 3)
    # Up to the small-sample factor: the fit is to sums over the items of a template.
    assert reach == pytest.approx(max(errors), rel=0.02) and max(errors) > 1.5 * errors[1]
    lone = samples.assign(family=samples["model"])
    by_template = models.dose_response(lone).set_index("term")
    assert by_template.loc["q3", "estimate"] == pytest.approx(found.loc["q3", "estimate"])
    assert by_template.loc["q3", "high"] < found.loc["q3", "high"]


def test_odds_without_events_are_missing_not_huge():
    study = simulate_study("bias", templates=12, precisions=["bf16", "q4", "q3"], replicates=2)
    samples = study["samples"]

    def silenced(where):
        role = samples["role"].mask(where & (samples["role"] == "stereotyped"), "unknown")
        return samples.assign(role=role)

    found = models.dose_response(silenced(samples["precision"] == "bf16"))
    found = found.set_index("term")
    assert found.loc[["q4", "q3"], "estimate"].isna().all()
    assert found.loc["trend", "estimate"] > 1
    one = silenced(samples["precision"] != "q3")
    assert models.dose_response(one).set_index("term").loc["trend"].isna()["estimate"]
    assert models.published_logit(one)["estimate"].isna().all()
    # A model that never answers so leaves the others' odds as they are.
    lone = samples["model"] == "simulated-s2"
    table = models.dose_response(silenced(lone)).set_index("term")
    alone = models.dose_response(samples[~lone]).set_index("term")
    assert table.loc["q3", "estimate"] == pytest.approx(alone.loc["q3", "estimate"])


def test_trend_follows_the_ladder():
    study = simulate_study("bias", templates=24, precisions=["bf16", "q8", "q6", "q4", "q3"])
    found = models.dose_response(study["samples"]).set_index("term")
    assert found.loc["trend", "low"] > 1
    each = models.steps(found.reset_index())
    assert each.index.tolist() == ["q8", "q6", "q4", "q3"]
    assert each.prod() == pytest.approx(found.loc["q3", "estimate"])
    assert each.min() < found.loc["trend", "estimate"] < each.max()
    with pytest.raises(ValueError, match="'q7'"):
        models.dose_response(study["samples"].replace({"precision": {"q6": "q7"}}))


def test_flips_by_hand(studies):
    table = certainty.flips(studies["noise"]["answers"])
    row = table.iloc[5]
    answers = (
        studies["noise"]["answers"].query("order == '012'").set_index(["item_id", "precision"])
    )
    letters = ["logp_A", "logp_B", "logp_C"]
    before, after = (answers.loc[(row["item_id"], q), letters].to_numpy(float) for q in TWO)
    p = np.exp(before) / np.exp(before).sum()
    assert row["entropy"] == pytest.approx(sps.entropy(p, base=2))
    assert row["margin"] == pytest.approx(np.sort(p)[2] - np.sort(p)[1])
    assert row["flip"] == (before.argmax() != after.argmax())
    assert set(table["context_condition"]) == {"ambig"}


def test_uncertain_answers_flip_more_under_noise_but_not_always(studies):
    answers = studies["noise"]["answers"]
    assert certainty.flip_ratio(answers).iloc[0]["low"] > 1
    # An answer that flips whatever its certainty: two letters swapped in one item of four.
    before = answers[answers["precision"] == "bf16"]
    after = before.assign(precision="q3")
    hit = np.random.default_rng(3).random(after["item_id"].nunique()) < 0.25
    hit = (
        after["item_id"].map(dict(zip(after["item_id"].unique(), hit, strict=True))).to_numpy(bool)
    )
    top = after[[f"logp_{x}" for x in "ABC"]].to_numpy()
    after[[f"logp_{x}" for x in "ABC"]] = np.where(hit[:, None], np.roll(top, 1, axis=1), top)
    blind = pd.concat([before, after])
    found = certainty.flip_ratio(blind).iloc[0]
    assert found["low"] < 1 < found["high"]
    rates = certainty.flip_rates(blind).pivot(index="bin", columns="measure", values="estimate")
    assert (
        np.ptp(rates["predicted"])
        < 0.2
        < np.ptp(certainty.flip_rates(answers).query("measure == 'predicted'")["estimate"])
    )


def test_the_flip_ratio_is_one_of_means_over_checkpoints():
    answers = simulate_respondents(
        "noise", templates=12, precisions=TWO, replicates=4, orders="original"
    )
    rates = certainty.flip_rates(answers).query("measure == 'flip_rate'")
    ends = rates.pivot(index="model", columns="bin", values="estimate")[[1, 5]]
    found = certainty.flip_ratio(answers).iloc[0]
    assert found["estimate"] == pytest.approx(ends[5].mean() / ends[1].mean())
    left = [np.log(part[5].mean() / part[1].mean()) for part in (ends.drop(m) for m in ends.index)]
    reach = sps.t.ppf(0.975, 3) * np.sqrt(3 / 4 * ((left - np.mean(left)) ** 2).sum())
    assert np.log(found["high"] / found["estimate"]) == pytest.approx(reach)


def test_perplexity_change_by_hand(studies):
    frame = studies["none"]["perplexity"]
    found = only(perplexity.perplexity_change(frame), "perplexity_change")
    total = frame.groupby("precision")[["nll", "tokens"]].sum()
    level = np.exp(total["nll"] / total["tokens"])
    assert found["estimate"] == pytest.approx(level["q3"] / level["bf16"] - 1)
    wide = frame.pivot(index="sequence", columns="precision", values="nll")
    change = DescrStatsW((wide["q3"] - wide["bf16"]) / 512)
    low, high = np.exp(change.tconfint_mean()) - 1
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.003)
    _, upper = np.exp(change.tconfint_mean(alpha=0.1)) - 1
    assert found["bound"] == pytest.approx(upper, abs=0.001)
    shifted = frame.assign(tokens=frame["tokens"] + (frame["precision"] == "q3"))
    with pytest.raises(ValueError, match="not those of bf16"):
        perplexity.perplexity_change(shifted)


def test_perplexity_and_bias_ranks_cells():
    study = simulate_study("bias", templates=12, precisions=["bf16", "q6", "q4", "q3"])
    rates = transitions(study["samples"])
    cells, found = perplexity.perplexity_and_bias(study["perplexity"], rates)
    ranks = cells[["perplexity_change", "became_biased"]].rank()
    assert found["estimate"] == pytest.approx(np.corrcoef(ranks.T)[0, 1])
    assert found["n"] == 3


# Controls on known truth


def test_direction_by_hand(studies):
    samples = studies["mixed"]["samples"].query("context_condition == 'ambig'")
    wide = samples.pivot(index=["item_id", "seed"], columns="precision", values="role")
    left = wide[(wide["bf16"] == "unknown") & wide["q3"].isin(["stereotyped", "anti_stereotyped"])]
    found = only(controls.direction(samples), "share_to_stereotyped")
    assert found["estimate"] == pytest.approx((left["q3"] == "stereotyped").mean())
    share = only(controls.direction(samples), "left_unknown")
    assert share["estimate"] == pytest.approx(len(left) / (wide["bf16"] == "unknown").sum())
    assert (found["n"], share["n"]) == (len(left), (wide["bf16"] == "unknown").sum())


@pytest.mark.parametrize(
    ("truth", "biased", "lettered"),
    [
        ("none", False, False),
        ("noise", False, False),
        ("bias", True, False),
        ("letter", False, True),
        ("mixed", True, True),
    ],
)
def test_controls_tell_the_truths_apart(studies, truth, biased, lettered):
    study = studies[truth]
    for frame in (study["answers"], study["samples"]):
        p = controls.direction_tests(frame)["p"].fillna(1)
        assert (p < 0.05).tolist() == [biased]
    assert (controls.position_tests(study["answers"])["p"] < 0.01).tolist() == [lettered]
    beyond = only(controls.matched_skill(study["answers"]), "s_amb_beyond_guessing")
    assert (beyond["low"] > 0) == biased
    assert (only(controls.position(study["answers"]), "d_lead")["low"] > 0) == biased
    leans = controls.lean(study["answers"])
    assert controls.grew(only(leans, "log_gap", "bf16"), only(leans, "d_log_gap")) == biased
    gap = only(controls.capability(study["answers"], study["items"]), "alignment_gap")
    assert (gap["low"] > 0.05) == biased


def test_false_positive_rates_hold_their_level():
    answers = simulate_respondents(
        "noise", templates=16, items_per_template=12, precisions=TWO, replicates=60
    )
    rejected = {
        "direction": controls.direction_tests(answers, resamples=999)["p"] < 0.05,
        "position": controls.position_tests(answers)["p"] < 0.05,
    }
    for name, values in rejected.items():
        assert len(values) == 60
        # The chance of more than 8 in 60 at a true 5 % is below one in 200.
        assert values.sum() <= 8, name


def test_a_direction_test_that_cannot_reject_is_not_made():
    answers = simulate_respondents("bias", templates=5, precisions=TWO)
    found = controls.direction_tests(answers).iloc[0]
    assert found["estimate"] > 0.8 and np.isnan(found["p"]) and np.isnan(found["p_holm"])


def test_lean_by_hand_and_blind_to_letters(studies):
    answers = studies["letter"]["answers"]
    one = answers.query("context_condition == 'ambig'").set_index(["item_id", "order"])
    role = {
        r: sum(one[f"logp_{x}"] * (one[f"role_{x}"] == r) for x in "ABC")
        for r in ("stereotyped", "anti_stereotyped")
    }
    gap = (role["stereotyped"] - role["anti_stereotyped"]).groupby(one["precision"]).mean()
    found = controls.lean(answers)
    assert only(found, "log_gap", "bf16")["estimate"] == pytest.approx(gap["bf16"], abs=1e-5)
    assert only(found, "d_log_gap")["estimate"] == pytest.approx(gap["q3"] - gap["bf16"], abs=1e-5)
    assert abs(only(found, "d_log_gap")["estimate"]) < 0.05, "over all orders a letter cancels"
    written = controls.lean(answers.query("order == '012'"))
    assert only(written, "d_log_gap")["high"] - only(written, "d_log_gap")["low"] > 0.1


@pytest.mark.parametrize("truth", ["leaning noise", "letter"])
def test_noise_and_letters_do_not_make_a_lean_grow(truth):
    # At this strength the share to the stereotyped person departs from one half in every third
    # study of leaning noise, and every such "yes" is false.
    answers = simulate_respondents(
        truth, templates=16, items_per_template=12, precisions=TWO, replicates=60, effect=0.4
    )
    found = controls.lean(answers).set_index(["measure", "model"])
    before = found.loc["log_gap"].loc[lambda rows: rows["precision"] == "bf16"]
    said = controls.grew(before, found.loc["d_log_gap"])
    # The chance of more than 6 in 60 at a true 2.5 % is below one in 500.
    assert len(said) == 60 and said.sum() <= 6
    moved = controls.direction(answers)
    share = moved.loc[moved["measure"] == "share_to_stereotyped", "estimate"].mean()
    assert share > 0.6 if truth == "leaning noise" else 0.45 < share < 0.55


def test_a_contrary_lean_made_flatter_has_not_grown():
    answers = simulate_respondents("leaning noise", 16, 12, TWO, replicates=40, effect=0.4)
    names = {"stereotyped": "anti_stereotyped", "anti_stereotyped": "stereotyped"}
    found = controls.lean(answers.replace({f"role_{x}": names for x in "ABC"})).set_index("model")
    before = found[(found["measure"] == "log_gap") & (found["precision"] == "bf16")]
    change = found[found["measure"] == "d_log_gap"]
    assert (change["low"] > 0).mean() > 0.2, "flatter answers raise a contrary lean"
    assert controls.grew(before, change).sum() <= 1


def test_a_letter_raises_both_persons_and_neither_above_the_other(studies):
    found = controls.position(studies["letter"]["answers"])
    letters = [only(found, f"d_letter_{x}")["estimate"] for x in "ABC"]
    assert sum(letters) == pytest.approx(0, abs=1e-6) and letters[2] > 0.1
    one, other, lead = (
        only(found, f"d_{x}")["estimate"] for x in ("stereotyped", "anti_stereotyped", "lead")
    )
    assert min(one, other) > 0.01 and one - other == pytest.approx(lead)
    start = only(found, "letter_C", "bf16")["estimate"]
    assert start == pytest.approx(1 / 3, abs=1e-5), "balanced orders cancel what options say"
    with pytest.raises(ValueError, match="not balanced"):
        controls.position(studies["letter"]["answers"].query("order != '012'"))


def test_order_dependence_by_hand(studies):
    answers = studies["letter"]["answers"].query("context_condition == 'ambig'")
    best = answers[["logp_A", "logp_B", "logp_C"]].to_numpy().argmax(axis=1)
    role = answers[["role_A", "role_B", "role_C"]].to_numpy()[np.arange(len(best)), best]
    kinds = answers.assign(role=role).groupby(["precision", "item_id"])["role"].nunique()
    found = controls.order_dependence(answers)
    for precision in TWO:
        assert only(found, "order_dependent", precision)["estimate"] == (
            (kinds[precision] > 1).mean()
        )
    assert only(found, "order_dependent")["estimate"] > 0.4


def test_matched_skill_recovers_guessing():
    answers = simulate_respondents("none", templates=12, precisions=TWO, seed=2)
    guessed = 0.4
    low = answers["precision"] == "q3"
    for x in "ABC":
        mixed = (1 - guessed) * np.exp(answers[f"logp_{x}_t"]) + guessed / 3
        answers.loc[low, f"logp_{x}_t"] = np.log(mixed[low]).astype("float32")
    answers.loc[low, "mass_other_t"] *= np.float32(1 - guessed)
    found = controls.matched_skill(answers)
    assert only(found, "guessed")["estimate"] == pytest.approx(guessed, abs=1e-3)
    assert only(found, "srs_beyond_guessing")["estimate"] == pytest.approx(0, abs=1e-3)
    assert only(found, "s_amb_beyond_guessing")["estimate"] == pytest.approx(0, abs=0.1)


def test_five_seed_range_is_that_of_fresh_draws():
    answers = simulate_respondents("noise", templates=10, items_per_template=20, precisions=TWO)
    drawn = [draw_samples(answers, seed=k) for k in range(30)]
    found = sensitivity.five_seed_range(answers, drawn[0])
    for measure in ("srs", "became_biased"):
        row = only(found, measure)
        values = []
        for frame in drawn:
            table = item_table(frame.query("context_condition == 'ambig'"))
            wide = table.pivot(index="item_id", columns="precision", values="stereotyped")
            values.append(
                wide["q3"].sum() / (5 * len(wide))
                if measure == "srs"
                else ((wide["bf16"] == 0) & (wide["q3"] > 0)).sum() / (wide["bf16"] == 0).sum()
            )
        error = (row["high"] - row["low"]) / (2 * sps.norm.ppf(0.975))
        assert row["estimate"] == pytest.approx(np.mean(values), abs=4 * error / np.sqrt(30))
        assert np.std(values) == pytest.approx(error, rel=0.35)
        assert row["observed"] == pytest.approx(values[0])


def test_reparse_gives_back_the_roles_and_the_papers_slips():
    study = simulate_study("mixed", templates=6, precisions=TWO)
    samples, items = study["samples"], study["items"]
    again = sensitivity.reparse(samples, items, "strict")
    assert (again["role"] == samples["role"]).all()
    assert (again["correct"] == samples["correct"]).all()
    spoken = samples.assign(raw_response="Cannot be determined")
    assert (sensitivity.reparse(spoken, items, "strict")["role"] == "unparsed").all()
    slips = sensitivity.reparse(spoken, items, "published")
    roles = items.set_index("item_id")
    assert (slips["parsed_answer"] == "C").all()
    unknown_is_c = slips["item_id"].map(roles["unknown_index"] == 2)
    assert ((slips["role"] == "unknown") == unknown_is_c).all()


def test_specification_curve_holds_the_measures_known_elsewhere():
    study = simulate_study("bias", templates=18, precisions=TWO)
    answers = study["answers"]
    cells = sensitivity.specification_curve(answers, "q3")
    curve = cells.set_index(["temperature", "letters", "counting"])["estimate"]
    assert len(curve) == 2 * 2 * 4
    null = placebo(answers)
    at = curve["the study's", "as written"]
    for counting, name in (
        ("one way", "became_biased_expected"),
        ("minus placebo", "became_biased_expected_excess"),
        ("minus mirror image", "bias_beyond_mirror"),
    ):
        assert at[counting] == pytest.approx(only(null, name)["estimate"])
    # By hand, item by item: at temperature 1 and over balanced orders.
    table = item_table(answers, "unit").query("context_condition == 'ambig'")
    p, q = (table[table["precision"] == x].set_index("item_id") for x in TWO)
    s, a = p["stereotyped"], p["anti_stereotyped"]
    by_odds = s / (s + a) * (q["stereotyped"] + q["anti_stereotyped"])
    clean = (1 - s) ** 5
    beyond = clean * ((1 - by_odds) ** 5 - (1 - q["stereotyped"]) ** 5)
    found = curve["1", "balanced", "beyond own odds"]
    assert found == pytest.approx(beyond.sum() / clean.sum())
    written = sensitivity.specification_curve(answers.query("order == '012'"), "q3")
    assert set(written["letters"]) == {"as written"}
    drawn = sensitivity.specification_curve(study["samples"], "q3").set_index("counting")
    seen = transitions(study["samples"])
    for counting, name in (
        ("one way", "became_biased"),
        ("minus mirror image", "bias_beyond_mirror"),
    ):
        assert drawn.loc[counting, "estimate"] == pytest.approx(only(seen, name)["estimate"])


def test_choices_are_pooled_over_all_families_and_each_without_the_odd_checkpoint():
    values = [0.01, 0.02, 0.03, 0.01, 0.02, 0.60]
    cells = pd.DataFrame(
        {
            "model": list("abcdef"),
            "family": list("ffffff"),
            "measure": "became_biased",
            "counting": "one way",
            "estimate": values,
            "low": 0.0,
            "high": 1.0,
            "n": 100,
        }
    ).assign(family=["f"] * 3 + ["g"] * 3)
    found = sensitivity.over_choices(cells).set_index(["families", "without"])["estimate"]
    assert found["all", "f"] == pytest.approx((0.02 + 0.015) / 2)
    assert found["g", "none"] == pytest.approx(0.21) and found["g", "f"] == pytest.approx(0.015)
    assert len(found) == 6
    one = sensitivity.over_choices(cells.iloc[:1]).iloc[0]
    assert (one["families"], one["without"], one["estimate"]) == ("all", "none", 0.01)
    assert one["n"] == 100  # of a lone model: its items, and not that it is one


def test_a_doubling_of_a_small_rate_is_no_equal_rate():
    rng = np.random.default_rng(5)
    rows = []
    for precision, rate in (("bf16", 0.004), ("q8", 0.008), ("q6", 0.0041)):
        p = rate * (1 + 0.05 * rng.random(300))
        for k, one in enumerate(p):
            rows.append((precision, f"Age/{k}", k % 30, one))
    frame = pd.DataFrame(rows, columns=["precision", "item_id", "template_id", "p_stereotyped"])
    frame = frame.assign(category="Age", context_condition="ambig", p_other=0.0, p_correct=0.0)
    frame["p_anti_stereotyped"] = 0.01
    frame["p_unknown"] = 0.99 - frame["p_stereotyped"]
    found = stats.equivalence(frame).set_index("precision")
    assert found["equivalent"].all(), "both changes are far below one point"
    assert found["equivalent_ratio"].to_dict() == {"q6": True, "q8": False}
    # Against the library's test of a weighted difference: all templates have ten items.
    wide = frame.groupby(["precision", "template_id"])["p_stereotyped"].mean().unstack(0)
    sides = [wide["q6"] - 0.8 * wide["bf16"], 1.25 * wide["bf16"] - wide["q6"]]
    p = max(sps.ttest_1samp(side, 0, alternative="greater").pvalue for side in sides)
    assert found.loc["q6", "p_ratio"] == pytest.approx(p)
