"""Estimates over several checkpoints, and over models of which there is one checkpoint each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cba_utils.measures.intervals import ESTIMATE_COLUMNS, stratified_interval
from cba_utils.measures.measure import measure


def _pool_keys(frame, over):
    return [
        c for c in frame if c not in ("model", "base", "replicate", *over, *ESTIMATE_COLUMNS[1:])
    ]


def _pooled_groups(frame, keys):
    """Yield (key, rows with an estimate, whether they are shares) of what is pooled together."""
    for key, group in frame.groupby(keys, observed=True, dropna=False, sort=False):
        share = measure(key[keys.index("measure")]).pool == "sums"
        # A cell without any such item has no share of its own and adds nothing to the sums.
        yield key, group if share else group.dropna(subset="estimate"), share


def over_replicates(frame: pd.DataFrame, strata: Sequence[str] = (), level: float = 0.95):
    """Estimates over replicates (alignment seeds), with an interval from their spread.

    The unit is the checkpoint: all items of one share its weight error, so only other checkpoints
    say what the next would show. ``n`` is the number of replicates with an estimate; one alone
    has no interval. ``of`` is the sum of the cells' own n.

    Parameters
    ----------
    frame : DataFrame
        Tidy estimates of several checkpoints.
    strata : sequence of str
        Columns, such as ``["family"]``, to pool over and take as they are: rates become the mean
        of the strata's means, with the spread within strata alone.

    Measures that are pooled as sums over sums get a jackknife over checkpoints.

    Examples
    --------
    >>> frame = pd.DataFrame({"family": "mistral", "replicate": [1, 2, 3], "precision": "q3",
    ...     "measure": "srs", "estimate": [1., 2., 3.], "low": 0., "high": 9., "n": 9})
    >>> over_replicates(frame)[["estimate", "n", "of"]].to_numpy().tolist()
    [[2.0, 3.0, 27.0]]
    """
    rows, keys = [], _pool_keys(frame, strata)
    for key, group, share in _pooled_groups(frame, keys):
        stratum = group.groupby([*strata], observed=True).ngroup() if strata else 0 * group["n"]
        of = _of_units(group, stratum.to_numpy(), share)
        found = stratified_interval(of, stratum, level)
        rows.append((*key, *found, group["estimate"].notna().sum(), group["n"].sum()))
    return pd.DataFrame(rows, columns=[*keys, *ESTIMATE_COLUMNS[1:], "of"])


def _of_units(group, stratum, share):
    """Return the pooled estimate as a function of a mask of the units that are kept."""
    values, n = group["estimate"].to_numpy(float), group["n"].to_numpy(float)
    if share:
        values, n = np.nan_to_num(values), np.where(np.isnan(values), 0.0, n)
        return lambda kept: (values * n)[kept].sum() / n[kept].sum()
    return lambda kept: np.mean(
        [values[kept & (stratum == s)].mean() for s in np.unique(stratum)] or np.nan
    )


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
