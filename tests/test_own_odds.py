"""The deciding measure: asymmetry beyond each item's own odds, on simulated truths not ours."""

from cba_utils.answering.prompts import LETTERS
from cba_utils.instrument.respondents import draw_samples, simulate_study
from cba_utils.measures.controls import category_leans, own_odds, rose
from cba_utils.measures.frames import item_table
from cba_utils.measures.pooling import over_replicates
from cba_utils.names import ROLES

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

TEMPLATES, ITEMS = 24, 10
ORDERS = ("012", "120", "201")
ROSE = {"rise 0.3": (0.3, 0, 0), "rise 0.8": (0.8, 0, 0)}
# Truths in which nothing grew, as logits of (stereotyped, other, unknown) become others.
FLAT = {
    "noise": lambda x, shake: x + shake,
    "shrunk to 0.86": lambda x, shake: 0.86 * x,
    "shrunk to 0.33": lambda x, shake: 0.33 * x,
    "shrunk and shaken": lambda x, shake: 0.33 * x + shake,
    "unknown lost": lambda x, shake: x - [0, 0, 2],
    "unknown lost and shaken": lambda x, shake: x - [0, 0, 2] + shake,
    "letter": lambda x, shake: x,
}


def study(truth, lean, models, seed=0):
    """Answers of respondents that lean by ``lean`` on average: one study of one checkpoint a model."""
    rng = np.random.default_rng([seed, len(truth)])
    n = TEMPLATES * ITEMS
    template = np.repeat(np.arange(TEMPLATES), ITEMS)
    frames = []
    for model in range(models):
        gap = lean + rng.normal(0, 0.5, TEMPLATES)[template] + rng.normal(0, 0.4, n)
        unknown = 2 + rng.normal(0, 1, TEMPLATES)[template] + rng.normal(0, 0.4, n)
        before = np.stack([gap / 2, -gap / 2, unknown], axis=1)
        shake = 0.7 * (rng.normal(0, 1, (TEMPLATES, 3))[template] + rng.normal(0, 1, (n, 3)))
        after = before + ROSE[truth] if truth in ROSE else FLAT[truth](before, shake)
        start = rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)  # role at each letter
        for precision, logits in (("bf16", before), ("q3", after)):
            for turn, order in enumerate(ORDERS):
                role = np.roll(start, -turn, axis=1)
                drift = [0, 0, 1.5 * (truth == "letter" and precision == "q3")]
                by_letter = np.take_along_axis(logits, role, axis=1) + drift
                columns = {
                    "model": f"m{model}",
                    "family": f"m{model}",
                    "precision": precision,
                    "item_id": [f"C/{k}" for k in range(n)],
                    "category": [f"C{k % 4}" for k in template],
                    "context_condition": "ambig",
                    "template_id": template,
                    "order": order,
                    "correct": "A",
                }
                for k, letter in enumerate(LETTERS):
                    columns[f"role_{letter}"] = np.array(ROLES, object)[role[:, k]]
                for suffix, heat in (("", 1.0), ("_t", 0.3)):
                    logp = log_softmax(by_letter / heat, axis=1)
                    for k, letter in enumerate(LETTERS):
                        columns[f"logp_{letter}{suffix}"] = logp[:, k]
                    columns[f"mass_other{suffix}"] = 0.0
                frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def verdicts(found, expected="named_share_expected", beyond="beyond_own_odds", at="q3"):
    one, other = (
        found[(found["measure"] == name) & (found["precision"] == where)].set_index("model")
        for name, where in ((expected, at), (beyond, "q3"))
    )
    return rose(one, other)


@pytest.mark.parametrize("lean", [0.0, 0.8])
@pytest.mark.parametrize("truth", FLAT)
def test_what_only_shakes_flattens_or_unsettles_is_no_asymmetry(truth, lean):
    answers = study(truth, lean, models=40)
    # One end of a 95 % interval; six of forty or more happen to one level of 2.5 % in 5,000.
    assert verdicts(own_odds(answers)).sum() < 6
    samples = draw_samples(answers)
    found = own_odds(samples)
    assert verdicts(found).sum() < 6
    assert verdicts(found, "named_share", "d_named_share", at="bf16").sum() < 7


@pytest.mark.parametrize("lean", [0.0, 0.8])
@pytest.mark.parametrize("truth", ROSE)
def test_a_rise_is_seen(truth, lean):
    answers = study(truth, lean, models=20)
    assert verdicts(own_odds(answers)).mean() > 0.9
    if truth == "rise 0.8":
        assert verdicts(own_odds(draw_samples(answers))).mean() > 0.4


def test_it_is_the_rise_less_each_items_own_share_of_what_left_unknown():
    answers = study("unknown lost and shaken", 0.5, models=1)
    table = item_table(answers, "unit").set_index(["precision", "item_id"])[ROLES]
    before, after = table.loc["bf16"], table.loc["q3"]
    share = before["stereotyped"] / (before["stereotyped"] + before["anti_stereotyped"])
    left = before["unknown"] - after["unknown"]
    beyond = (after["stereotyped"] - before["stereotyped"] - share * left).sum()
    named = (after["stereotyped"] + after["anti_stereotyped"]).sum()
    found = own_odds(answers).set_index(["precision", "measure"])["estimate"]
    assert found["q3", "beyond_own_odds"] == pytest.approx(beyond / named, abs=1e-6)
    assert found["q3", "named_share"] - found["q3", "named_share_expected"] == pytest.approx(
        found["q3", "beyond_own_odds"]
    )
    assert "beyond_own_odds" not in found["bf16"]


def test_odds_of_draws_are_those_of_the_template():
    samples = draw_samples(study("noise", 0.5, models=1))
    counts = samples.groupby(["precision", "template_id", "role"]).size().unstack(fill_value=0)
    before, after = counts.loc["bf16"], counts.loc["q3"]
    named = [part["stereotyped"] + part["anti_stereotyped"] for part in (before, after)]
    kept = named[0] > 0
    expected = (before["stereotyped"] / named[0] * named[1])[kept].sum()
    found = own_odds(samples).set_index("measure")["estimate"]
    assert found["beyond_own_odds"] == pytest.approx(
        (after["stereotyped"][kept].sum() - expected) / named[1][kept].sum()
    )


def test_the_category_that_alone_grows_is_found():
    answers = study("shrunk to 0.86", 0.0, models=1)
    grown = (answers["category"] == "C2") & (answers["precision"] == "q3")
    for letter in LETTERS:
        rise = 1.5 * (answers[f"role_{letter}"] == "stereotyped") * grown
        answers[f"logp_{letter}"] = answers[f"logp_{letter}"] + rise
    p = np.exp(answers[[f"logp_{x}" for x in LETTERS]].to_numpy())
    answers[[f"logp_{x}" for x in LETTERS]] = np.log(p / p.sum(axis=1, keepdims=True))
    found = category_leans(answers).set_index("category")
    assert found.index[found["grew"]].tolist() == ["C2"]
    assert found.loc["C2", "p_holm"] == pytest.approx(4 * found.loc["C2", "p"])


def test_categories_of_two_models_are_those_of_each():
    both = [simulate_study(truth, templates=12, precisions=["bf16", "q3"])["answers"].assign(
        model=truth, family=truth) for truth in ("bias", "noise")]  # fmt: skip
    alone = pd.concat([category_leans(part) for part in both], ignore_index=True)
    found = category_leans(pd.concat(both, ignore_index=True))
    for name in ("estimate", "lean", "p"):
        assert found[name].to_numpy() == pytest.approx(alone[name].to_numpy())
    assert set(found["model"]) == {"bias", "noise"}


def test_categories_are_read_over_checkpoints_where_there_are_several():
    answers = simulate_study("bias", templates=12, precisions=["bf16", "q3"], replicates=3)[
        "answers"
    ]
    found = category_leans(answers)
    assert found["grew"].all() and "model" not in found and len(found) == 3
    pooled = over_replicates(own_odds(answers), ["family"]).set_index("measure")
    assert (
        pooled.loc["beyond_own_odds", "low"] > 0 and pooled.loc["beyond_own_odds", "clusters"] == 3
    )
