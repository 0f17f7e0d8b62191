"""Two studies side by side: ``cba compare organisms smoke``."""

import pandas as pd

from cba_utils.answering.precisions import most_bits_first
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.measures.rates import bias_scores, role_rates
from cba_utils.measures.transitions import transitions
from cba_utils.telling.study import open_study

MEASURES = ("srs", "usr", "became_biased", "lost_bias", "accuracy", "perplexity_change")
_KEYS = ["family", "measure", "precision"]


def compare(one, other):
    """Estimates of two studies in one table.

    Parameters
    ----------
    one, other : str
        Names of studies that were run, or folders of results.

    Returns
    -------
    DataFrame
        One row a family, measure and precision that either study has: ``estimate``,
        ``low``, ``high`` and ``n`` of each, with the suffixes ``_a`` and ``_b``, and ``apart``:
        whether the 95 % intervals do not overlap (missing where one of them is).

    Raises
    ------
    FileNotFoundError
        If one of them was not run.

    Notes
    -----
    The studies may differ in items, so the comparison is not paired: intervals that overlap do not
    show that the two agree.

    Examples
    --------
    >>> table = compare("organisms", "organisms")
    >>> table["estimate_a"].equals(table["estimate_b"].rename("estimate_a"))
    True
    """
    joined = _summary(one).merge(_summary(other), on=_KEYS, how="outer", suffixes=("_a", "_b"))
    order = {name: n for n, name in enumerate((*MEASURES, *most_bits_first(joined["precision"])))}
    joined = joined.sort_values(_KEYS, key=lambda column: column.map(lambda x: order.get(x, x)))
    apart = (joined["low_a"] > joined["high_b"]) | (joined["low_b"] > joined["high_a"])
    known = joined[["low_a", "low_b", "high_a", "high_b"]].notna().all(axis=1)
    return joined.assign(apart=apart.where(known))


def _summary(name):
    """One row a family, precision and measure, of the models that the reports show."""
    data = open_study(name)
    found = [role_rates(data.drawn), transitions(data.drawn), bias_scores(data.drawn)]
    if len(data.perplexity):
        found.append(perplexity_change(data.perplexity))
    table = data.summarise(pd.concat(found, ignore_index=True))
    table = table[table["measure"].isin(MEASURES)]
    return table[[*_KEYS, "estimate", "low", "high", "n"]]


def told(one, other):
    """The comparison as a table to print.

    Parameters
    ----------
    one, other : str
        As `compare` takes them.

    Returns
    -------
    str
    """
    table = compare(one, other)
    for which in "ab":
        table[which] = [
            "-" if pd.isna(e) else f"{e:.3f} ({low:.3f} to {high:.3f}), n {n:.0f}"
            for e, low, high, n in table[
                [f"{c}_{which}" for c in ("estimate", "low", "high", "n")]
            ].itertuples(index=False)
        ]
    table["apart"] = table["apart"].map({True: "apart", False: ""}).fillna("")
    shown = table[[*_KEYS, "a", "b", "apart"]].rename(columns={"a": one, "b": other})
    return (
        f"{shown.to_string(index=False)}\n"
        "Means over checkpoints with their spread where a family has several, else one checkpoint "
        "with its spread over templates; 95 % intervals; apart: they do not overlap"
    )
