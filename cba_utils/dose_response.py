"""Models of stereotyped answers by precision, of flips by uncertainty, and of perplexity.

Every logistic model is fitted to counts by template, which has the same likelihood, coefficients
and clustered standard errors as one row a draw and stays small at any number of records.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats as sps
from scipy.special import entr
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from cba_utils.intervals import Measure, estimates, jackknife, ratio
from cba_utils.precisions import most_bits_first, nominal_bits
from cba_utils.tables import LETTERS, item_columns, item_table, role_of_letters, study_columns


def _counts(frame):
    table = item_table(frame)
    table = table[table["context_condition"] == "ambig"]
    keys = [c for c in ("model", "precision") if c in table] + ["category", "template_id"]
    sums = table.groupby(keys, observed=True, dropna=False)[["stereotyped", "parsed"]].sum()
    # A template whose answers were all unparsed has no rate.
    sums = sums[sums["parsed"] > 0]
    counts = sums.reset_index().assign(other=lambda d: d["parsed"] - d["stereotyped"])
    for column in set(keys) & {"model", "category"}:
        # A model or category with one outcome only says nothing about precision, and its own
        # coefficient would be infinite.
        sums = counts.groupby(column)[["stereotyped", "other"]].transform("sum")
        counts = counts[(sums > 0).all(axis=1)].copy()
    counts["bits"] = counts["precision"].map(nominal_bits)
    ranks = {name: k for k, name in enumerate(most_bits_first(counts["precision"]))}
    counts["step"] = counts["precision"].map(ranks)
    return counts


def _table(fit, n):
    """Odds ratios with intervals; ``Intercept`` is left out."""
    bounds = np.exp(fit.conf_int())
    table = pd.DataFrame({
        "term": fit.params.index, "estimate": np.exp(fit.params.to_numpy()),
        "low": bounds[0].to_numpy(), "high": bounds[1].to_numpy(),
        "p": fit.pvalues.to_numpy(), "n": int(n),
    })
    # Beyond these digits a fit depends on the number of threads.
    numbers = ["estimate", "low", "high", "p"]
    table[numbers] = table[numbers].map(lambda x: float(f"{x:.8g}"))
    return table[table["term"] != "Intercept"].reset_index(drop=True)


def _undefined(terms, n):
    return pd.DataFrame({"term": list(terms), "estimate": np.nan, "low": np.nan, "high": np.nan,
                         "p": np.nan, "n": int(n)})


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
    two precisions have any stereotyped answer.
    """
    counts = _counts(samples)
    if len(_with_events(counts)) < 2:
        return _undefined(["bits"], counts["parsed"].sum())
    fit = smf.glm(_formula({"bits": "bits", "category": "C(category)"}, counts), counts,
                  family=sm.families.Binomial()).fit()
    return _table(fit, counts["parsed"].sum())


def dose_response(frame: pd.DataFrame, reference: str = "bf16") -> pd.DataFrame:
    """Odds of a stereotyped answer at each precision, with standard errors clustered by template.

    A logistic model with category, model (where there are several) and precision as factors. No
    straight line over bits is assumed. Draws of an item, and items of a template, over all models
    and precisions, may depend on each other in any way: the sandwich over templates allows it.

    The last row, ``trend``, is the odds ratio for one step down the ladder of precisions present,
    from a model with the step as a number: the test that the change is monotone.

    An odds ratio is missing where it has no finite estimate: at a precision without stereotyped
    answers, everywhere if the reference has none, and for the trend if fewer than two precisions
    have any.

    Returns
    -------
    DataFrame
        ``term, estimate`` (odds ratio), ``low, high, p, n`` (templates).
    """
    counts = _counts(frame)
    present = set(item_table(frame)["precision"])
    if reference not in present:
        raise ValueError(f"no row has the reference precision {reference!r}")
    held, size = _with_events(counts), counts["template_id"].nunique()
    levels = most_bits_first(present - {reference})
    if reference in held and len(held) > 1:
        factor = f"C(precision, Treatment('{reference}'))"
        table = _clustered(counts[counts["precision"].isin(held)], {"precision": factor})
        table["term"] = table["term"].str.replace(r"C\(precision.*\)\[T\.(.*)\]", r"\1", regex=True)
    else:
        table = _undefined([], size)
    lost = _undefined([q for q in levels if q not in set(table["term"])], size)
    trend = _undefined(["step"], size) if len(held) < 2 else _clustered(counts, {"step": "step"})
    trend = trend[trend["term"] == "step"].assign(term="trend")
    return pd.concat([part for part in (table, lost, trend) if len(part)], ignore_index=True)


def _clustered(counts, terms):
    terms = {**terms, "model": "C(model)", "category": "C(category)"}
    terms = {c: t for c, t in terms.items() if c in counts}
    groups = pd.factorize(counts["template_id"])[0]
    model = smf.glm(_formula(terms, counts), counts, family=sm.families.Binomial())
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    return _table(fit, groups.max() + 1)


def flips(answers: pd.DataFrame, bins: int = 5, reference: str = "bf16") -> pd.DataFrame:
    """One row an item and precision: BF16's uncertainty, and whether the first choice changed.

    ``entropy`` (bits) and ``margin`` (between the two likeliest letters) are of BF16's answer in
    the original order at temperature 1; ``flip`` says that the likeliest letter differs.
    ``bin`` numbers equal shares of items by entropy, from the surest.
    """
    each = role_of_letters(answers[answers["order"] == "012"], "unit")
    p = each[[f"p_{x}" for x in LETTERS]].to_numpy(float)
    p = p / p.sum(axis=1, keepdims=True)
    top = np.sort(p, axis=1)
    each = each.assign(choice=p.argmax(axis=1), entropy=entr(p).sum(axis=1) / np.log(2),
                       margin=top[:, 2] - top[:, 1])
    cell = [c for c in study_columns(each) if c != "precision"]
    before = each[each["precision"] == reference].copy()
    rank = (before.groupby(cell, dropna=False)["entropy"] if cell else before["entropy"])
    before["bin"] = np.minimum(np.floor(rank.rank(pct=True, method="first") * bins), bins - 1)
    before["bin"] = before["bin"].astype(int) + 1
    after = each[each["precision"] != reference]
    joined = after[[*cell, "precision", *item_columns(after), "choice"]].merge(
        before[[*cell, "item_id", "choice", "entropy", "margin", "bin"]],
        on=[*cell, "item_id"], suffixes=("", "_ref"), validate="many_to_one")
    return joined.assign(flip=(joined["choice"] != joined["choice_ref"]).astype(float))


def flip_rates(answers: pd.DataFrame, bins: int = 5, **options) -> pd.DataFrame:
    """Flip rate by bin of BF16 entropy, with the mean that the calibrated curve predicts.

    Measures: ``flip_rate`` and ``entropy`` of each bin (column ``bin``), ``predicted``, the mean
    of a logistic curve of flip on entropy fitted within the cell, and for bin 0 (all items)
    ``flip_ratio``, the flip rate of the least sure bin over that of the surest.
    """
    table = flips(answers, bins).assign(items=1.0)
    keys = study_columns(table)
    parts = [_calibrated(part) for _, part in table.groupby(keys, dropna=False, sort=False)]
    table = pd.concat(parts, ignore_index=True)
    measures = {"flip_rate": ratio("flip", "items"), "predicted": ratio("predicted", "items"),
                "entropy": ratio("entropy", "items", (0, np.log2(3)))}
    each = estimates(table, measures, ["flip", "predicted", "entropy", "items"], [*keys, "bin"],
                     **options)
    ends = {}
    for name, chosen in (("low", table["bin"] == 1), ("high", table["bin"] == bins)):
        ends[f"flip_{name}"] = table["flip"] * chosen
        ends[f"items_{name}"] = chosen.astype(float)
    of = Measure(lambda t: (t["flip_high"] / t["items_high"]) / (t["flip_low"] / t["items_low"]),
                 (0, np.inf))
    whole = estimates(table.assign(**ends), {"flip_ratio": of}, [*ends], keys, **options)
    return pd.concat([each, whole.assign(bin=0)], ignore_index=True)


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


PERPLEXITY = Measure(
    lambda t: np.exp(t["nll"] / t["tokens"] - t["nll_ref"] / t["tokens"]) - 1, (-1, np.inf))


def perplexity_change(perplexity: pd.DataFrame, reference: str = "bf16", margin: float = 0.01,
                      **options) -> pd.DataFrame:
    """Relative change of perplexity since the reference, paired by sequence.

    Tokens of a sequence depend on each other, so sequences are resampled whole. The column
    ``bound`` is the smallest margin at which two one-sided 5 % tests would call the perplexities
    equal, and ``equivalent`` says whether it is below ``margin`` (both on the relative scale).
    """
    cell = [c for c in study_columns(perplexity) if c != "precision"]
    on = [*cell, "sequence"]
    before = perplexity[perplexity["precision"] == reference][[*on, "nll", "tokens"]]
    after = perplexity[perplexity["precision"] != reference]
    paired = after.merge(before, on=on, suffixes=("", "_ref"), how="left",
                         validate="many_to_one")
    if not (paired["tokens"] == paired["tokens_ref"]).all():
        raise ValueError(f"the sequences of some precision are not those of {reference}")
    keys = [*cell, "precision"]
    columns = ["nll", "nll_ref", "tokens"]
    found = estimates(paired, {"perplexity_change": PERPLEXITY}, columns, keys, "sequence",
                      **options)
    bounds = []
    for _, part in paired.groupby(keys, dropna=False):
        estimate, error, df = jackknife(part[columns], PERPLEXITY)
        bounds.append(abs(estimate) + sps.t.ppf(0.95, df) * error)
    return found.assign(bound=bounds, equivalent=np.array(bounds) < margin)


def perplexity_and_bias(perplexity: pd.DataFrame, transition_rates: pd.DataFrame,
                        measure: str = "became_biased"):
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
