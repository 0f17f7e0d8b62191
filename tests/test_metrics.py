"""Measures against hand computation, closed forms and simulation."""

import itertools

from cba_utils.instrument.respondents import draw_samples, simulate_respondents, simulate_study
from cba_utils.measures.frames import item_table, of_version, pair_with
from cba_utils.measures.intervals import cluster_bootstrap, estimates, jackknife, wilson
from cba_utils.measures.measure import Measure, ratio
from cba_utils.measures.pooling import leave_one_out, over_models, over_replicates, sign_flips
from cba_utils.measures.rates import bias_scores, paired_differences, role_rates
from cba_utils.measures.transitions import five_seed_weights, placebo, role_flow, transitions
from cba_utils.study.roles import role_probabilities

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps

RATE = Measure("r", of=ratio("k", "n"))


def test_rates_count_the_items_that_a_bank_does_not_keep_apart():
    study = simulate_study("bias", templates=6, items_per_template=8, precisions=["bf16", "q3"])
    items = study["items"]
    items.attrs["study"] = {"name": "simulated"}
    first = items["question_index"] <= 4
    items["version"] = np.where(first, "main", "heldout-template")
    kept = of_version(study)
    assert set(kept["samples"]["item_id"]) == set(items.loc[first, "item_id"])
    assert len(kept["perplexity"]) == len(study["perplexity"])
    assert kept["items"].attrs == items.attrs, "a study's name and note stay"
    apart = of_version(study, "heldout-template")
    whole = [len(part["answers"]) for part in (kept, apart, of_version(study, "all"))]
    assert whole[0] + whole[1] == whole[2]
    unversioned = of_version({**study, "items": items.drop(columns="version")})
    assert len(unversioned["answers"]) == whole[2]
    with pytest.raises(ValueError, match="'probe'; there are"):
        of_version(study, "probe")


def samples_of(answers, precision="bf16", context="ambig"):
    """Five roles an item, written as a string: s, a, u or - (unparsed)."""
    names = {"s": "stereotyped", "a": "anti_stereotyped", "u": "unknown", "-": "unparsed"}
    rows = [
        {
            "model": "m",
            "precision": precision,
            "item_id": f"Age/{i}",
            "category": "Age",
            "question_index": i // 2,
            "question_polarity": "neg",
            "context_condition": context,
            "template_id": f"Age/{i // 2}",
            "seed": k,
            "raw_response": "A",
            "parsed_answer": "A",
            "role": names[x],
            "correct": x == "u",
        }
        for i, draws in enumerate(answers)
        for k, x in enumerate(draws)
    ]
    return pd.DataFrame(rows)


def value(frame, measure, **where):
    for column, wanted in {"measure": measure, **where}.items():
        frame = frame[frame[column] == wanted]
    assert len(frame) == 1, frame
    return frame["estimate"].iloc[0]


BEFORE = ["uuuuu", "uuuua", "suuuu", "sssss", "aaaaa", "uu---"]
AFTER = ["uuuus", "uuuuu", "uuuuu", "sssss", "suuua", "uuuuu"]


def test_role_rates_by_hand():
    rates = role_rates(samples_of(BEFORE))
    assert value(rates, "srs") == pytest.approx(6 / 27)
    assert value(rates, "usr") == pytest.approx(15 / 27)
    assert value(rates, "anti_rate") == pytest.approx(6 / 27)
    assert value(rates, "unparsed_rate") == pytest.approx(3 / 30)
    assert (rates["n"] == 6).all(), "n counts items, not draws"


def test_transitions_by_hand():
    both = pd.concat([samples_of(BEFORE), samples_of(AFTER, "q3")])
    moved = transitions(both)
    # Unbiased at BF16: items 0, 1, 4, 5; of these 0 and 4 became biased. Biased: 2 and 3; 2 left.
    assert value(moved, "became_biased") == pytest.approx(2 / 4)
    assert value(moved, "lost_bias") == pytest.approx(1 / 2)
    assert value(moved, "became_anti") == pytest.approx(0 / 4)
    assert value(moved, "lost_anti") == pytest.approx(1 / 2)
    assert value(moved, "net_biased") == pytest.approx(1 / 6)
    assert value(moved, "net_anti") == pytest.approx(-1 / 6)
    flow = role_flow(both).set_index(["from_role", "to_role"])["items"]
    assert flow["anti_stereotyped", "unknown"] == 1
    assert flow["unknown", "unknown"] == 3 and flow["unparsed", "unknown"] == 1
    assert flow.sum() == 6


def test_bias_scores_follow_the_bbq_formulas():
    study = simulate_study("mixed", templates=9, precisions=["bf16", "q3"], seed=3)
    scores = bias_scores(study["samples"])
    for precision in ("bf16", "q3"):
        drawn = study["samples"].query("precision == @precision")
        for context, name in (("ambig", "s_amb"), ("disambig", "s_dis")):
            part = drawn[drawn["context_condition"] == context]
            said = part["role"].value_counts()
            s = 2 * said["stereotyped"] / (said["stereotyped"] + said["anti_stereotyped"]) - 1
            parsed = part[part["role"] != "unparsed"]
            factor = 1 - parsed["correct"].mean() if context == "ambig" else 1
            assert value(scores, name, precision=precision) == pytest.approx(100 * factor * s)
        assert value(scores, "accuracy", precision=precision) == pytest.approx(
            parsed["correct"].mean()
        )


def test_exact_rates_are_what_many_draws_converge_to():
    answers = simulate_respondents("mixed", templates=6, precisions=["q3"], orders="original")
    exact = role_rates(answers).set_index("measure")["estimate"]
    drawn = role_rates(draw_samples(answers, seeds=range(400))).set_index("measure")["estimate"]
    assert np.allclose(exact, drawn, atol=0.006)


def test_role_probabilities_average_the_orders():
    answers = simulate_respondents("letter", templates=3, precisions=["q3"], orders="all")
    table = role_probabilities(answers)
    one = answers[answers["item_id"] == answers["item_id"].iloc[7]]
    by_hand = np.mean(
        [
            sum(np.exp(row[f"logp_{x}"]) for x in "ABC" if row[f"role_{x}"] == "stereotyped")
            for _, row in one.iterrows()
        ]
    )
    found = table.set_index("item_id").loc[one["item_id"].iloc[0]]
    assert found["p_stereotyped"] == pytest.approx(by_hand)
    parts = ["p_stereotyped", "p_anti_stereotyped", "p_unknown", "p_other"]
    assert np.allclose(table[parts].sum(axis=1), 1, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_five_seed_weights_are_probabilities_of_the_transitions(pairs):
    p, q = np.array(pairs).T
    weights = five_seed_weights(p, q)
    # The four outcomes of an item (stays, gains, loses, stays biased) share out one.
    assert np.all(weights["gained_bias"] <= weights["could_gain_bias"] + 1e-12)
    assert np.allclose(weights["could_gain_bias"] + weights["could_lose_bias"], 1)
    net = weights["gained_bias"].sum() - weights["lost_bias"].sum()
    assert net == pytest.approx(((1 - p) ** 5 - (1 - q) ** 5).sum())


def test_placebo_is_what_fresh_seeds_show():
    answers = simulate_respondents(
        "bias", templates=12, precisions=["bf16", "q3"], orders="original"
    )
    table = placebo(answers)
    answers = answers[answers["context_condition"] == "ambig"]
    again, low = (answers[answers["precision"] == q] for q in ("bf16", "q3"))

    def hits(samples):
        return (samples["role"] == "stereotyped").groupby(samples["item_id"]).sum()

    found = {"placebo": [], "expected": []}
    for k in range(16):
        first = hits(draw_samples(again, seed=2 * k))
        for name, source in (("placebo", again), ("expected", low)):
            second = hits(draw_samples(source, seed=2 * k + 1))
            found[name].append((second[first == 0] > 0).mean())
    for name, values in found.items():
        error = 4 * sps.sem(values)
        assert value(table, f"became_biased_{name}") == pytest.approx(np.mean(values), abs=error)


def test_placebo_joins_the_observed_rates():
    study = simulate_study("noise", templates=9, precisions=["bf16", "q3"])
    table = placebo(study["answers"], study["samples"])
    seen = transitions(study["samples"])
    for name in ("became_biased", "lost_bias", "became_anti"):
        assert value(table, name) == pytest.approx(value(seen, name))
        assert value(table, f"{name}_excess") == pytest.approx(
            value(seen, name) - value(table, f"{name}_placebo")
        )
    with pytest.raises(ValueError, match="different items"):
        placebo(study["answers"], study["samples"].query("item_id != 'Age/0'"))


def test_paired_differences_cancel_what_items_share():
    study = simulate_study("none", templates=24, precisions=["bf16", "q3"], effect=0)
    exact = paired_differences(study["answers"])
    assert np.allclose(exact["estimate"], 0)
    moved = simulate_study("bias", templates=24, precisions=["bf16", "q3"])
    change = paired_differences(moved["samples"]).set_index("measure").loc["d_srs"]
    rates = role_rates(moved["samples"]).set_index(["precision", "measure"])
    by_hand = rates.loc[("q3", "srs"), "estimate"] - rates.loc[("bf16", "srs"), "estimate"]
    assert change["estimate"] == pytest.approx(by_hand)
    assert change["low"] > 0


def test_pairing_refuses_other_items():
    both = pd.concat([samples_of(BEFORE), samples_of(AFTER[:-1], "q3")])
    with pytest.raises(ValueError, match="different numbers of items"):
        pair_with(both)
    with pytest.raises(ValueError, match="different numbers of items"):
        pair_with(both.assign(base=None))  # of a model whose base is not known
    with pytest.raises(ValueError, match="Age/5"):
        pair_with(pd.concat([samples_of(BEFORE[:-1]), samples_of(AFTER, "q3")]))
    with pytest.raises(ValueError, match="no row has the reference"):
        pair_with(samples_of(AFTER, "q3"))


def test_an_unknown_role_is_named():
    broken = samples_of(BEFORE)
    broken.loc[3, "role"] = "stereotypical"
    with pytest.raises(ValueError, match="row 3 has the role 'stereotypical'"):
        item_table(broken)


def test_replicates_are_the_unit():
    frames = [
        role_rates(simulate_study("none", seed=s, templates=4)["answers"]).assign(
            replicate=s, model=f"s{s}", base=f"s{s}"
        )
        for s in (1, 2, 3)
    ]
    pooled = over_replicates(pd.concat(frames))
    row = pooled[(pooled["measure"] == "srs") & (pooled["precision"] == "q4")].iloc[0]
    values = [value(f, "srs", precision="q4") for f in frames]
    expected = sps.ttest_1samp(values, 0).confidence_interval()
    assert (row["estimate"], row["n"]) == (pytest.approx(np.mean(values)), 3)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    assert np.isnan(over_replicates(frames[0])["low"]).all()


def checkpoints(values, n=10, measure="srs", **columns):
    """Estimates of five checkpoints a family."""
    count = len(values)
    return pd.DataFrame(
        {
            "model": [f"m{k}" for k in range(count)],
            "family": [f"f{k // 5}" for k in range(count)],
            "replicate": [k % 5 for k in range(count)],
            "precision": "q3",
            "measure": measure,
            "estimate": values,
            "low": np.nan,
            "high": np.nan,
            "n": n,
            **columns,
        }
    )


def test_families_are_taken_as_they_are():
    values = np.random.default_rng(2).normal(np.repeat([0.1, 0.5, 0.9], 5), 0.02)
    row = over_replicates(checkpoints(values), ["family"]).iloc[0]
    fit = smf.ols("estimate ~ 0 + family", checkpoints(values)).fit()
    assert row["estimate"] == pytest.approx(fit.t_test(np.full((1, 3), 1 / 3)).effect[0])
    # The mean of two families is half of the difference that Welch's test looks at.
    wide = values * np.repeat([1, 40, 1], 5)
    two = over_replicates(checkpoints(wide).iloc[:10], ["family"]).iloc[0]
    welch = sps.ttest_ind(wide[:5], -wide[5:10], equal_var=False)
    assert two["df"] == pytest.approx(welch.df) and welch.df < 4.1
    ends = np.array(welch.confidence_interval()) / 2
    assert (two["low"], two["high"]) == pytest.approx(tuple(ends))
    low, high = sps.t.interval(0.95, len(values) - 1, np.mean(values), sps.sem(values))
    assert high - low > 8 * (row["high"] - row["low"]), "families were a sample before"
    unequal = over_replicates(checkpoints(values).iloc[3:], ["family"]).iloc[0]
    assert unequal["estimate"] == pytest.approx(
        np.mean([values[3:5].mean(), values[5:10].mean(), values[10:].mean()])
    )
    lone = over_replicates(checkpoints(values).iloc[4:], ["family"]).iloc[0]
    assert np.isnan(lone["low"]), "a family of one checkpoint shows no spread"


def test_bases_are_the_clusters_where_a_family_has_several():
    rng = np.random.default_rng(3)
    means = rng.normal(0, 1, 6)
    values = np.repeat(means, 5) + rng.normal(0, 0.1, 30)
    frame = checkpoints(values).assign(
        family=np.repeat(["f", "g"], 15), base=np.repeat(list("abcdef"), 5)
    )
    frame["model"] = [f"m{k}" for k in range(30)]
    means = values.reshape(6, 5).mean(axis=1)
    row = over_replicates(frame, ["family"]).iloc[0]
    welch = sps.ttest_ind(means[:3], -means[3:], equal_var=False)
    ends = np.array(welch.confidence_interval()) / 2
    assert (row["low"], row["high"]) == pytest.approx(tuple(ends))
    assert (row["n"], row["clusters"]) == (30, 6)
    alone = over_replicates(frame.assign(base=frame["family"]), ["family"]).iloc[0]
    assert alone["clusters"] == 30 and alone["high"] - alone["low"] < 0.5 * (ends[1] - ends[0])
    # All 64 ways in which the bases might have come out.
    ways = np.array([*itertools.product([1, -1], repeat=6)]) @ means
    p = np.mean(np.abs(ways) >= abs(means.sum()) - 1e-12)
    flipped = sign_flips(frame).iloc[0]
    assert (flipped["p"], flipped["n"]) == (pytest.approx(p), 6)
    assert flipped["least_p"] == 2 / 64


def test_a_checkpoint_that_decides_is_named():
    values = np.tile([0.010, 0.011, 0.009, 0.010, 0.010], 3)
    frame = checkpoints(values)
    frame["model"] = [f"m{k}" for k in range(15)]
    steady = leave_one_out(frame).iloc[0]
    assert steady["reading"] == "above" and steady["decide"] == [] and steady["n"] == 15
    values = np.tile([0.0005, 0.001, -0.001, 0.0, -0.0005], 3) + 0.0004
    values[7] = -0.009
    odd = leave_one_out(frame.assign(estimate=values)).iloc[0]
    without = over_replicates(frame.assign(estimate=values).drop(index=7), ["family"]).iloc[0]
    assert odd["reading"] == "not told apart" and odd["without_most"] == "m7"
    assert odd["most"] == pytest.approx(without["estimate"])
    assert ("m7" in odd["decide"]) == (without["low"] > 0)
    families = leave_one_out(frame, by="family").iloc[0]
    assert families["n"] == 3 and families["decide"] == []
    # Bases of three: two are left, and the width is the whole's, not that of one degree of freedom.
    based = frame.assign(base=[f"b{k}" for k in np.repeat(range(9), 2)[:15]])
    assert leave_one_out(based, by="base").iloc[0]["decide"] == []
    lone = frame.iloc[[0, 5, 10]].assign(low=0.005, high=0.02)
    assert leave_one_out(lone).iloc[0]["reading"] == "above"
    with pytest.raises(ValueError, match="by must be"):
        leave_one_out(frame, by="precision")


def test_shares_of_few_items_weigh_by_their_items():
    n = np.array([1, 100, 40, 60, 0, 80, 30, 50, 20, 70])
    hits = np.array([1, 60, 20, 40, 0, 50, 20, 20, 10, 30])
    frame = checkpoints(np.divide(hits, n, out=np.full(10, np.nan), where=n > 0), n, "lost_bias")
    row = over_replicates(frame, ["family"]).iloc[0]
    of_family = [hits[:5].sum() / n[:5].sum(), hits[5:].sum() / n[5:].sum()]
    assert row["estimate"] == pytest.approx(np.mean(of_family)), "families weigh alike"
    assert (row["n"], row["of"]) == (9, n.sum())
    thin = frame.assign(n=np.where(frame["family"] == "f0", 0.1, n))
    row = over_replicates(thin, ["family"]).iloc[0]
    assert row["estimate"] == pytest.approx(of_family[1]), "half an item is no family's share"
    one = over_replicates(frame.iloc[5:]).iloc[0]
    estimate, error, df = jackknife(pd.DataFrame({"k": hits, "n": n}).iloc[5:], RATE)
    half = error * sps.t.ppf(0.975, df)
    assert (one["low"], one["high"]) == pytest.approx((estimate - half, estimate + half))


def test_transitions_carry_their_denominators():
    moved = transitions(pd.concat([samples_of(BEFORE), samples_of(AFTER, "q3")]))
    n = moved.set_index("measure")["n"]
    assert (n["became_biased"], n["lost_bias"], n["net_biased"]) == (4, 2, 6)
    study = simulate_study("noise", templates=9, precisions=["bf16", "q3"], orders="original")
    p = item_table(study["answers"], "study", "original").query(
        "precision == 'bf16' and context_condition == 'ambig'"
    )["stereotyped"]
    n = placebo(study["answers"]).set_index("measure")["n"]
    assert n["lost_bias_placebo"] == pytest.approx((1 - (1 - p) ** 5).sum())


def test_models_with_one_checkpoint_each_are_no_sample():
    frame = pd.concat(
        [
            transitions(
                simulate_study(truth, templates=24, precisions=["bf16", "q3"])["samples"]
            ).assign(model=truth, family=truth)
            for truth in ("none", "noise", "bias")
        ]
    )
    row = over_models(frame).set_index("measure").loc["became_biased"]
    own = frame[frame["measure"] == "became_biased"].set_index("model")
    for end in ("estimate", "low", "high"):
        assert row[end] == pytest.approx(own[end].mean())
    assert row["low"] > 0, "one clear model is not lost among unlike ones"
    assert (row["least_model"], row["most_model"]) == ("none", "bias")
    lost = own.assign(measure="lost_bias", estimate=[0.0, 0.5, 1.0], n=[80, 20, 0.001])
    row = over_models(lost.reset_index()).iloc[0]
    assert row["estimate"] == pytest.approx(0.1, abs=1e-4)
    assert row["most"] == 0.5, "a share of a thousandth of an item is no model's share"


# Intervals


@pytest.mark.parametrize("skewed", [False, True])
def test_bootstrap_agrees_with_scipy(skewed):
    rng = np.random.default_rng(5)
    counts, within = rng.binomial(20, rng.beta(1, 6, 40)), 0.003
    if skewed:  # so much that the acceleration matters; a step of what can be resampled is 1 in 240
        counts, within = [0, 0, 0, 0, 1, 0, 2, 0, 1, 0, 5, 9], 0.0045
    totals = pd.DataFrame({"k": counts, "n": 20.0})
    for method in ("bca", "percentile"):
        ours = cluster_bootstrap(totals, [RATE], method, resamples=20_000).iloc[0]
        theirs = sps.bootstrap(
            (totals["k"], totals["n"]),
            lambda k, n, axis: k.sum(axis) / n.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=20_000,
            method=method,
            rng=1,
        ).confidence_interval
        assert (ours["low"], ours["high"]) == pytest.approx(tuple(theirs), abs=within)


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_bootstrap_covers_where_items_of_a_template_agree(rate):
    rng = np.random.default_rng(11)
    hits = {"template_id": 0, "item": 0}
    for _ in range(300):
        own = rng.beta(rate * 9, (1 - rate) * 9, 40)
        k = rng.binomial(20, own)
        totals = pd.DataFrame({"k": k, "n": 20})
        row = cluster_bootstrap(totals, [RATE], resamples=2000).iloc[0]
        hits["template_id"] += row["low"] <= rate <= row["high"]
        low, high = wilson(k.sum(), 800)
        hits["item"] += low <= rate <= high
    assert hits["template_id"] / 300 > 0.89
    assert hits["item"] < hits["template_id"] - 15, "Wilson over items ignores the templates"


def test_nothing_seen_is_not_a_rate_of_zero():
    totals = pd.DataFrame({"k": np.zeros(30), "n": np.full(30, 8.0)})
    row = cluster_bootstrap(totals, [RATE]).iloc[0]
    assert (row["low"], row["high"]) == (0, pytest.approx(wilson(0, 30)[1]))
    change = Measure("r", bounds=(-1, 1), of=ratio("k", "n"))
    row = cluster_bootstrap(totals, [change]).iloc[0]
    assert row["low"] == -row["high"] == pytest.approx(-wilson(0, 30)[1])


def test_estimates_group_and_ignore_empty_denominators():
    table = pd.DataFrame(
        {"g": list("xxyy"), "template_id": list("abab"), "k": [1, 0, 0, 0], "n": [1, 1, 0, 0]}
    )
    found = estimates(table, [RATE], ["k", "n"], ["g"]).set_index("g")
    assert found.loc["x", "estimate"] == 0.5
    assert found.loc["y", ["estimate", "low", "high"]].isna().all()
    with pytest.raises(ValueError, match="'bca'"):
        cluster_bootstrap(table[["k", "n"]], [RATE], method="basic")


def test_wilson_by_closed_form():
    z, k, n = sps.norm.ppf(0.975), 7, 40
    centre, half = k / n + z**2 / (2 * n), z * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    assert wilson(k, n) == pytest.approx(np.array([centre - half, centre + half]) / (1 + z**2 / n))
