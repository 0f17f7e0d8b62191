"""Phrases say where something holds, whatever the number of families."""

from cba_utils.telling.numbers import reading
from cba_utils.telling.study import Readings, Told
from cba_utils.telling.words import across, among, places

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["one", "two", "three", "four"]
SAID = st.lists(st.sampled_from(["above", "below", "not told apart"]), min_size=1, max_size=4)


def readings(said):
    return Readings(
        Told(name, {"estimate": 0.1 * k}, one)
        for k, (name, one) in enumerate(zip(NAMES, said, strict=False))
    )


@given(st.dictionaries(st.sampled_from(["q8", "q4", "q3"]), SAID, min_size=1))
def test_every_family_is_in_the_phrase_of_its_reading_and_in_no_other(said):
    found = {p: readings(one) for p, one in said.items()}
    told = {which: places(found, which) for which in ("above", "below", "rest")}
    for which, text in told.items():
        parts = {p: getattr(one, which) for p, one in found.items()}
        assert bool(text) == any(parts.values())
        for p, names in parts.items():
            assert (p.upper() in text) == bool(names)
            whole = len(names) == len(found[p])
            assert whole or all(name in text for name in names)


def test_a_lone_family_is_named_and_never_counted():
    one = readings(["above"])
    assert places({"q4": one}) == "at Q4 in one" and across(one) == "0.0\u00a0%"
    assert among([], ["a"]) == "in no family" and among(["a"], ["a"], True) == "in a"


@pytest.mark.parametrize("values", [[np.nan, 0.2], [np.nan]])
def test_what_is_not_defined_is_not_said(values):
    rows = [{"estimate": v, "low": v, "high": v} for v in values]
    found = Readings(Told(n, row, reading(row)) for n, row in zip("ab", rows, strict=False))
    assert "nan" not in across(found)
    assert (found.most is None) == (len(values) == 1)
