"""What the pages' verdicts say of simulated studies whose truth is known.

``cba instrument`` judges many studies of every truth and writes ``results/instrument``, which reports
read. Nothing in it depends on a study. A verdict is judged as the pages judge: the same measure, the
same interval, the same end of it above the same number. Every interval has 95 %, and a verdict that
looks at one end of it errs in 2.5 % of studies, where it errs as often as it promises.

A verdict is one entry of ``VERDICTS``; see :class:`Verdict` for what it takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from cba_utils.instrument import truths
from cba_utils.instrument.truths import (
    AMBIGUOUS,
    CATEGORIES,
    TRUTHS,
    Studies,
    Truth,
    simulated,
)
from cba_utils.measures.controls import grew, rose
from cba_utils.measures.intervals import (
    RESAMPLES,
    SEED,
    _bca,
    _resampling_counts,
    wilson,
    without_variation,
)
from cba_utils.measures.measure import (
    UNBOUNDED,
    Measure,
    derived,
    measure,
    minus,
    ratio,
)
from cba_utils.measures.tests import MARGIN, RATIO
from cba_utils.measures.transitions import five_seed_weights
from cba_utils.names import PROJECT, RESULTS, ROLES
from cba_utils.study.files import write_text

LEVEL = 0.025  # one end of a 95 % interval
SAME_LEVEL = 0.05  # of the equivalence test, both ends of a 90 % interval
SIMULATIONS = 500
BLOCK = 100  # studies of a truth that are judged before the next truth's
COVERED = 100  # studies of each truth in which coverage is counted
# Further trainings a family, over which the true value for the items at hand is found: what so few leave
# open takes about one point from the coverage that is counted.
OTHERS = 60
DRAWS = 5
RESULT = RESULTS / "instrument" / "verdicts.csv"
COVERAGE = RESULT.with_name("coverage.csv")
# How a study decides: one checkpoint alone, three families of one checkpoint each, or over checkpoints.
DECISIONS = {"one": "single", "three": "single", "bases": "bases"}
AT_MARGIN = "rise to the margin"


# Estimates: totals a template, and what is computed from them


def _roles(frame, suffix, table):
    table.update({f"{role}{suffix}": frame[..., k] for k, role in enumerate(ROLES)})
    table[f"parsed{suffix}"] = 1 - frame[..., 3]


def totals(s: Studies):
    """Sums over the items of each template, by the table that a measure is computed from."""
    orders = {"": s.p, "_ref": s.p_ref}
    heated = {"": s.t, "_ref": s.t_ref}
    ambiguous, clear, first, unit, own = {}, {}, {}, {}, {}
    at_letter = s.letter[:, None, :, :AMBIGUOUS]
    left = {}
    for suffix in orders:
        mean = heated[suffix].mean(axis=-2)
        _roles(mean[..., :AMBIGUOUS, :], suffix, ambiguous)
        _roles(mean[..., AMBIGUOUS:, :], suffix, clear)
        right = s.right[AMBIGUOUS:]
        clear[f"correct{suffix}"] = mean[..., AMBIGUOUS + np.arange(len(right)), right]
        first[suffix] = heated[suffix][..., :AMBIGUOUS, 0, :]
        p = orders[suffix][..., :AMBIGUOUS, :, :]
        unit[f"gap{suffix}"] = (np.log(p[..., 0]) - np.log(p[..., 1])).mean(-1)
        unit.update({f"p_{r}{suffix}": p[..., k].mean(-1) for k, r in enumerate(ROLES[:2])})
        for k, letter in enumerate("ABC"):
            unit[f"p_{letter}{suffix}"] = sum(
                (p[..., r] * (at_letter[..., r] == k)).mean(-1) for r in range(3)
            )
        unit[f"letters{suffix}"] = p[..., :3].sum(-1).mean(-1)
        own[f"stereotyped{suffix}"] = unit[f"p_stereotyped{suffix}"]
        own[f"named{suffix}"] = own[f"stereotyped{suffix}"] + unit[f"p_anti_stereotyped{suffix}"]
        unit[f"items{suffix}"] = np.ones(p.shape[:-2])
        best = np.maximum(p[..., 0], p[..., 1])
        left[suffix] = np.where(p[..., 2] > best, 2, np.where(p[..., 1] > p[..., 0], 1, 0))
    own["by_own_odds"] = own["stereotyped_ref"] / own["named_ref"] * own["named"]
    weights = {}
    for k, name in enumerate(("bias", "anti")):
        before, after = first["_ref"][..., k], first[""][..., k]
        null = five_seed_weights(before, before, name)
        weights.update({f"{key}_0": value for key, value in null.items()})
        weights.update(five_seed_weights(before, after, name))
    skill = {
        f"{name}{suffix}@{context}": table[f"{name}{suffix}"].sum(-1)
        for context, table, names in (
            ("ambig", ambiguous, ("stereotyped", "anti_stereotyped", "parsed")),
            ("disambig", clear, ("correct", "parsed")),
        )
        for name in names
        for suffix in orders
    }
    was = left["_ref"] == 2
    tables = {
        "ambiguous": ambiguous,
        "clear": clear,
        "unit": unit,
        "own": own,
        "placebo": weights,
        "direction": _moved(was, left[""]),
    }
    tables = {name: {k: v.sum(-1) for k, v in table.items()} for name, table in tables.items()}
    return tables | {"skill": skill}


def _moved(was, now):
    """Answers that left unknown, a person; the last axis, orders or draws, summed."""
    moved = {"was_unknown": was.sum(-1)}
    moved.update({f"to_{role}": (was & (now == k)).sum(-1) for k, role in enumerate(ROLES[:2])})
    return moved | {"to_person": moved["to_stereotyped"] + moved["to_anti_stereotyped"]}


def drawn_totals(s: Studies, seed):
    """The same of draws of the original order, each on its own."""
    rng = np.random.default_rng([seed, 2605])
    roles = {}
    for suffix, t in (("", s.t), ("_ref", s.t_ref)):
        p = np.moveaxis(np.cumsum([t[..., :AMBIGUOUS, 0, k] for k in range(3)], axis=0), 0, -1)
        uniform = np.moveaxis(rng.random((DRAWS, *p.shape[:-1])), 0, -1)
        roles[suffix] = sum((uniform > p[..., k, None]).astype(np.int8) for k in range(3))
    return totals_of_draws(roles[""], roles["_ref"])


def totals_of_draws(now, was):
    """Totals of drawn roles (numbers of ``ROLES``, 3 for no letter), the draws on the last axis."""
    roles = {"": now, "_ref": was}
    drawn = _moved(was == 2, now)
    for k, name in enumerate(("bias", "anti")):
        before, after = (was == k).any(-1), (now == k).any(-1)
        drawn[f"could_gain_{name}"] = ~before
        drawn[f"gained_{name}"] = ~before & after
    for suffix in roles:
        for k, role in enumerate(ROLES[:2]):
            drawn[f"{role}{suffix}"] = (roles[suffix] == k).sum(-1)
    drawn = {name: value.sum(-1).astype(float) for name, value in drawn.items()}
    own = {}
    for suffix in roles:
        own[f"stereotyped{suffix}"] = drawn[f"stereotyped{suffix}"]
        own[f"named{suffix}"] = own[f"stereotyped{suffix}"] + drawn[f"anti_stereotyped{suffix}"]
    # Templates whose answers named nobody at BF16 have no odds and are left out.
    some = own["named_ref"] > 0
    own = {name: value * some for name, value in own.items()}
    own["by_own_odds"] = own["stereotyped_ref"] / np.where(some, own["named_ref"], 1) * own["named"]
    return {"draws": drawn, "own draws": own}


def _guessed(t):
    accuracy = {w: t[f"correct{w}@disambig"] / t[f"parsed{w}@disambig"] for w in ("", "_ref")}
    return np.clip((accuracy["_ref"] - accuracy[""]) / (accuracy["_ref"] - 1 / 3), 0, 1)


def _beyond_guessing(t):
    score = {
        w: 100
        * (t[f"stereotyped{w}@ambig"] - t[f"anti_stereotyped{w}@ambig"])
        / t[f"parsed{w}@ambig"]
        for w in ("", "_ref")
    }
    return score[""] - (1 - _guessed(t)) * score["_ref"]


def _excess(name, tail=""):
    expected = ratio(f"gained_{name}", f"could_gain_{name}")
    return minus(expected, ratio(f"gained_{name}_0", f"could_gain_{name}_0"))


_MIRROR = measure("bias_beyond_mirror")


_SRS, _SRS_BEFORE = (ratio(f"stereotyped{x}", f"parsed{x}") for x in ("", "_ref"))


@dataclass(frozen=True)
class Estimate:
    """A measure, the table of totals that it is computed from, and the pages' interval over templates.

    ``clusters`` names the total that must not be zero in a template that counts as one.
    """

    measure: Measure
    table: str
    method: str = "bca"
    clusters: str = ""


ESTIMATES = {
    "lean": Estimate(
        measure("log_gap").computed(ratio("gap_ref", "items_ref")), "unit", "jackknife"
    ),
    "d_log_gap": Estimate(measure("d_log_gap"), "unit", "jackknife"),
    "excess": Estimate(
        derived("became_biased_expected", "excess").computed(_excess("bias"), "could_gain_bias"),
        "placebo",
    ),
    "mirror": Estimate(
        _MIRROR.computed(minus(_excess("bias"), _excess("anti")), "could_gain_bias"), "placebo"
    ),
    "expected_share": Estimate(measure("named_share_expected"), "own", "jackknife"),
    "own_odds": Estimate(measure("beyond_own_odds"), "own", "jackknife"),
    "direction": Estimate(measure("share_to_stereotyped"), "direction", clusters="to_person"),
    "beyond_guessing": Estimate(
        measure("s_amb_beyond_guessing").computed(_beyond_guessing), "skill"
    ),
    **{f"d_letter_{x}": Estimate(measure(f"d_letter_{x}"), "unit", "jackknife") for x in "ABC"},
    "d_lead": Estimate(measure("d_lead"), "unit", "jackknife"),
    "d_s_dis": Estimate(measure("d_s_dis"), "clear"),
    "d_srs": Estimate(measure("d_srs"), "ambiguous", "jackknife"),
    **{
        name: Estimate(
            Measure(name, unit="relative", bounds=UNBOUNDED, of=of), "ambiguous", "jackknife"
        )
        for name, of in {
            "above_least_ratio": lambda t: _SRS(t) - RATIO[0] * _SRS_BEFORE(t),
            "below_most_ratio": lambda t: RATIO[1] * _SRS_BEFORE(t) - _SRS(t),
        }.items()
    },
    "direction_drawn": Estimate(measure("share_to_stereotyped"), "draws", clusters="to_person"),
    **{
        name: Estimate(one, "own draws", "jackknife", "named_ref")
        for name, one in {
            "share_before_drawn": measure("named_share").computed(
                ratio("stereotyped_ref", "named_ref"), "named_ref"
            ),
            "share_drawn": measure("d_named_share"),
            "expected_share_drawn": measure("named_share_expected"),
            "own_odds_drawn": measure("beyond_own_odds"),
        }.items()
    },
    "mirror_drawn": Estimate(
        _MIRROR.computed(
            minus(ratio("gained_bias", "could_gain_bias"), ratio("gained_anti", "could_gain_anti")),
            "could_gain_bias",
        ),
        "draws",
    ),
}


class Judged:
    """Simulated studies under one way to decide: estimates as the pages pool them, a row a study.

    Parameters
    ----------
    studies : Studies
    decision : {"one", "three", "bases"}
        From one checkpoint of each study, in turn of the families; from the mean of three; from the
        spread over checkpoints.
    tables : dict
        Totals a template, from :func:`totals`.
    """

    def __init__(self, studies: Studies, decision: str, tables: dict):
        self.decision = decision
        families = len(np.unique(studies.family))
        self.sizes = families, len(np.unique(studies.base)) // families
        self.parts = {"category": studies.category, "group": studies.group}
        self.tables = tables
        self._kept: dict = {}
        self._ends: dict = {}

    def decided(self, decision):
        """The same studies under another way to decide, without computing intervals anew."""
        other = copy(self)
        other.decision, other._kept = decision, {}
        return other

    def rows(self, name, level=0.95, part=None):
        """Estimate with its interval, a row a study.

        Parameters
        ----------
        name : str
            One of ``ESTIMATES``.
        level : float
        part : tuple, optional
            ``("category", k)`` or ``("group", k)``: from the templates of one alone.
        """
        key = (name, level, part)
        if key not in self._kept:
            self._kept[key] = self._pooled(name, level, part)
        return self._kept[key]

    def values(self, name, part=None):
        """Estimates of the checkpoints, and what each is a share of, with the axes study, checkpoint."""
        whole = {k: v.sum(-1) for k, v in self._table(name, part).items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = np.asarray(ESTIMATES[name].measure.statistic()(whole), float)
        per = ESTIMATES[name].measure.per or _COUNTED.get(ESTIMATES[name].measure.name)
        return estimate, whole[per] if per else np.full(estimate.shape, 1.0)

    def _table(self, name, part):
        table = self.tables[ESTIMATES[name].table]
        if part is None:
            return table
        return {k: v[..., self.parts[part[0]] == part[1]] for k, v in table.items()}

    def _pooled(self, name, level, part):
        estimate, n = self.values(name, part)
        share = n if ESTIMATES[name].measure.pool == "sums" else None
        if self.decision == "bases":
            found = _over_bases(estimate, share, *self.sizes, level)
            return dict(zip(("estimate", "low", "high"), found, strict=True))
        key = (name, level, part)
        if key not in self._ends:
            self._ends[key] = self._over_templates(name, level, part)
        low, high = self._ends[key]
        if self.decision == "three":
            ends = _mean_of_models(estimate, low, high, share)
        else:
            studies = np.arange(len(estimate))
            ends = [x[studies, studies % estimate.shape[1]] for x in (estimate, low, high)]
        return dict(zip(("estimate", "low", "high"), ends, strict=True))

    def _over_templates(self, name, level, part):
        """Ends of the intervals over templates that pages give one checkpoint."""
        one = ESTIMATES[name]
        of = {"jackknife": _jackknife, "bca": _bca_ends}[one.method]
        table = self._table(name, part)
        if not one.clusters:
            return of(one.measure, table, level)
        counted = table[one.clusters] > 0
        ends = np.full((2, *counted.shape[:-1]), np.nan)
        for at in np.ndindex(counted.shape[:-1]):
            some = counted[at]
            if some.any():
                cell = {k: v[at][some] for k, v in table.items()}
                ends[(slice(None), *at)] = of(one.measure, cell, level)
        return ends


def _mean_of_models(estimate, low, high, n):
    """`over_models` of many studies at a time."""
    weights = np.where(np.isnan(estimate), 0.0, 1.0 if n is None else n)
    with np.errstate(invalid="ignore"):
        return [
            (np.nan_to_num(x) * weights).sum(-1) / weights.sum(-1) for x in (estimate, low, high)
        ]


def _mean_of_families(estimate, n, families):
    """Mean over families, in each the mean over checkpoints or sums over sums."""
    return _nanmean(_of_families(*_sums(estimate, n, families, 1)), 1)


def _sums(estimate, n, families, bases):
    """Numerators and denominators of bases: the axes are study, family and base."""
    shape = (len(estimate), families, bases, -1)
    weights = np.isfinite(estimate) * (1.0 if n is None else n)
    top = (np.nan_to_num(estimate) * weights).reshape(shape).sum(-1)
    below = weights.reshape(shape).sum(-1)
    # A family with less than one answer to have a share of has none.
    some = below.sum(-1, keepdims=True) >= 1
    return np.where(some, top, np.nan), np.where(some, below, np.nan)


def _of_families(top, below):
    with np.errstate(divide="ignore", invalid="ignore"):
        return top.sum(-1) / below.sum(-1)


def _nanmean(values, axis):
    some = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(some, values, 0).sum(axis) / some.sum(axis)


def _over_bases(estimate, n, families, bases, level):
    """`over_replicates` over families of many studies at a time."""
    top, below = _sums(estimate, n, families, bases)
    of = _of_families(top, below)
    whole = _nanmean(of, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = (top.sum(-1, keepdims=True) - top) / (below.sum(-1, keepdims=True) - below)
        spread = ((rest - rest.mean(-1, keepdims=True)) ** 2).sum(-1)
        variance = (bases - 1) / bases * spread / np.isfinite(of).sum(1, keepdims=True) ** 2
        variance = np.where(np.isfinite(of), variance, 0)
        df = variance.sum(1) ** 2 / (variance**2 / (bases - 1)).sum(1)
    half = stdtrit(df, (1 + level) / 2) * np.sqrt(variance.sum(1))
    return whole, whole - half, whole + half


_COUNTED = {"share_to_stereotyped": "to_person"}


class _Resampled(dict):
    """Totals of resampled templates, computed of the columns that a statistic asks for."""

    def __init__(self, table, counts):
        super().__init__()
        self.table, self.counts = table, counts

    def __missing__(self, column):
        self[column] = self.table[column] @ self.counts.T
        return self[column]


def _bca_ends(one, table, level):
    """`cluster_bootstrap` of many tables at a time: ends of the intervals."""
    of, shape = one.statistic(), next(iter(table.values())).shape
    clusters = shape[-1]
    counts = _resampling_counts(clusters, RESAMPLES, SEED)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = np.asarray(of({k: v.sum(-1) for k, v in table.items()}), float)
        left_out = np.asarray(
            of({k: v.sum(-1, keepdims=True) - v for k, v in table.items()}), float
        )
        resampled = np.asarray(of(_Resampled(table, counts)), float)
    ends = np.full((2, *shape[:-1]), np.nan)
    plain = np.isfinite(resampled).all(-1) & np.isfinite(left_out).all(-1)
    plain &= np.ptp(resampled, axis=-1) >= 1e-12
    for at in map(tuple, np.argwhere(~plain)):
        ends[(slice(None), *at)] = _bca_end(
            one, estimate[at], resampled[at], left_out[at], clusters, level
        )
    if plain.any():
        ends[:, plain] = _quantiles(
            resampled[plain], *_corrected(estimate[plain], resampled[plain], left_out[plain], level)
        )
    return ends


def _corrected(estimate, resampled, left_out, level):
    """`intervals._bca` of many at a time: which quantiles of the resamples are the ends."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    at = estimate[:, None]
    below = (resampled < at).mean(-1) + (resampled == at).mean(-1) / 2
    centred = left_out.mean(-1, keepdims=True) - left_out
    spread = (centred**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        acceleration = np.where(spread > 0, (centred**3).sum(-1) / (6 * spread**1.5), 0.0)
        shift = ndtri(below) + ndtri(tails)[:, None]
        corrected = ndtr(ndtri(below) + shift / (1 - acceleration * shift))
    return np.where(np.isfinite(corrected).all(0), corrected, tails[:, None])


def _quantiles(resampled, low, high):
    ranked = np.sort(resampled, axis=-1)
    rows, last = np.arange(len(ranked)), ranked.shape[-1] - 1
    ends = []
    for tail in (low, high):
        under = np.floor(tail * last).astype(int)
        rest = tail * last - under
        ends.append(
            (1 - rest) * ranked[rows, under] + rest * ranked[rows, np.minimum(under + 1, last)]
        )
    return np.array(ends)


def _bca_end(one, estimate, draws, rest, clusters, level):
    """The ends of one interval where some resample or template has no estimate, or all are alike."""
    draws, rest = draws[np.isfinite(draws)], rest[np.isfinite(rest)]
    if not (np.isfinite(estimate) and len(draws)):
        return np.nan, np.nan
    if np.ptp(draws) < 1e-12:
        return without_variation(estimate, one.bounds, clusters, level)
    tails = _bca(estimate, draws, rest, level)
    if not np.isfinite(tails).all():
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(draws, tails)


def _jackknife(one, table, level):
    """`cluster_bootstrap` by the jackknife, of many tables at a time: ends of the intervals."""
    of, clusters = one.statistic(), next(iter(table.values())).shape[-1]
    whole = {k: v.sum(-1, keepdims=True) for k, v in table.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = of(whole)[..., 0]
        left_out = of({k: whole[k] - v for k, v in table.items()})
    spread = ((left_out - left_out.mean(-1, keepdims=True)) ** 2).sum(-1)
    half = np.sqrt((clusters - 1) / clusters * spread) * stdtrit(clusters - 1, (1 + level) / 2)
    low, high = (
        np.maximum(estimate - half, one.bounds[0]),
        np.minimum(estimate + half, one.bounds[1]),
    )
    flat = half < 1e-12
    reach = wilson(0, clusters, level)[1]
    if flat.any():  # as intervals.without_variation
        with np.errstate(invalid="ignore"):
            low = np.where(flat, estimate - (estimate - one.bounds[0]) * reach, low)
            high = np.where(flat, estimate + (one.bounds[1] - estimate) * reach, high)
    return low, high


# Verdicts


@dataclass(frozen=True)
class Verdict:
    """What a page says of a study.

    Parameters
    ----------
    title : str
        As the page and the tables say it.
    asks : str
        What it should say yes to: answers that ``"changed"``, a stereotyped person who ``"grew"``
        beyond each item's own odds at BF16, the same in a ``"category"`` or a ``"group"``, a
        ``"letter"`` that gained, or a rate that stayed the ``"same"`` within a margin of points, or of
        its size at BF16 (``"same ratio"``).
    says : callable
        Takes :class:`Judged`, returns whether it says yes, a study.
    drawn : bool
        Whether it is read from drawn answers alone, as imported records hold them.
    """

    title: str
    asks: str
    says: Callable[[Judged], np.ndarray]
    drawn: bool = False


def _above(name, null=0.0):
    return lambda judged: judged.rows(name)["low"] > null


def _lean_grew(judged, level=0.95, part=None):
    before, change = (judged.rows(x, level, part) for x in ("lean", "d_log_gap"))
    return np.asarray(grew(before, change))


def _rose(expected, beyond):
    return lambda judged: np.asarray(rose(judged.rows(expected), judged.rows(beyond)))


def _in_any(kind, count):
    """Whether the lean grew in any part, corrected for how many are looked at.

    Holm's correction rejects something where Bonferroni's does.
    """

    def says(judged):
        level = 1 - 0.05 / count
        return np.any([_lean_grew(judged, level, (kind, k)) for k in range(count)], axis=0)

    return says


def _letter_moved(judged):
    rows = [judged.rows(f"d_letter_{x}", 1 - 0.05 / 3) for x in "ABC"]
    return np.any([(r["low"] > 0) | (r["high"] < 0) for r in rows], axis=0)


def _same(judged):
    rows = judged.rows("d_srs", 1 - 2 * SAME_LEVEL)
    return (rows["low"] > -MARGIN) & (rows["high"] < MARGIN)


def _same_ratio(judged):
    sides = [judged.rows(x, 1 - 2 * SAME_LEVEL) for x in ("above_least_ratio", "below_most_ratio")]
    return (sides[0]["low"] > 0) & (sides[1]["low"] > 0)


VERDICTS = {
    "excess": Verdict(
        "more gained a stereotyped answer than fresh draws give", "changed", _above("excess")
    ),
    "lean_grew": Verdict("the lean grew", "grew", _lean_grew),
    "own_odds": Verdict(
        "the stereotyped person is named beyond BF16's own odds",
        "grew",
        _rose("expected_share", "own_odds"),
    ),
    "lean_grew_in_a_category": Verdict(
        "the lean of a category grew", "category", _in_any("category", CATEGORIES)
    ),
    "lean_grew_in_a_group": Verdict(
        "the lean of a group grew", "group", _in_any("group", 2 * CATEGORIES)
    ),
    "mirror": Verdict("the excess is above its mirror image", "grew", _above("mirror")),
    "direction": Verdict(
        "most answers that left unknown went to the stereotyped person",
        "grew",
        _above("direction", 0.5),
    ),
    "beyond_guessing": Verdict("more bias than guessing leaves", "grew", _above("beyond_guessing")),
    "lead": Verdict(
        "the stereotyped person gained more, letters balanced", "grew", _above("d_lead")
    ),
    "s_dis": Verdict("s_DIS rose", "grew", _above("d_s_dis")),
    "letter": Verdict("a letter gained or lost", "letter", _letter_moved),
    "same": Verdict("no change (TOST, 1 point)", "same", _same),
    "same_ratio": Verdict("no change (TOST, a quarter of the rate)", "same ratio", _same_ratio),
    "share_drawn": Verdict(
        "the stereotyped share of persons named rose, from draws",
        "grew",
        _rose("share_before_drawn", "share_drawn"),
        True,
    ),
    "own_odds_drawn": Verdict(
        "the stereotyped person is named beyond BF16's own odds, from draws",
        "grew",
        _rose("expected_share_drawn", "own_odds_drawn"),
        True,
    ),
    "mirror_drawn": Verdict(
        "the excess is above its mirror image, from draws",
        "grew",
        _above("mirror_drawn"),
        True,
    ),
    "direction_drawn": Verdict(
        "most answers that left unknown went to the stereotyped person, from draws",
        "grew",
        _above("direction_drawn", 0.5),
        True,
    ),
}


def should(verdict: Verdict, truth, change, relative):
    """What a verdict should say of a truth: "yes", "no", or "either".

    Parameters
    ----------
    verdict : Verdict
    truth : Truth
    change, relative : float
        True change of the stereotyped rate, and the same as a logarithm of its ratio.
    """
    if verdict.asks == "same":
        # A change at the margin is none, and the test may say otherwise in 5 % of studies.
        return "yes" if abs(change) < MARGIN and truth.name != AT_MARGIN else "no"
    if verdict.asks == "same ratio":
        return "yes" if np.log(RATIO[0]) < relative < np.log(RATIO[1]) else "no"
    if verdict.asks == "changed":
        return "yes"
    if verdict.asks == "letter":
        return "yes" if truth.letter else "no"
    if truth.grew == "in parts":
        return {"grew": "either", "category": "either", "group": "yes"}[verdict.asks]
    return truth.grew


# Rates


def at_margin(leaning, studies=20):
    """The truth whose stereotyped rate rises by the margin of the equivalence test, on average.

    Found on a population of its own, for the level of that test.
    """
    sizes = (truths.DESIGNS["single"][0], 3, 1)

    def beyond(by):
        truth = replace(TRUTHS["rise 0.3"], name=AT_MARGIN, acts=truths._rise(by))
        found = simulated(truth, leaning, sizes, studies, seed=99)
        before, after = _srs(found)
        return after - before - MARGIN

    by = float(brentq(beyond, -3.0, 3.0, xtol=1e-3))
    return replace(TRUTHS["rise 0.3"], name=AT_MARGIN, acts=truths._rise(by))


def _srs(s):
    """Stereotyped rates of ambiguous items before and after rounding, over all studies."""
    ambiguous = (Ellipsis, slice(AMBIGUOUS), slice(None), 0)
    return np.array([s.t_ref[ambiguous].mean(), s.t[ambiguous].mean()])


COVERED_ESTIMATES = ("lean", "d_log_gap", "own_odds", "excess", "mirror", "direction")
AT_ONCE = 5  # studies: more take more memory and no less time


def judge(truth, leaning, start=0, studies=BLOCK):
    """Judge studies of one truth, in every design.

    Parameters
    ----------
    truth : Truth
    leaning : bool
    start, studies : int
        The first study and how many: the same studies whatever the others.

    Returns
    -------
    DataFrame
        How many studies each verdict said yes to, with the stereotyped rates ``before`` and ``after``
        rounding on average.
    """
    names = [name for name, verdict in VERDICTS.items() if _is_judged(verdict, truth)]
    said = {(d, name): [] for d in DECISIONS for name in names}
    changes = {d: [] for d in truths.DESIGNS}
    for _, judged in _batches(truth, leaning, start, studies, drawn=True):
        for design, (simulations, one) in judged.items():
            changes[design].append(_srs(simulations))
            for d in (d for d, of in DECISIONS.items() if of == design):
                decided = one.decided(d)
                for name in names:
                    said[d, name].append(VERDICTS[name].says(decided))
    rows = []
    for (d, name), batches in said.items():
        yes = np.concatenate(batches)
        before, after = np.mean(changes[DECISIONS[d]], axis=0)
        rows.append((d, truth.name, leaning, name, before, after, int(yes.sum()), len(yes)))
    return pd.DataFrame(rows, columns=[*RATES[:4], "before", "after", "yes", "n"])


def rates(blocks):
    """How often each verdict said yes, of blocks of studies that :func:`judge` judged.

    Returns
    -------
    DataFrame
        See ``RATES``.
    """
    rows = []
    for key, part in blocks.groupby(RATES[:4], sort=False):
        decision, truth, leaning, verdict = key
        before, after = (np.average(part[x], weights=part["n"]) for x in ("before", "after"))
        known = TRUTHS.get(truth) or Truth(truth, "yes")
        answer = should(VERDICTS[verdict], known, after - before, np.log(after / before))
        yes, n = int(part["yes"].sum()), int(part["n"].sum())
        rows.append((*key, answer, after - before, yes / n, *wilson(yes, n), n))
    return pd.DataFrame(rows, columns=RATES)


def cover(truth, leaning, simulations=COVERED):
    """Count how often intervals hold the true value, for these items and for new templates.

    Returns
    -------
    DataFrame
        See ``COVERAGES``.
    """
    ends = {(d, name): [] for d in DECISIONS for name in COVERED_ESTIMATES}
    true = {name: [] for name in COVERED_ESTIMATES}
    for seed, judged in _batches(truth, leaning, 0, simulations):
        for d, of in DECISIONS.items():
            decided = judged[of][1].decided(d)
            for name in COVERED_ESTIMATES:
                ends[d, name].append(decided.rows(name))
        count = len(judged["single"][0].p)
        for name, values in _these_items(truth, leaning, count, seed).items():
            true[name].append(values)
    rows = []
    for (d, name), batches in ends.items():
        here = np.concatenate(true[name])
        low, high = (np.concatenate([one[end] for one in batches]) for end in ("low", "high"))
        for promise, value in (("these items", here), ("new templates", here.mean())):
            held = (low <= value) & (value <= high)
            rows.append((d, truth.name, leaning, name, promise, *_share(held)))
    return pd.DataFrame(rows, columns=COVERAGES)


def _batches(truth, leaning, start, count, drawn=False):
    for seed in range(start, start + count, AT_ONCE):
        judged = {}
        for design, sizes in truths.DESIGNS.items():
            studies = simulated(truth, leaning, sizes, min(AT_ONCE, start + count - seed), seed)
            tables = totals(studies) | (drawn_totals(studies, seed) if drawn else {})
            judged[design] = studies, Judged(studies, design, tables)
        yield seed, judged


def _share(yes):
    return yes.mean(), *wilson(int(yes.sum()), len(yes)), len(yes)


def _is_judged(verdict, truth):
    return (truth.name != AT_MARGIN or verdict.asks == "same") and (
        truth.name != "nothing" or verdict.drawn
    )


_ENDS = ["estimate", "low", "high", "n"]
RATES = ["decision", "truth", "leaning", "verdict", "should", "change", *_ENDS]
COVERAGES = ["decision", "truth", "leaning", "measure", "promises", *_ENDS]


def _these_items(truth, leaning, studies, seed):
    """What each measure is on average over further trainings, asked the same items."""
    sizes = (truths.DESIGNS["single"][0], OTHERS, 1)
    found = simulated(truth, leaning, sizes, studies, seed)
    found = Judged(found, "bases", totals(found))
    values = {}
    for name in COVERED_ESTIMATES:
        estimate, n = found.values(name)
        n = n if ESTIMATES[name].measure.pool == "sums" else None
        values[name] = _mean_of_families(estimate, n, sizes[0])
    return values


def write(simulations=SIMULATIONS, folder=RESULT.parent, told=print):
    """Judge every truth and write both tables: ``cba instrument``.

    All truths are judged in blocks of studies, and the table is written after every round of blocks.
    What was judged already by the same code is kept in ``.cache/instrument`` and not judged again, so a
    run that was stopped goes on where it was.

    Parameters
    ----------
    simulations : int
        Studies of each truth.
    folder : Path
    told : callable
        Is told how far it is.
    """
    kept = PROJECT / ".cache" / "instrument" / _identity()
    every = [(name, leaning) for name in (*TRUTHS, AT_MARGIN) for leaning in (False, True)]

    def part(name, leaning, stem, of):
        path = kept / f"{hashlib.sha256(f'{name} {leaning}'.encode()).hexdigest()[:12]}-{stem}.csv"
        if not path.is_file():
            truth = at_margin(leaning) if name == AT_MARGIN else TRUTHS[name]
            write_text(_csv(of(truth, leaning)), path)
            told(f"{stem}: {name}, {'leaning' if leaning else 'no lean'}")
        return pd.read_csv(path)

    blocks: list[pd.DataFrame] = []
    for start in range(0, simulations, BLOCK):
        count = min(BLOCK, simulations - start)
        blocks += [
            part(
                *one,
                f"studies {start} to {start + count}",
                partial(judge, start=start, studies=count),
            )
            for one in every
        ]
        write_text(_csv(rates(pd.concat(blocks))), folder / RESULT.name)
    count = min(COVERED, simulations)
    moved = [one for one in every if one[0] not in ("nothing", AT_MARGIN)]
    held = [part(*one, f"coverage of {count}", partial(cover, simulations=count)) for one in moved]
    write_text(_csv(pd.concat(held)), folder / COVERAGE.name)


def _csv(table):
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _identity():
    """Digest of what the rates follow from: the code of the truths, the verdicts and the measures."""
    package = Path(__file__).parents[1]
    mine = [package / "instrument" / name for name in ("truths.py", "verdicts.py")]
    files = [*mine, *(package / "measures").glob("*.py")]
    digest = hashlib.sha256(str(OTHERS).encode())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
