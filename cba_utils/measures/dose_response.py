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
from statsmodels.stats.sandwich_covariance import cov_cluster, cov_cluster_2groups
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from cba_utils.measures.intervals import Measure, estimates, jackknife, ratio, stratified_interval
from cba_utils.measures.measure import Measure as Facts
from cba_utils.measures.measure import register
from cba_utils.answering.precisions import most_bits_first, nominal_bits
from cba_utils.measures.frames import LETTERS, item_columns, item_table, role_of_letters, study_columns

register(
    Facts("flip_rate", "First choice changed, % of items"),
    Facts("predicted", kind="predicted", base="flip_rate"),
    Facts("entropy", unit="bits", bounds=(0.0, np.log2(3))),
    Facts("flip_ratio", unit="ratio", bounds=(0.0, np.inf)),
    Facts("perplexity_change", "Perplexity, % change from BF16", unit="relative",
          bounds=(-1.0, np.inf), counts="sequences"),
)


def _counts(frame):
    table = item_table(frame)
    table = table[table["context_condition"] == "ambig"]
    keys = [c for c in ("family", "model", "precision") if c in table]
    keys += ["category", "template_id"]
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


def _table(terms, logs, errors, df, n):
    """Odds ratios with intervals; ``Intercept`` is left out."""
    reach = sps.t.ppf(0.975, df) * errors
    table = pd.DataFrame({
        "term": terms, "estimate": np.exp(logs), "low": np.exp(logs - reach),
        "high": np.exp(logs + reach), "p": 2 * sps.t.sf(np.abs(logs) / errors, df), "n": int(n),
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
    return _table(fit.params.index, fit.params.to_numpy(), fit.bse.to_numpy(), np.inf,
                  counts["parsed"].sum())


def dose_response(frame: pd.DataFrame, reference: str = "bf16") -> pd.DataFrame:
    """Odds of a stereotyped answer at each precision, with clustered standard errors.

    A logistic model with category, model (where there are several) and precision as factors. No
    straight line over bits is assumed. What is read is the factor at each precision. Draws of an
    item, and items of a template, over all models and precisions, may depend on each other in any
    way: the sandwich over templates allows it. Where every family has several checkpoints, so may
    all answers of a checkpoint: the variance is then clustered two ways (Cameron, Gelbach and
    Miller 2011), and nowhere below that of one way.

    This is the GEE with independence as its working correlation. An exchangeable one would weigh
    templates otherwise and rest on the same sandwich; no row of it is given, because its fit
    diverges where a precision has hardly any stereotyped answers, as in the default study.

    The last row, ``trend``, is the odds ratio for one step down the ladder of precisions present,
    from a model with the step as a number. It averages over steps that may be most unlike, see
    :func:`steps`, and does not say that the change is monotone.

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
    fit = smf.glm(_formula(terms, counts), counts, family=sm.families.Binomial()).fit()
    templates = pd.factorize(counts["template_id"])[0]
    variance, clusters = np.diag(cov_cluster(fit, templates)), templates.max() + 1
    if _several_checkpoints(counts):
        models = pd.factorize(counts["model"])[0]
        ways = map(np.diag, cov_cluster_2groups(fit, templates, models))
        variance, clusters = np.max([*ways], axis=0), min(clusters, models.max() + 1)
    return _table(fit.params.index, fit.params.to_numpy(), np.sqrt(variance), clusters - 1,
                  templates.max() + 1)


def _several_checkpoints(counts):
    return "family" in counts and counts.groupby("family")["model"].nunique().min() > 1


def steps(odds: pd.DataFrame) -> pd.Series:
    """Factor of the odds at each step between neighbouring precisions, from :func:`dose_response`.

    A step is named by the precision that it goes down to. A precision without odds is passed
    over.

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


def flips(answers: pd.DataFrame, bins: int = 5, reference: str = "bf16") -> pd.DataFrame:
    """One row an item and precision: BF16's uncertainty, and whether the first choice changed.

    ``entropy`` (bits) and ``margin`` (between the two likeliest letters) are of BF16's answer in
    the original order at temperature 1; ``flip`` says that the likeliest letter differs.
    ``bin`` numbers equal shares of items by entropy, from the surest. Items are the ambiguous
    ones: the others are surer, so that a mixture of both would sort by kind of item.
    """
    chosen = (answers["order"] == "012") & (answers["context_condition"] == "ambig")
    each = role_of_letters(answers[chosen], "unit")
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

    Measures: ``flip_rate`` and ``entropy`` of each bin (column ``bin``), and ``predicted``, the
    mean of a logistic curve of flip on entropy fitted within the cell.
    """
    table = flips(answers, bins).assign(items=1.0)
    keys = study_columns(table)
    parts = [_calibrated(part) for _, part in table.groupby(keys, dropna=False, sort=False)]
    table = pd.concat(parts, ignore_index=True)
    measures = {"flip_rate": ratio("flip", "items"), "predicted": ratio("predicted", "items"),
                "entropy": ratio("entropy", "items", (0, np.log2(3)))}
    return estimates(table, measures, ["flip", "predicted", "entropy", "items"], [*keys, "bin"],
                     **options)


def flip_ratio(answers: pd.DataFrame, bins: int = 5, **options) -> pd.DataFrame:
    """Flip rate of the least sure bin over that of the surest, over all models of a study.

    It is a ratio of means, so that a checkpoint whose surest items never flip counts. Where every
    family has several checkpoints, the interval is a jackknife over them on the log scale, with
    families as they are; else models are as they are, and templates are resampled.

    Returns
    -------
    DataFrame
        ``precision, estimate, low, high, n`` (checkpoints).
    """
    table = flips(answers, bins)
    sides = {"sure": table["bin"] == 1, "unsure": table["bin"] == bins}
    parts = {f"{name}_{side}": value * inside for side, inside in sides.items()
             for name, value in (("flip", table["flip"]), ("items", 1.0))}
    table = table.assign(**parts)
    of = Measure(lambda t: (t["flip_unsure"] / t["items_unsure"])
                 / (t["flip_sure"] / t["items_sure"]), (0, np.inf))
    if not _several_checkpoints(table):
        found = estimates(table, {"flip_ratio": of}, [*parts], ["precision"], **options)
        models = table["model"].nunique() if "model" in table else 1
        return found.assign(n=models).drop(columns="measure")
    rows = []
    for precision, part in table.groupby("precision", observed=True, sort=False):
        units = part.groupby(["family", "model"], observed=True)[[*parts]].sum().reset_index()
        rates = {s: (units[f"flip_{s}"] / units[f"items_{s}"]).to_numpy() for s in sides}
        families = units["family"].to_numpy()
        log_ratio = _log_ratio_of_means(rates["unsure"], rates["sure"], families)
        rows.append((precision, *np.exp(stratified_interval(log_ratio, families)), len(units)))
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
