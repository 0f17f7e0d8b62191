"""Two studies are paired where they asked the same, and it is said where they did not."""

from dataclasses import replace

from cba_utils.measures.rates import role_rates
from cba_utils.telling import compare as module
from cba_utils.telling.compare import compare, told
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def shelf(monkeypatch):
    """Studies by their names, as `open_study` would find them."""
    known = {"one": study_of("noise", seed=1), "other": study_of("noise", seed=1)}
    monkeypatch.setattr(module, "open_study", known.__getitem__)
    return known


def row(table, measure, precision):
    found = table[(table["measure"] == measure) & (table["precision"] == precision)]
    assert len(found) == 1
    return found.iloc[0]


def test_a_study_beside_itself_has_no_change(shelf):
    table = compare("one", "other")
    assert table["paired"].all() and table.attrs["reasons"] == {}
    assert set(table["precision"]) == {"bf16", "q4", "q3"}
    np.testing.assert_allclose(table["estimate"], 0, atol=1e-12)
    assert not table["apart"].fillna(False).any()


def test_a_change_is_the_difference_of_the_rates_and_its_interval_is_the_narrower_one(shelf):
    answers = shelf["other"].answers.copy()
    letters = ["logp_A_t", "logp_B_t", "logp_C_t"]
    roles = answers[["role_A", "role_B", "role_C"]].to_numpy()
    logp = answers[letters].to_numpy() + 0.1 * (roles == "stereotyped")
    answers[letters] = logp - np.logaddexp.reduce(logp, axis=1)[:, None]
    shelf["other"] = replace(shelf["other"], answers=answers)
    found = row(compare("one", "other"), "d_srs", "q3")
    rates = [
        row(role_rates(shelf[name].answers, method="jackknife"), "srs", "q3")
        for name in ("one", "other")
    ]
    assert found["estimate"] == pytest.approx(rates[1]["estimate"] - rates[0]["estimate"])
    assert found["apart"] and found["low"] > 0
    assert found["high"] - found["low"] < (rates[0]["high"] - rates[0]["low"]) / 3
    assert rates[0]["high"] > rates[1]["low"], "side by side the two would not be told apart"


def test_two_precisions_of_one_study_are_paired(shelf):
    table = compare("one:q4", "one:q3")
    assert table["paired"].all() and set(table["precision"]) == {"q4 to q3"}
    back = compare("one:q3", "one:q4")
    np.testing.assert_allclose(table["estimate"].iloc[:4], -back["estimate"].iloc[:4], atol=1e-9)
    with pytest.raises(ValueError, match="'one' has no 'q5'; it has bf16, q4, q3"):
        compare("one:q5", "one:q3")


def other_items(study):
    provenance = study.provenance.assign(**{"identity.items_sha256": "1" * 64})
    return replace(study, provenance=provenance)


def other_words(study):
    words = dict.fromkeys(["context", "question", "ans0", "ans1", "ans2"], "x")
    return other_items(replace(study, items=study.items.assign(**words)))


BROKEN = {
    "items have other hashes": other_items,
    "one of them has no probabilities": without_probabilities,
    "orders of the answers differ .3 and 1": lambda s: replace(
        s, answers=s.answers[s.answers["order"] == "012"]
    ),
    "no model of one name": lambda s: replace(
        s,
        **{
            name: getattr(s, name).assign(model="stranger")
            for name in ("answers", "samples", "perplexity", "provenance")
        },
        letters=None,
    ),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_cannot_be_paired_is_put_side_by_side_and_said(shelf, reason):
    shelf["other"] = BROKEN[reason](shelf["other"])
    text = told("one", "other")
    assert "Not paired" in text and "not paired, " in text
    assert pd.Series(text).str.contains(reason).all(), text
    assert not compare("one", "other")["paired"].any()


def test_items_of_the_same_name_with_other_words_are_not_the_same(shelf):
    shelf["one"] = other_words(shelf["one"])
    assert compare("one", "other").attrs["reasons"]
    both = other_words(study_of("noise", seed=1))
    provenance = both.provenance.assign(**{"identity.items_sha256": "2" * 64})
    shelf["other"] = replace(both, provenance=provenance)
    assert compare("one", "other")["paired"].all(), "another hash of more items, the same words"
    changed = both.items.copy()
    changed.loc[0, "context"] = "y"
    shelf["other"] = replace(both, items=changed, provenance=provenance)
    assert "items of the same name have other words" in compare("one", "other").attrs["reasons"]
