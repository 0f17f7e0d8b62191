"""Whether answers change more where the reference was less certain of them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.special import entr
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from cba_utils.answering.prompts import LETTERS, ORIGINAL
from cba_utils.measures.frames import independent_units, several_checkpoints
from cba_utils.measures.intervals import estimates, stratified_interval
from cba_utils.measures.measure import Measure, measure, ratio, register
from cba_utils.names import REFERENCE
from cba_utils.study.roles import item_columns, role_of_letters, study_columns

register(
    Measure("flip_rate", "First choice changed, % of items", of=ratio("flip", "items")),
    Measure("predicted", kind="predicted", base="flip_rate", of=ratio("predicted", "items")),
    Measure(
        "entropy", unit="bits", bounds=(0.0, np.log2(len(LETTERS))), of=ratio("entropy", "items")
    ),
    Measure(
        "flip_ratio",
        unit="ratio",
        bounds=(0.0, np.inf),
        of=lambda t: (t["flip_unsure"] / t["items_unsure"]) / (t["flip_sure"] / t["items_sure"]),
    ),
)


def flips(answers: pd.DataFrame, bins: int = 5, reference: str = REFERENCE) -> pd.DataFrame:
    """One row an item and precision: BF16's uncertainty, and whether the first choice changed.

    ``entropy`` (bits) and ``margin`` (between the two likeliest letters) are of BF16's answer in
    the original order at temperature 1; ``flip`` says that the likeliest letter differs.
    ``bin`` numbers equal shares of items by entropy, from the surest. Items are the ambiguous
    ones: the others are surer, so that a mixture of both would sort by kind of item.
    """
    chosen = (answers["order"] == ORIGINAL) & (answers["context_condition"] == "ambig")
    each = role_of_letters(answers[chosen], "unit")
    p = each[[f"p_{x}" for x in LETTERS]].to_numpy(float)
    p = p / p.sum(axis=1, keepdims=True)
    top = np.sort(p, axis=1)
    each = each.assign(
        choice=p.argmax(axis=1),
        entropy=entr(p).sum(axis=1) / np.log(2),
        margin=top[:, 2] - top[:, 1],
    )
    cell = [c for c in study_columns(each) if c != "precision"]
    before = each[each["precision"] == reference].copy()
    rank = before.groupby(cell, dropna=False)["entropy"] if cell else before["entropy"]
    before["bin"] = np.minimum(np.floor(rank.rank(pct=True, method="first") * bins), bins - 1)
    before["bin"] = before["bin"].astype(int) + 1
    after = each[each["precision"] != reference]
    joined = after[[*cell, "precision", *item_columns(after), "choice"]].merge(
        before[[*cell, "item_id", "choice", "entropy", "margin", "bin"]],
        on=[*cell, "item_id"],
        suffixes=("", "_ref"),
        validate="many_to_one",
    )
    return joined.assign(flip=(joined["choice"] != joined["choice_ref"]).astype(float))


def flip_rates(answers: pd.DataFrame, bins: int = 5, **options) -> pd.DataFrame:
    """Flip rate by bin of BF16 entropy, with the mean that the calibrated curve predicts.

    Measures: ``flip_rate`` and ``entropy`` of each bin (column ``bin``), and ``predicted``, the
    mean of a logistic curve of flip on entropy fitted within the cell.
    """
    table = flips(answers, bins).assign(items=1.0)
    keys = study_columns(table)
    parts = [_calibrated(part) for _, part in table.groupby(keys, dropna=False, sort=False)]
    table = pd.concat(parts, ignore_index=True)
    measures = [measure(name) for name in ("flip_rate", "predicted", "entropy")]
    return estimates(
        table, measures, ["flip", "predicted", "entropy", "items"], [*keys, "bin"], **options
    )


def flip_ratio(answers: pd.DataFrame, bins: int = 5, **options) -> pd.DataFrame:
    """Flip rate of the least sure bin over that of the surest, over all models of a study.

    It is a ratio of means, so that a checkpoint whose surest items never flip counts. Where every
    family has several checkpoints, the interval is a jackknife on the log scale over those made
    independently (bases, where a family has several), with families as they are; else models are
    as they are, and templates are resampled.

    Returns
    -------
    DataFrame
        ``precision, estimate, low, high, n`` (checkpoints).
    """
    table = flips(answers, bins)
    sides = {"sure": table["bin"] == 1, "unsure": table["bin"] == bins}
    parts = {
        f"{name}_{side}": value * inside
        for side, inside in sides.items()
        for name, value in (("flip", table["flip"]), ("items", 1.0))
    }
    table = table.assign(**parts)
    if not several_checkpoints(table):
        found = estimates(table, [measure("flip_ratio")], [*parts], ["precision"], **options)
        models = table["model"].nunique() if "model" in table else 1
        return found.assign(n=models).drop(columns="measure")
    rows = []
    for precision, part in table.groupby("precision", observed=True, sort=False):
        cells = [c for c in ("family", "base", "model") if c in part]
        units = part.groupby(cells, observed=True)[[*parts]].sum().reset_index()
        rates = {s: (units[f"flip_{s}"] / units[f"items_{s}"]).to_numpy() for s in sides}
        families = units["family"].to_numpy()
        log_ratio = _log_ratio_of_means(rates["unsure"], rates["sure"], families)
        rows.append(
            (
                precision,
                *np.exp(stratified_interval(log_ratio, families, independent_units(units))),
                len(units),
            )
        )
    return pd.DataFrame(rows, columns=["precision", "estimate", "low", "high", "n"])


def _log_ratio_of_means(top, bottom, strata):
    def over_strata(values, kept):
        return np.mean([values[kept & (strata == s)].mean() for s in np.unique(strata)])

    return lambda kept: np.log(over_strata(top, kept)) - np.log(over_strata(bottom, kept))


def _calibrated(part):
    """Add the flip probability that a logistic curve on entropy gives each item."""
    if part["flip"].nunique() < 2:
        return part.assign(predicted=part["flip"].mean())
    design = sm.add_constant(part["entropy"].to_numpy(float), has_constant="add")
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        # Where entropy separates the flips, the curve is a step, and its fitted values are right.
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        fit = sm.GLM(part["flip"].to_numpy(float), design, family=sm.families.Binomial()).fit()
        return part.assign(predicted=fit.predict(design))
