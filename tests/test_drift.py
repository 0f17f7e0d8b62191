"""Checks that need no roles: by their definitions, and in the order that was constructed."""

from cba_utils.measures import drift
from cba_utils.measures.transitions import placebo
from moved import moved, shaken

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy, spearmanr


def test_distances_are_those_of_scipy():
    answers = moved(shaken, models=1)
    found = drift.distances(answers).set_index("item_id")
    names = ["logp_A", "logp_B", "logp_C"]
    p, q = (
        np.column_stack([np.exp(part[names]), part["mass_other"]])
        for part in (answers[answers["precision"] == x] for x in ("bf16", "q4"))
    )
    np.testing.assert_allclose(found["kl"], entropy(p, q, axis=1), atol=1e-9)
    np.testing.assert_allclose(found["entropy"], entropy(q, base=2, axis=1))
    np.testing.assert_allclose(found["tv"], np.abs(p - q).sum(axis=1) / 2)
    np.testing.assert_allclose(found["collision_ref"], (p**2).sum(axis=1))
    assert (found["flip"] == (p[:, :3].argmax(1) != q[:, :3].argmax(1))).all()


def constructed(models=12):
    """Model k is shaken the more the higher k; perplexity says the contrary."""

    def change(logits, letters, precision, rng, k):
        return logits + (0.3 + 0.15 * k) * rng.normal(size=logits.shape)

    answers = moved(change, models=models, bases=6)
    cells = answers[
        ["model", "family", "base", "replicate", "depth", "precision"]
    ].drop_duplicates()
    rows = []
    for k, model in enumerate(answers["model"].unique()):
        for cell in cells[cells["model"] == model].to_dict("records"):
            worse = 0.0 if cell["precision"] == "bf16" else 0.2 - 0.01 * k
            flips = 0.0 if cell["precision"] == "bf16" else 1.0 + k
            rows += [
                {**cell, "sequence": n, "tokens": 100, "nll": 300 + n + 100 * worse,
                 "vocab_kl": flips, "vocab_tv": flips, "vocab_flip": flips}
                for n in range(4)
            ]  # fmt: skip
    return answers, pd.DataFrame(rows)


def test_checks_rank_as_constructed():
    answers, perplexity = constructed()
    checks, outcome = drift.drifts(answers, perplexity), placebo(answers)
    found = drift.ranks(checks, outcome)
    at = found[found["precision"] == "q4"].set_index("check")
    assert at.loc["perplexity_change", "high"] < 0
    for name in ("letters_kl", "letters_tv", "all_flips", "text_kl", "text_flips"):
        assert at.loc[name, "low"] > 0, name
    assert set(at["n"]) == {12} and set(at["clusters"]) == {6}
    seen = outcome[outcome["measure"] == "became_biased_expected_excess"]
    one = checks[checks["measure"] == "letters_kl"].merge(seen, on=["model", "precision"])
    wanted = spearmanr(one["estimate_x"], one["estimate_y"]).statistic
    assert at.loc["letters_kl", "estimate"] == pytest.approx(wanted)


def test_few_bases_give_a_rank_correlation_without_interval():
    answers, perplexity = constructed(models=4)
    answers["base"] = "one"
    found = drift.ranks(drift.drifts(answers), placebo(answers))
    assert found["estimate"].notna().any() and found["low"].isna().all()
    assert "perplexity_change" not in set(found["check"])


def test_text_that_is_another_letter_than_the_likeliest_is_seen():
    """Three of five answers are read as the letter, one as another, one as none."""
    answers = moved(shaken, models=1, templates=6)
    shown = answers[answers["context_condition"] == "ambig"].reset_index(drop=True)
    best = shown[["logp_A_t", "logp_B_t", "logp_C_t"]].to_numpy().argmax(1)
    other = (best + 1) % 3
    letters = np.array(["A", "B", "C"], object)
    samples = pd.concat(
        [shown.assign(seed=k, parsed_answer=letters[best]) for k in range(3)]
        + [
            shown.assign(seed=3, parsed_answer=letters[other]),
            shown.assign(seed=4, parsed_answer=None),
        ]
    )
    found = drift.letter_or_text(answers, samples).set_index(["precision", "measure"])
    top = np.exp(shown[["logp_A_t", "logp_B_t", "logp_C_t"]].to_numpy()).max(1)
    for precision in ("bf16", "q4"):
        expected = top[(shown["precision"] == precision).to_numpy()].mean()
        assert found.loc[(precision, "agreement"), "estimate"] == pytest.approx(0.6)
        assert found.loc[(precision, "agreement_expected"), "estimate"] == pytest.approx(expected)
        assert found.loc[(precision, "agreement_excess"), "high"] < 0
