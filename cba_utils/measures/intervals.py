"""Intervals that respect how the items were made.

Items made from one template share its wording, so they are not independent draws, and the
five draws of one item are less so. Every interval over items therefore resamples whole
templates. Wilson's interval is for the rare case of truly independent draws, and Student's over
strata for independently trained checkpoints.

What an interval promises depends on what it resamples, see ``PROMISES``: one over checkpoints
holds for the items that were asked, one over templates for the checkpoint that was asked.
``benchmarks/intervals.csv`` has the coverage of both, for both.

A statistic here is a function of *totals* (sums over items), for example
``stereotyped / parsed``. Sums over resampled templates are one matrix product of the resampling
counts with the sums of each template, so thousands of resamples cost milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri, stdtrit

from cba_utils.measures.measure import Measure

LEVEL = 0.95
RESAMPLES = 2000
SEED = 2605
# What an interval speaks about, by what it is over.
PROMISES = {
    "checkpoints": "further checkpoints made alike, asked these items",
    "templates": "these checkpoints, asked items from further templates like these",
}
ESTIMATE_COLUMNS = ["measure", "estimate", "low", "high", "n"]


def wilson(successes, n, level: float = LEVEL):
    """Wilson's interval of a proportion, for independent draws only.

    Examples
    --------
    >>> low, high = wilson(0, 100)
    >>> round(float(high), 4)
    0.037
    """
    # Imported here: run notebooks start twice as fast without statsmodels.
    from statsmodels.stats.proportion import proportion_confint

    return proportion_confint(successes, n, alpha=1 - level, method="wilson")


def stratified_jackknife(of: Callable[[np.ndarray], float], strata, clusters=None):
    """Estimate, standard error and degrees of freedom of a statistic over units in strata.

    The strata are taken as they are: only the spread within a stratum counts. Every stratum has a
    variance of its own, and the degrees of freedom are Welch and Satterthwaite's, so that one
    stratum that spreads widely is not lent the others' degrees of freedom. A stratum of one cluster
    shows no spread, and then there is no error (NaN).

    Parameters
    ----------
    of : callable
        Takes a mask of the units that are kept and returns the statistic of these.
    strata : array-like
        The stratum of each unit.
    clusters : array-like, optional
        The cluster of each unit, left out as a whole; by default every unit is its own.

    Returns
    -------
    estimate, error, df : float

    Examples
    --------
    >>> values, strata = np.array([1.0, 3.0, 10.0, 14.0]), np.array(list("aabb"))
    >>> means = lambda kept: np.mean([values[kept & (strata == s)].mean() for s in "ab"])
    >>> estimate, error, df = stratified_jackknife(means, strata)
    >>> round(float(error**2), 3), round(float(df), 3)  # (1 + 4) / 4, and 5**2 / (1**2 + 4**2)
    (1.25, 1.471)
    """
    stratum, labels = pd.factorize(np.asarray(strata))
    units = np.arange(len(stratum)) if clusters is None else clusters
    cluster = pd.MultiIndex.from_arrays([stratum, units]).factorize()[0]
    whole = np.ones(len(stratum), bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(of(whole)) if len(stratum) else np.nan
        of_cluster = stratum[np.unique(cluster, return_index=True)[1]]
        sizes = np.bincount(of_cluster, minlength=len(labels))
        if not len(stratum) or sizes.min() < 2:
            return estimate, np.nan, np.nan
        left_out = np.array([of(cluster != k) for k in range(len(of_cluster))], float)
        centre = (np.bincount(of_cluster, left_out) / sizes)[of_cluster]
        variances = (sizes - 1) / sizes * np.bincount(of_cluster, (left_out - centre) ** 2)
        variance = variances.sum()
        spread = (variances**2 / (sizes - 1)).sum()
        df = variance**2 / spread if spread > 0 else float((sizes - 1).sum())
    return estimate, float(np.sqrt(variance)), float(df)


def stratified_interval(of: Callable[[np.ndarray], float], strata, clusters=None, level=LEVEL):
    """Estimate with Student's interval from :func:`stratified_jackknife`.

    Chosen by coverage, see ``benchmarks/intervals.py`` and its table.

    Examples
    --------
    >>> values = np.array([1.0, 2.0, 3.0, 6.0])
    >>> found = stratified_interval(lambda kept: values[kept].mean(), np.zeros(4))
    >>> [round(float(v), 3) for v in found]  # scipy.stats.t.interval gives the same
    [3.0, -0.437, 6.437]
    """
    estimate, error, df = stratified_jackknife(of, strata, clusters)
    half = error * stdtrit(df, (1 + level) / 2)
    return estimate, estimate - half, estimate + half


@lru_cache(maxsize=64)
def _resampling_counts(clusters: int, resamples: int, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed).multinomial(clusters, [1 / clusters] * clusters, resamples)
    return draws.astype(float)


def _bca(estimate, resampled, left_out, level):
    """Bias-corrected and accelerated interval (Efron 1987) from resamples and the jackknife."""
    below = (resampled < estimate).mean() + (resampled == estimate).mean() / 2
    centred = left_out.mean() - left_out
    spread = (centred**2).sum()
    acceleration = (centred**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shift = ndtri(below) + ndtri([(1 - level) / 2, (1 + level) / 2])
    return ndtr(ndtri(below) + shift / (1 - acceleration * shift))


def without_variation(estimate, bounds, clusters, level):
    """Interval where no template differs from another, so that resampling shows nothing.

    No event in ``clusters`` templates is no proof of a rate of zero. Wilson's upper limit for no
    event in that many draws says how far the rate may still be from what was seen.

    Examples
    --------
    >>> [round(float(end), 3) for end in without_variation(0.0, (-1, 1), 30, 0.95)]
    [-0.114, 0.114]
    """
    reach = wilson(0, clusters, level)[1]
    return estimate - (estimate - bounds[0]) * reach, estimate + (bounds[1] - estimate) * reach


def _named(totals, array):
    return dict(zip(totals.columns, np.moveaxis(array, -1, 0), strict=True))


def jackknife(totals: pd.DataFrame, measure: Measure) -> tuple[float, float, int]:
    """Estimate, delete-one-cluster standard error and degrees of freedom of a measure.

    Examples
    --------
    >>> sums = pd.DataFrame({"x": [1.0, 2.0, 3.0], "n": [1.0, 1.0, 1.0]})
    >>> from cba_utils.measures.measure import ratio
    >>> estimate, error, df = jackknife(sums, Measure("mean", of=ratio("x", "n")))
    >>> round(float(error), 4), df  # the mean's own standard error, 1 / sqrt(3)
    (0.5774, 2)
    """
    return _jackknife(measure, *_whole_and_left_out(totals))


def _whole_and_left_out(totals):
    values = totals.to_numpy(float)
    whole = values.sum(axis=0)
    return _named(totals, whole), _named(totals, whole - values), len(values)


def _jackknife(measure, whole, rest, count):
    of = measure.statistic()
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(of(whole))
        left_out = np.asarray(of(rest), float)
    left_out = left_out[np.isfinite(left_out)]
    if count < 2 or len(left_out) < 2:
        return estimate, np.nan, 0
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    return estimate, error, count - 1


def cluster_bootstrap(
    totals: pd.DataFrame,
    measures: Sequence[Measure],
    method: str = "bca",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> pd.DataFrame:
    """Bootstrap statistics of totals over whole clusters.

    Parameters
    ----------
    totals : DataFrame
        One row a cluster, one column a sum over the items of that cluster.
    measures : sequence of Measure
    method : {"bca", "percentile", "jackknife"}
        BCa is the default because rates here lie near 0 or 1, where the distribution over
        templates is skewed and the percentile interval misses on one side. ``"jackknife"`` is
        Student's t with the delete-one-template error: symmetric, and the one to test a
        difference with, where few templates make both bootstraps a little too narrow.
    resamples : int
        At least 2,000 are needed for a 95 % interval.

    Returns
    -------
    DataFrame
        Columns ``measure, estimate, low, high``.

    Examples
    --------
    >>> sums = pd.DataFrame({"hits": [1, 2, 0, 3, 1], "tries": [4, 4, 4, 4, 4]})
    >>> from cba_utils.measures.measure import ratio
    >>> row = cluster_bootstrap(sums, [Measure("rate", of=ratio("hits", "tries"))]).iloc[0]
    >>> float(row["estimate"]), bool(row["low"] < 0.35 < row["high"])
    (0.35, True)
    """
    rows = _intervals(totals, measures, method, level, resamples, seed)
    return pd.DataFrame(rows, columns=["measure", "estimate", "low", "high"])


def _intervals(totals, measures, method="bca", level=LEVEL, resamples=RESAMPLES, seed=SEED):
    """One tuple (measure, estimate, low, high) a measure."""
    if method not in ("bca", "percentile", "jackknife"):
        raise ValueError(f"method must be 'bca', 'percentile' or 'jackknife', not {method!r}")
    if not len(totals):
        raise ValueError("cluster_bootstrap got no clusters: the frame has no rows")
    if method == "jackknife":
        parts = _whole_and_left_out(totals)
        return [(one.name, *_jackknife_interval(one, parts, level)) for one in measures]
    values = totals.to_numpy(float)
    whole = values.sum(axis=0)
    counts = _resampling_counts(len(values), resamples, seed)
    parts = [_named(totals, part) for part in (whole, counts @ values, whole - values)]
    rows = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for one in measures:
            of = one.statistic()
            estimate, low, high = float(of(parts[0])), np.nan, np.nan
            resampled, left_out = (np.asarray(of(part), float) for part in parts[1:])
            resampled = resampled[np.isfinite(resampled)]
            left_out = left_out[np.isfinite(left_out)]
            if not np.isfinite(estimate):
                estimate = np.nan
            elif not len(resampled):
                pass
            elif np.ptp(resampled) < 1e-12:
                low, high = without_variation(estimate, one.bounds, len(values), level)
            else:
                tails = np.array([(1 - level) / 2, (1 + level) / 2])
                if method == "bca":
                    corrected = _bca(estimate, resampled, left_out, level)
                    # No resample on one side of the estimate leaves nothing to correct with.
                    tails = corrected if np.isfinite(corrected).all() else tails
                low, high = np.quantile(resampled, tails)
            rows.append((one.name, estimate, low, high))
    return rows


def _jackknife_interval(measure, parts, level):
    estimate, error, df = _jackknife(measure, *parts)
    if not np.isfinite(estimate) or not df:
        return estimate, np.nan, np.nan
    if error < 1e-12:
        return estimate, *without_variation(estimate, measure.bounds, parts[-1], level)
    half = error * stdtrit(df, (1 + level) / 2)
    low, high = measure.bounds
    return estimate, max(estimate - half, low), min(estimate + half, high)


def cluster_totals(table, columns, by=(), cluster="template_id"):
    """Yield (key, totals of each cluster, number of rows) for every group of ``table``."""
    by = list(by)
    grouped = table.assign(_rows=1).groupby([*by, cluster], observed=True, dropna=False)
    totals = grouped[[*columns, "_rows"]].sum()
    groups = (
        totals.groupby(level=by, observed=True, dropna=False, sort=False) if by else [((), totals)]
    )
    for key, group in groups:
        yield key, group[list(columns)], int(group["_rows"].sum())


def estimates(
    table: pd.DataFrame,
    measures: Sequence[Measure],
    columns: Sequence[str],
    by: Sequence[str] = (),
    cluster: str = "template_id",
    **options,
) -> pd.DataFrame:
    """Estimate measures in every group of an item table, by cluster bootstrap.

    Returns the tidy frame ``[*by, measure, estimate, low, high, n]``; ``n`` counts rows of
    ``table`` (items), never draws, except for a measure that names a total to count.

    Examples
    --------
    >>> table = pd.DataFrame({"template_id": list("aabbcc"), "hits": [1, 0, 1, 1, 0, 0],
    ...                       "tries": 1})
    >>> from cba_utils.measures.measure import ratio
    >>> rate = Measure("rate", of=ratio("hits", "tries"))
    >>> estimates(table, [rate], ["hits", "tries"])["n"].tolist()
    [6]
    """
    found = []
    for key, totals, rows in cluster_totals(table, columns, by, cluster):
        counted = {one.per: totals[one.per].sum() for one in measures if one.per}
        found += [
            (*key, *row, counted[one.per] if one.per else rows)
            for row, one in zip(_intervals(totals, measures, **options), measures, strict=True)
        ]
    return pd.DataFrame(found, columns=[*by, *ESTIMATE_COLUMNS])
