"""Models of stereotyped answers by precision: the published logit, and one that clusters.

Every logistic model is fitted to counts by template, which has the same likelihood, coefficients
and clustered standard errors as one row a draw and stays small at any number of records.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats as sps
from statsmodels.stats.sandwich_covariance import cov_cluster, cov_cluster_2groups

from cba_utils.answering.precisions import most_bits_first, nominal_bits
from cba_utils.measures.frames import independent_units, item_table, several_checkpoints
from cba_utils.names import REFERENCE


def _counts(table, silent=("model", "category")):
    """Counts a template; levels of the factors ``silent`` with one outcome alone are left out."""
    table = table[table["context_condition"] == "ambig"]
    keys = [c for c in ("family", "model", "precision") if c in table]
    keys += ["category", "template_id"]
    sums = table.groupby(keys, observed=True, dropna=False)[["stereotyped", "parsed"]].sum()
    # A template whose answers were all unparsed has no rate.
    sums = sums[sums["parsed"] > 0]
    counts = sums.reset_index().assign(other=lambda d: d["parsed"] - d["stereotyped"])
    for column in set(keys) & {*silent}:
        # A model or category with one outcome only says nothing about precision, and its own
        # coefficient would be infinite.
        sums = counts.groupby(column)[["stereotyped", "other"]].transform("sum")
        counts = counts[(sums > 0).all(axis=1)].copy()
    counts["bits"] = counts["precision"].map(nominal_bits)
    ranks = {name: k for k, name in enumerate(most_bits_first(counts["precision"]))}
    counts["step"] = counts["precision"].map(ranks)
    return counts


def _table(terms, logs, errors, df, n):
    """Odds ratios with intervals; ``Intercept`` is left out."""
    reach = sps.t.ppf(0.975, df) * errors
    table = pd.DataFrame(
        {
            "term": terms,
            "estimate": np.exp(logs),
            "low": np.exp(logs - reach),
            "high": np.exp(logs + reach),
            "p": 2 * sps.t.sf(np.abs(logs) / errors, df),
            "n": int(n),
        }
    )
    # Beyond these digits a fit depends on the number of threads.
    numbers = ["estimate", "low", "high", "p"]
    table[numbers] = table[numbers].map(lambda x: float(f"{x:.8g}"))
    return table[table["term"] != "Intercept"].reset_index(drop=True)


def _undefined(terms, n):
    return pd.DataFrame(
        {
            "term": list(terms),
            "estimate": np.nan,
            "low": np.nan,
            "high": np.nan,
            "p": np.nan,
            "n": int(n),
        }
    )


def _with_events(counts):
    """Precisions at which some answer was stereotyped, from most to fewest bits."""
    events = counts.groupby("precision")["stereotyped"].sum()
    return most_bits_first(events.index[events > 0])


def _formula(terms, counts):
    """Drop factors with one level: they cannot be told from the intercept."""
    kept = [t for c, t in terms.items() if c not in counts or counts[c].nunique() > 1]
    return "stereotyped + other ~ " + " + ".join(kept)


def published_logit(samples: pd.DataFrame) -> pd.DataFrame:
    """The published model: logit of a stereotyped answer on bits, as a number, and category.

    It pools models and takes all draws as independent, so its intervals are too narrow: see
    ``dose_response``. Its odds ratio is per bit kept, and BF16 counts as 16 bits, so that one
    step from 16 to 8 weighs as much as eight steps from 4 to 3. It is missing where fewer than
    two precisions have any stereotyped answer. As published, models without a stereotyped answer
    count; a category without one has no odds of its own and is left out.
    """
    counts = _counts(item_table(samples), silent=["category"])
    if len(_with_events(counts)) < 2:
        return _undefined(["bits"], counts["parsed"].sum())
    fit = smf.glm(
        _formula({"bits": "bits", "category": "C(category)"}, counts),
        counts,
        family=sm.families.Binomial(),
    ).fit()
    return _table(
        fit.params.index, fit.params.to_numpy(), fit.bse.to_numpy(), np.inf, counts["parsed"].sum()
    )


def dose_response(frame: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Odds of a stereotyped answer at each precision, with clustered standard errors.

    A logistic model with category, model (where there are several) and precision as factors. No
    straight line over bits is assumed. What is read is the factor at each precision. Draws of an
    item, and items of a template, over all models and precisions, may depend on each other in any
    way: the sandwich over templates allows it. Where every family has several checkpoints, so may
    all answers of those that are not independent (of a base, see
    :func:`cba_utils.measures.frames.independent_units`): the variance is then clustered two ways
    (Cameron, Gelbach and Miller 2011), and nowhere below that of one way.

    This is the GEE with independence as its working correlation. An exchangeable one would weigh
    templates otherwise and rest on the same sandwich; no row of it is given, because its fit
    diverges where a precision has hardly any stereotyped answers, as in the default study.

    The last row, ``trend``, is the odds ratio for one step down the ladder of precisions present,
    from a model with the step as a number: the slope of a straight line through the ladder, in
    which every precision weighs by its answers. The average of the steps themselves is another
    number, see :func:`steps`, and neither says that the change is monotone.

    An odds ratio is missing where it has no finite estimate: at a precision without stereotyped
    answers, everywhere if the reference has none, and for the trend if fewer than two precisions
    have any.

    Returns
    -------
    DataFrame
        ``term, estimate`` (odds ratio), ``low, high, p, n`` (templates).

    Examples
    --------
    >>> from cba_utils.instrument.respondents import simulate_study
    >>> study = simulate_study("bias", templates=9, precisions=["bf16", "q4", "q3"])
    >>> bool(dose_response(study["samples"]).set_index("term").loc["q3", "low"] > 1)
    True
    """
    table = item_table(frame)
    present = set(table["precision"])
    units = None
    if several_checkpoints(table):
        # As all models are: those without events are left out of the fit and not of this question.
        models = table.drop_duplicates("model")
        units = dict(zip(models["model"], independent_units(models), strict=True))
    counts = _counts(table)
    if reference not in present:
        raise ValueError(f"no row has the reference precision {reference!r}")
    held, size = _with_events(counts), counts["template_id"].nunique()
    levels = most_bits_first(present - {reference})
    if reference in held and len(held) > 1:
        factor = f"C(precision, Treatment('{reference}'))"
        table = _clustered(counts[counts["precision"].isin(held)], {"precision": factor}, units)
        table["term"] = table["term"].str.replace(r"C\(precision.*\)\[T\.(.*)\]", r"\1", regex=True)
    else:
        table = _undefined([], size)
    lost = _undefined([q for q in levels if q not in set(table["term"])], size)
    trend = (
        _undefined(["step"], size) if len(held) < 2 else _clustered(counts, {"step": "step"}, units)
    )
    trend = trend[trend["term"] == "step"].assign(term="trend")
    return pd.concat([part for part in (table, lost, trend) if len(part)], ignore_index=True)


def _clustered(counts, terms, units):
    terms = {**terms, "model": "C(model)", "category": "C(category)"}
    terms = {c: t for c, t in terms.items() if c in counts}
    fit = smf.glm(_formula(terms, counts), counts, family=sm.families.Binomial()).fit()
    templates = pd.factorize(counts["template_id"])[0]
    variance, clusters = np.diag(cov_cluster(fit, templates)), templates.max() + 1
    unit = pd.factorize(counts["model"].map(units))[0] if units else np.zeros(len(counts), int)
    if unit.max() > 0:
        ways = map(np.diag, cov_cluster_2groups(fit, templates, unit))
        variance, clusters = np.max([*ways], axis=0), min(clusters, unit.max() + 1)
    return _table(
        fit.params.index,
        fit.params.to_numpy(),
        np.sqrt(variance),
        clusters - 1,
        templates.max() + 1,
    )


def steps(odds: pd.DataFrame) -> pd.Series:
    """Factor of the odds at each step between neighbouring precisions, from :func:`dose_response`.

    A step is named by the precision that it goes down to. A precision without odds is passed
    over. Their geometric mean is the average step.

    Examples
    --------
    >>> odds = pd.DataFrame({"term": ["q4", "q3", "trend"], "estimate": [2.0, 8.0, 2.8]})
    >>> steps(odds).to_dict()
    {'q4': 2.0, 'q3': 4.0}
    """
    known = odds[(odds["term"] != "trend") & ~odds["term"].str.startswith("C(")]
    known = known.dropna(subset="estimate").set_index("term")["estimate"]
    known = known[most_bits_first(known.index)]
    return known / known.shift(fill_value=1.0)
