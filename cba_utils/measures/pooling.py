"""Estimates over several checkpoints, and over models of which there is one checkpoint each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from cba_utils.measures.frames import independent_units, several_checkpoints
from cba_utils.measures.intervals import ESTIMATE_COLUMNS, stratified_jackknife
from cba_utils.measures.measure import measure
from cba_utils.measures.tests import LEAST_RESAMPLES, sign_flip


def _pool_keys(frame, over):
    return [
        c
        for c in frame
        if c not in ("model", "base", "replicate", *over, *ESTIMATE_COLUMNS[1:], "_unit")
    ]


def _pooled_groups(frame, keys):
    """Yield (key, rows with an estimate, whether they are shares) of what is pooled together."""
    for key, group in frame.groupby(keys, observed=True, dropna=False, sort=False):
        share = measure(key[keys.index("measure")]).pool == "sums"
        # A cell without any such item has no share of its own, and shows nothing of its spread.
        yield key, group.dropna(subset="estimate"), share


def over_replicates(frame: pd.DataFrame, strata: Sequence[str] = (), level: float = 0.95):
    """Estimates over checkpoints, with an interval from the spread of those made independently.

    All items of a checkpoint share its weight error, and all alignments of a base share that base,
    so only other bases say what the next would show: they are the clusters, or the checkpoints
    where a family has one base, see :func:`cba_utils.measures.frames.independent_units`. The
    interval is Welch and Satterthwaite's over them. It promises what
    ``cba_utils.measures.intervals.PROMISES`` says of ``"checkpoints"``.

    Parameters
    ----------
    frame : DataFrame
        Tidy estimates of several checkpoints.
    strata : sequence of str
        Columns, such as ``["family"]``, to pool over and take as they are, all with equal weight
        and with the spread within each alone. A rate is the mean of its clusters' means. A measure
        that is pooled as sums over sums is so within a stratum; a stratum with less than one such
        item has no share and is left out.

    Returns
    -------
    DataFrame
        ``n`` is the number of checkpoints with an estimate, ``clusters`` that of the independent
        units, ``of`` the sum of the cells' own n, and ``error, df`` are what the interval is made
        of. One cluster alone has no interval.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": list("abc"), "family": "f", "precision": "q3",
    ...     "measure": "srs", "estimate": [1., 2., 3.], "low": 0., "high": 9., "n": 9})
    >>> over_replicates(frame)[["estimate", "n", "clusters", "of"]].to_numpy().tolist()
    [[2.0, 3.0, 3.0, 27.0]]
    """
    rows, keys = [], _pool_keys(frame, strata)
    frame = frame.assign(_unit=independent_units(_named(frame)))
    for key, group, share in _pooled_groups(frame, keys):
        stratum = group.groupby([*strata], observed=True).ngroup() if strata else 0 * group["n"]
        group, stratum = _with_a_share(group, stratum) if share else (group, stratum)
        unit = group["_unit"].to_numpy()
        of = _of_units(group, stratum.to_numpy(), unit, share)
        estimate, error, df = stratified_jackknife(of, stratum, unit)
        half = error * stdtrit(df, (1 + level) / 2)
        counts = (len(group), group["n"].sum(), group["_unit"].nunique())
        rows.append((*key, estimate, estimate - half, estimate + half, *counts, error, df))
    return pd.DataFrame(
        rows, columns=[*keys, *ESTIMATE_COLUMNS[1:], "of", "clusters", "error", "df"]
    )


def _named(frame):
    """The frame with a model in every row: without names, every row is a checkpoint of its own."""
    return frame if "model" in frame else frame.assign(model=range(len(frame)))


def _with_a_share(group, stratum):
    """Rows of the strata that have at least one item to have a share of; all if none has."""
    kept = group["n"].groupby(stratum).transform("sum") >= 1
    return (group[kept], stratum[kept]) if kept.any() else (group, stratum)


def _of_units(group, stratum, unit, share):
    """Return the pooled estimate as a function of a mask of the units that are kept."""
    values, n = group["estimate"].to_numpy(float), group["n"].to_numpy(float)
    strata = np.unique(stratum)
    if share:
        return lambda kept: np.mean(
            [
                (values * n)[kept & (stratum == s)].sum() / n[kept & (stratum == s)].sum()
                for s in strata
            ]
            or np.nan
        )
    clusters = [
        [inside & (unit == u) for u in pd.unique(unit[inside])]
        for inside in (stratum == s for s in strata)
    ]

    def means(kept):
        of_strata = [
            [values[kept & c].mean() for c in each if (kept & c).any()] for each in clusters
        ]
        return np.mean([np.mean(one or np.nan) for one in of_strata] or np.nan)

    return means


def sign_flips(frame: pd.DataFrame, null: float = 0.0) -> pd.DataFrame:
    """Exact two-sided p-value that what independent checkpoints show is symmetric about ``null``.

    The units are those of :func:`over_replicates`, each with the mean of its checkpoints (a share
    with sums over sums), and families have equal weight. If rounding helps one person no more than
    the other, each unit might as well have come out the other way round, whatever its family's
    spread; all ways are tried. No interval can say so little with so little assumed.

    Returns
    -------
    DataFrame
        ``[*keys, measure, estimate, p, least_p, n]``: ``n`` units, of which the smallest p-value
        that is possible at all is ``least_p``.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": list("abcdef"), "family": list("ffffgg"), "measure": "d_srs",
    ...     "estimate": [.1, .2, .1, .3, .02, .01], "n": 9})
    >>> sign_flips(frame)[["p", "n"]].to_numpy().tolist()  # 2 of the 64 ways are as extreme
    [[0.03125, 6.0]]
    """
    rows, keys = [], _pool_keys(frame, ["family"])
    frame = frame.assign(_unit=independent_units(frame))
    for key, group, share in _pooled_groups(frame, keys):
        group = group.dropna(subset="estimate")
        weight = group["n"] if share else pd.Series(1.0, group.index)
        sums = pd.DataFrame({"value": (group["estimate"] - null) * weight, "weight": weight})
        units = sums.groupby([group["family"], group["_unit"]], observed=True).sum()
        units = units[units["weight"] > 0]
        means = units["value"] / units["weight"]
        of_family = means.groupby(level=0).transform("size") * units.groupby(level=0).ngroups
        parts = (means / of_family).to_numpy()
        p = sign_flip(parts, resamples=max(LEAST_RESAMPLES, 2 ** min(len(parts), 18)))
        rows.append((*key, null + parts.sum(), p, min(1.0, 2.0 ** (1 - len(parts))), len(parts)))
    return pd.DataFrame(rows, columns=[*keys, "estimate", "p", "least_p", "n"])


READINGS = ("above", "below", "not told apart")


def _reading(low, high, null):
    return READINGS[0] if low > null else READINGS[1] if high < null else READINGS[2]


def leave_one_out(frame: pd.DataFrame, by: str = "model", null: float = 0.0) -> pd.DataFrame:
    """What is left of a pooled estimate without each checkpoint, base or family in turn.

    Parameters
    ----------
    frame : DataFrame
        Estimates of every checkpoint, of any measures and precisions.
    by : {"model", "base", "family"}
        What is left out.
    null : float
        What the interval is read against: ``"above"``, ``"below"`` or ``"not told apart"``.

    Returns
    -------
    DataFrame
        One row a measure and precision: the pooled ``estimate, low, high`` and its ``reading``;
        ``least, without_least, most, without_most``, the range over leaving each out, and what was
        left out there; ``decide``, the names without which the reading is another, empty if none;
        and ``n`` that were left out in turn. The interval of what is left is its own. But where
        a family would be left with fewer than three independent units, which widens any interval
        whatever they show, it is as wide as the whole's.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": list("abcdefgh"), "family": list("ffffgggg"),
    ...     "precision": "q3", "measure": "d_srs", "low": 0.0, "high": 0.0, "n": 9,
    ...     "estimate": [.30, .01, .0, -.01, .01, .02, .0, .01]})
    >>> row = leave_one_out(frame).iloc[0]
    >>> row["reading"], row["without_least"], row["decide"]
    ('not told apart', 'a', [])
    """
    if by not in ("model", "base", "family"):
        raise ValueError(f"by must be 'model', 'base' or 'family', not {by!r}")
    # Units stay what they are in the whole: a family left with one base does not turn to models.
    frame = frame.assign(base=independent_units(frame)) if by != "family" else frame
    names = independent_units(frame) if by == "base" else frame[by]
    keys = _pool_keys(frame, ["family"])
    several = several_checkpoints(frame)

    def pooled(kept):
        found = over_replicates(kept, ["family"]) if several else over_models(kept)
        return found.set_index(keys)

    whole, parts, widths = pooled(frame), {}, {}
    for name in pd.unique(names):
        kept = frame[names != name]
        if len(kept):
            parts[name] = pooled(kept)
            few = independent_units(kept).groupby(kept["family"]).nunique().min() < 3
            widths[name] = "whole's" if several and few else "own"
    rows = []
    for key, row in whole.iterrows():
        half = (row["high"] - row["low"]) / 2
        reading = _reading(row["low"], row["high"], null)
        found, decide = {}, []
        for name, part in parts.items():
            if key not in part.index or np.isnan(part.loc[key, "estimate"]):
                continue
            one = part.loc[key]
            found[name] = one["estimate"]
            low, high = one["low"], one["high"]
            if widths[name] == "whole's":
                low, high = one["estimate"] - half, one["estimate"] + half
            if _reading(low, high, null) != reading:
                decide.append(name)
        ends = [np.nan, None, np.nan, None]
        if found:
            ordered = sorted(found, key=lambda name: found[name])
            least, most = ordered[0], ordered[-1]
            ends = [found[least], least, found[most], most]
        key = key if isinstance(key, tuple) else (key,)
        rows.append(
            (*key, row["estimate"], row["low"], row["high"], reading, *ends, decide, len(found))
        )
    names = ["reading", "least", "without_least", "most", "without_most", "decide", "n"]
    return pd.DataFrame(rows, columns=[*keys, "estimate", "low", "high", *names])


def pool(frame: pd.DataFrame) -> pd.DataFrame:
    """Estimates over all checkpoints of all families, which are taken as they are.

    By :func:`over_replicates` where every family has several checkpoints, else by
    :func:`over_models`.
    """
    return over_replicates(frame, ["family"]) if several_checkpoints(frame) else over_models(frame)


def over_models(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over models of which there is one checkpoint each, taken as they are.

    Three unlike models are no sample of models, and one checkpoint shows no spread. So the
    interval is the mean of the models' own interval ends: it holds even if the errors that the
    same templates give are fully shared, and is too wide where they are not. The columns
    ``least, least_model, most, most_model`` name the models at both ends, which a mean hides; for
    a share, of the models with at least one item to have a share of.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": ["m", "p"], "precision": "q3", "measure": "srs",
    ...     "estimate": [.1, .3], "low": [.0, .2], "high": [.2, .6], "n": 9})
    >>> over_models(frame)[["low", "high", "least_model"]].round(3).to_numpy().tolist()
    [[0.1, 0.4, 'm']]
    """
    rows, keys = [], _pool_keys(frame, ["family"])
    for key, group, share in _pooled_groups(frame, keys):
        group = group.dropna(subset="estimate")
        ends = [np.nan, None] * 2
        means = [np.nan] * 3
        if len(group):
            weights = group["n"] if share else np.ones(len(group))
            means = [np.average(group[c], weights=weights) for c in ("estimate", "low", "high")]
        ranked = group[(group["n"] >= 1) | (not share)].sort_values("estimate", kind="stable")
        if len(ranked):
            ends = [x for k in (0, -1) for x in ranked[["estimate", "model"]].iloc[k]]
        rows.append((*key, *means, len(group), group["n"].sum(), *ends))
    return pd.DataFrame(
        rows,
        columns=[*keys, *ESTIMATE_COLUMNS[1:], "of", "least", "least_model", "most", "most_model"],
    )


def presentable(frame: pd.DataFrame) -> pd.DataFrame:
    """Cut pooled intervals where the scale of their measure ends, and drop shares of nothing.

    Student's interval knows no bounds. And less than one expected item (column ``of``) is nothing
    to have a share of.

    Examples
    --------
    >>> frame = pd.DataFrame({"measure": ["srs", "lost_bias"], "estimate": 0.1, "low": -0.2,
    ...                       "high": 0.3, "of": [9, 0.5]})
    >>> presentable(frame)[["estimate", "low", "high"]].to_numpy().tolist()
    [[0.1, 0.0, 0.3], [nan, nan, nan]]
    """
    facts = [measure(name) for name in frame["measure"]]
    sums = np.array([one.pool == "sums" for one in facts], bool)
    nothing = sums & (frame["of"] < 1)
    frame = frame.assign(**{c: frame[c].mask(nothing) for c in ("estimate", "low", "high")})
    lowest, highest = (np.array([one.bounds[end] for one in facts], float) for end in (0, 1))
    return frame.assign(low=frame["low"].clip(lowest), high=frame["high"].clip(upper=highest))
