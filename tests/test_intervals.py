"""The way in which intervals over checkpoints were chosen, and that what is compared is what is used."""

from cba_utils.measures.pooling import over_replicates, sign_flips

import numpy as np
import pandas as pd
import pytest
from benchmarks.intervals import DESIGNS, SPREADS, TABLE, flips, intervals, measure, units


def test_what_was_compared_is_what_is_used():
    rng = np.random.default_rng(4)
    values = units(rng, "skewed", SPREADS["20 to 3 to 1"], "3 bases, 5 alignments", 8)
    _, found = intervals(values, rng)
    rejected = flips(values, np.full(8, -2.0))
    for k, one in enumerate(values):
        frame = pd.DataFrame(
            {
                "model": [f"m{j}" for j in range(9)],
                "family": np.repeat(list("fgh"), 3),
                "measure": "s_amb",
                "estimate": one.ravel(),
                "n": 1,
            }
        )
        row = over_replicates(frame, ["family"]).iloc[0]
        low, high = (end[k] for end in found["Welch and Satterthwaite"])
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert (sign_flips(frame, null=-2.0)["p"].iloc[0] < 0.05) == rejected[k]


def test_the_committed_table_is_of_this_code_and_says_why():
    table = pd.read_csv(TABLE)
    keys = ["design", "errors", "spreads", "promise", "method"]
    assert table[keys].equals(measure(simulations=4)[keys])
    unlike = table[
        (table["spreads"] == "20 to 3 to 1")
        & (table["promise"] == "these items")
        & (table["errors"] == "normal")
    ]
    covered = unlike.pivot(index="design", columns="method", values="covered")
    assert set(covered.index) == set(DESIGNS)
    assert covered["Welch and Satterthwaite"].between(0.94, 0.97).all()
    others = ["pooled degrees of freedom", "stratified bootstrap"]
    assert (covered[others].max(axis=1) < covered["Welch and Satterthwaite"]).all()
    # Nowhere among these does its lower end say "more" above the nominal 2.5 % by more than luck.
    kept = table[
        (table["method"] == "Welch and Satterthwaite") & (table["promise"] == "these items")
    ]
    assert (kept["said_above"] < 0.035).all()
