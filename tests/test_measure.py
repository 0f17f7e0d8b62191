"""A measure is told of in one place: its registration."""

from cba_utils.instrument.respondents import simulate_study
from cba_utils.measures import measure as register
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import Measure, derived, known, measure, ratio
from cba_utils.measures.pooling import over_models, over_replicates, presentable
from cba_utils.measures.rates import paired_differences, role_rates
from cba_utils.telling import drawing as figures

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def registered(monkeypatch):
    """Register measures for one test."""
    known()
    monkeypatch.setattr(register, "_KNOWN", dict(register._KNOWN))
    return register.register


@pytest.fixture(scope="module")
def samples():
    return simulate_study("bias", templates=6, precisions=["bf16", "q3"], replicates=3)["samples"]


def test_a_measure_on_a_page_is_one_registration(registered, samples):
    registered(
        Measure(
            "refused",
            "Any answer but a person, %",
            group="rates",
            pool="sums",
            of=lambda t: (t["unknown"] + t["unparsed"]) / t["draws"],
        )
    )
    rates = role_rates(samples)
    wide = rates.pivot(index=["model", "precision"], columns="measure", values="estimate")
    by_hand = wide["usr"] * (1 - wide["unparsed_rate"]) + wide["unparsed_rate"]
    np.testing.assert_allclose(wide["refused"], by_hand)
    changes = paired_differences(samples).set_index(["model", "measure"])["estimate"]
    since = wide["refused"].unstack()
    np.testing.assert_allclose(
        changes.xs("d_refused", level="measure"), since["q3"] - since["bf16"]
    )
    assert measure("d_refused").bounds == (-1, 1)
    pooled = presentable(over_replicates(rates))
    row = pooled[pooled["measure"] == "refused"]
    assert len(row) == 2 and row["low"].ge(0).all() and row["high"].le(1).all()
    (axes,) = figures.dose_response(pooled, ["refused"]).axes
    assert axes.get_title(loc="left") == "Any answer but a person, %"


def frame(name, estimate, low, high, n=9):
    return pd.DataFrame(
        {
            "model": ["a", "b"],
            "precision": "q3",
            "measure": name,
            "estimate": estimate,
            "low": low,
            "high": high,
            "n": n,
        }
    )


@pytest.mark.parametrize(
    ("bounds", "ends"),
    [
        ((0.0, 1.0), (0.0, 1.0)),
        ((-1.0, 1.0), (-1.0, 1.0)),
        ((-np.inf, np.inf), (-2.0, 2.0)),
        ((0.0, np.inf), (0.0, 2.0)),
    ],
)
def test_intervals_end_where_the_scale_of_their_measure_ends(registered, bounds, ends):
    registered(Measure("refused", bounds=bounds))
    row = presentable(over_models(frame("refused", 0.5, -2.0, 2.0))).iloc[0]
    assert (row["low"], row["high"]) == ends


@pytest.mark.parametrize(("pool", "mean"), [("mean", 0.5), ("sums", 0.9)])
def test_a_measure_says_how_it_is_pooled(registered, pool, mean):
    registered(Measure("refused", pool=pool))
    cells = frame("refused", [0.0, 1.0], 0.0, 1.0, [1, 9])
    assert over_models(cells)["estimate"].item() == pytest.approx(mean)
    assert over_replicates(cells.assign(replicate=[1, 2]))["estimate"].item() == pytest.approx(mean)


def test_a_measure_that_nobody_registered_is_an_error_and_not_a_guess(registered):
    with pytest.raises(KeyError, match="no measure is named 'd_gap'.*register"):
        presentable(over_models(frame("d_gap", 0.5, -2.0, 2.0)))
    with pytest.raises(ValueError, match="two measures are named 'srs'"):
        registered(Measure("srs", "another"))
    with pytest.raises(ValueError, match="kind is 'excess' and base is None"):
        Measure("over", kind="excess")
    table = pd.DataFrame({"template_id": ["a", "b"], "k": 1.0})
    with pytest.raises(ValueError, match="'became_anti' is no function of totals"):
        estimates(table, [measure("became_anti")], ["k"])


def test_what_derives_from_a_measure_is_found_by_what_it_is():
    assert derived("became_biased_expected", "placebo") == measure("became_biased_placebo")
    assert derived("s_amb_if_guessing", "excess") == measure("s_amb_beyond_guessing")
    assert measure("became_biased").mirror == "became_anti"
    with pytest.raises(KeyError, match="no placebo.*'srs'"):
        derived("srs", "placebo")


def test_every_derived_measure_names_one_that_is_registered():
    for one in known():
        assert one.base is None or measure(one.base)
        assert one.mirror is None or measure(one.mirror)
        assert one.bounds[0] < one.bounds[1]


def test_a_statistic_may_be_given_when_it_is_computed():
    table = pd.DataFrame({"template_id": ["a", "b", "b"], "k": [1.0, 0, 0], "n": 1.0})
    found = estimates(table, [measure("became_biased").computed(ratio("k", "n"), "k")], ["k", "n"])
    assert found[["measure", "estimate", "n"]].to_numpy().tolist() == [["became_biased", 1 / 3, 1]]


def test_a_scale_ends_where_its_unit_does_and_that_of_a_change_is_symmetric():
    inf = float("inf")
    free = {(0.0, inf), (-inf, inf)}  # factors and sizes, and what can be below nothing
    ends = {
        "share": {(0.0, 1.0), (-1.0, 1.0), (-2.0, 2.0), (-inf, inf)},
        "score": {(-100.0, 100.0), (-200.0, 200.0)},
        "relative": {(-1.0, inf)},
        "ratio": free,
        "log odds": free,
    }
    for one in known():
        low, high = one.bounds
        assert one.unit not in ends or one.bounds in ends[one.unit], one.name
        assert one.kind not in ("change", "excess", "beyond", "net") or low == -high, one.name
