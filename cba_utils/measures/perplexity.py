"""Perplexity: its change since BF16, and beside the items that became biased."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats as sps

from cba_utils.measures.intervals import SEED, estimates, jackknife
from cba_utils.measures.measure import Measure, measure, register
from cba_utils.names import REFERENCE
from cba_utils.study.roles import study_columns

register(
    Measure(
        "perplexity_change",
        "Perplexity, % change from BF16",
        unit="relative",
        bounds=(-1.0, np.inf),
        counts="sequences",
        of=lambda t: np.exp(t["nll"] / t["tokens"] - t["nll_ref"] / t["tokens"]) - 1,
    ),
)


def perplexity_change(
    perplexity: pd.DataFrame, reference: str = REFERENCE, margin: float = 0.01, **options
) -> pd.DataFrame:
    """Relative change of perplexity since the reference, paired by sequence.

    Tokens of a sequence depend on each other, so sequences are resampled whole. The column
    ``bound`` is the smallest margin at which two one-sided 5 % tests would call the perplexities
    equal, and ``equivalent`` says whether it is below ``margin`` (both on the relative scale).
    """
    cell = [c for c in study_columns(perplexity) if c != "precision"]
    on = [*cell, "sequence"]
    before = perplexity[perplexity["precision"] == reference][[*on, "nll", "tokens"]]
    after = perplexity[perplexity["precision"] != reference]
    paired = after.merge(before, on=on, suffixes=("", "_ref"), how="left", validate="many_to_one")
    if not (paired["tokens"] == paired["tokens_ref"]).all():
        raise ValueError(f"the sequences of some precision are not those of {reference}")
    keys = [*cell, "precision"]
    columns = ["nll", "nll_ref", "tokens"]
    found = estimates(paired, [measure("perplexity_change")], columns, keys, "sequence", **options)
    bounds = []
    for _, part in paired.groupby(keys, dropna=False):
        estimate, error, df = jackknife(part[columns], measure("perplexity_change"))
        bounds.append(abs(estimate) + sps.t.ppf(0.95, df) * error)
    return found.assign(bound=bounds, equivalent=np.array(bounds) < margin)


def perplexity_and_bias(
    perplexity: pd.DataFrame, transition_rates: pd.DataFrame, measure: str = "became_biased"
):
    """One row a cell with both changes, and Spearman's rank correlation over the cells.

    Returns
    -------
    (DataFrame, dict)
        The cells, and ``estimate, p, n`` of the correlation; ``n`` counts cells.
    """
    keys = study_columns(transition_rates)
    change = perplexity_change(perplexity)[[*keys, "estimate"]]
    bias = transition_rates[transition_rates["measure"] == measure][[*keys, "estimate"]]
    cells = change.merge(bias, on=keys).set_axis([*keys, "perplexity_change", measure], axis=1)
    if len(cells) < 3:
        return cells, {"estimate": np.nan, "p": np.nan, "n": len(cells)}
    found = sps.spearmanr(cells["perplexity_change"], cells[measure])
    return cells, {"estimate": float(found.statistic), "p": float(found.pvalue), "n": len(cells)}


def rank_correlation(one, other, clusters, level: float = 0.95, draws: int = 2000, least: int = 6):
    """Spearman's rank correlation of two columns, with a bootstrap over clusters.

    Parameters
    ----------
    one, other : array-like
        A value a checkpoint.
    clusters : array-like
        Checkpoints that share one, such as their base, are drawn together.
    least : int
        With fewer clusters there is no interval.

    Returns
    -------
    dict
        ``estimate``, ``low``, ``high`` and ``n``, the number of checkpoints.

    Examples
    --------
    >>> found = rank_correlation(range(9), range(9), range(9))
    >>> found["estimate"], round(found["low"], 6), found["n"]
    (1.0, 1.0, 9)
    """
    x, y = np.asarray(one, float), np.asarray(other, float)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"estimate": np.nan, "low": np.nan, "high": np.nan, "n": len(x)}
    ends = (np.nan, np.nan)
    if len(names) >= least:
        rng = np.random.default_rng(SEED)
        places = [np.flatnonzero(member == k) for k in range(len(names))]
        found = []
        for chosen in rng.integers(len(names), size=(draws, len(names))):
            at = np.concatenate([places[k] for k in chosen])
            if np.ptp(x[at]) and np.ptp(y[at]):
                found.append(np.corrcoef(sps.rankdata(x[at]), sps.rankdata(y[at]))[0, 1])
        ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    estimate = float(sps.spearmanr(x, y).statistic)
    return {"estimate": estimate, "low": float(ends[0]), "high": float(ends[1]), "n": len(x)}
