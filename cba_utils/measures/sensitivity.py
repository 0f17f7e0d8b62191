"""How the headline number depends on choices: the seeds, the parser, the weights, the counting."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats as sps

from cba_utils.answering.prompts import LETTERS, PARSERS, parse_response
from cba_utils.measures.frames import item_table, pair_with
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import measure, members, minus
from cba_utils.measures.rates import TOTALS, role_rates
from cba_utils.measures.transitions import (
    DRAWS,
    TRANSITIONS,
    five_seed_weights,
    observed_changes,
    transitions,
)
from cba_utils.names import REFERENCE, ROLES
from cba_utils.study.roles import role_probabilities, study_columns

COUNTINGS = {
    "one way": "became_biased",
    "minus placebo": "became_biased_excess",
    "minus lost": "became_biased_minus_lost",
}


def five_seed_range(
    answers: pd.DataFrame, samples: pd.DataFrame, reference: str = REFERENCE, draws: int = DRAWS
) -> pd.DataFrame:
    """Where the study's own seeds fall among what independent seeds would have drawn.

    For SRS (per precision) and ``became_biased`` the mean and standard deviation over fresh seeds
    follow from the exact probabilities of the original order at the study's temperature.

    Returns
    -------
    DataFrame
        ``estimate`` (expected), ``low, high`` (95 % of fresh sets of seeds), ``observed``,
        ``percentile`` of the observed among them, ``n`` items.
    """
    table = item_table(role_probabilities(answers, "study", "original"))
    table = table[table["context_condition"] == "ambig"]
    keys = study_columns(table)
    rows = []
    for key, part in table.groupby(keys, observed=True, dropna=False):
        p, parsed = part["stereotyped"].to_numpy(), part["parsed"].to_numpy()
        rows.append(
            (
                *key,
                "srs",
                *_ratio_of_draws(
                    p, parsed, p * (1 - p), parsed * (1 - parsed), p * (1 - parsed), draws
                ),
                len(part),
            )
        )
    paired = pair_with(table, reference)
    top, bottom = TRANSITIONS["became_biased"]
    for key, part in paired.groupby(keys, observed=True, dropna=False):
        w = five_seed_weights(
            part["stereotyped_ref"].to_numpy(), part["stereotyped"].to_numpy(), draws=draws
        )
        x, y = w[top], w[bottom]
        rows.append(
            (
                *key,
                "became_biased",
                *_ratio_of_draws(x, y, x * (1 - x), y * (1 - y), x * (1 - y)),
                len(part),
            )
        )
    expected = pd.DataFrame(rows, columns=[*keys, "measure", "estimate", "error", "n"])
    seen = pd.concat(
        [role_rates(samples, method="jackknife"), transitions(samples, method="jackknife")]
    )
    seen = seen[[*keys, "measure", "estimate"]].rename(columns={"estimate": "observed"})
    found = expected.merge(seen, on=[*keys, "measure"], how="left")
    z = sps.norm.ppf(0.975)
    found["low"] = np.maximum(found["estimate"] - z * found["error"], 0)
    found["high"] = np.minimum(found["estimate"] + z * found["error"], 1)
    found["percentile"] = sps.norm.cdf(found["observed"], found["estimate"], found["error"])
    return found[[*keys, "measure", "estimate", "low", "high", "observed", "percentile", "n"]]


def _ratio_of_draws(x, y, var_x, var_y, cov, draws=1):
    """Mean and standard deviation (delta method) of sum X / sum Y over independent items."""
    r, total = x.sum() / y.sum(), y.sum()
    variance = (var_x - 2 * r * cov + r**2 * var_y).sum() / draws
    return r, np.sqrt(np.maximum(variance, 1e-18)) / total


def reparse(samples: pd.DataFrame, items: pd.DataFrame, parser: str) -> pd.DataFrame:
    """Samples with roles from another parser of `cba_utils.answering.prompts.parse_response`."""
    if "raw_response" in samples:
        text = samples["raw_response"].astype(object)
        letter = text.map({t: parse_response(t, parser) for t in text.unique()})
    else:  # tables without the responses' words have what either parser read in them
        letter = samples[f"parsed_{parser}"]
    place = letter.map({x: k for k, x in enumerate(LETTERS)})
    known = items.set_index("item_id")
    role = np.full(len(samples), "unparsed", object)
    for name in ROLES:
        at = samples["item_id"].map(known[f"{name}_index"])
        role[(place == at).to_numpy(bool, na_value=False)] = name
    right = place == samples["item_id"].map(known["label"])
    return samples.assign(parsed_answer=letter, role=role, correct=right)


def parser_rates(samples: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Rates of the same answers by either parser, and what the published one changes.

    Returns
    -------
    DataFrame
        Tidy estimates with a column ``parser``: ``"strict"`` and ``"published"`` have the measures of
        :func:`cba_utils.measures.rates.role_rates`; ``"published minus strict"`` has their changes,
        item by item, so that what both parsers read alike cancels.
    """
    tables = {parser: _ambiguous(item_table(reparse(samples, items, parser))) for parser in PARSERS}
    strict, published = tables["strict"], tables["published"]
    keys = study_columns(strict)
    both = published.merge(
        strict[[*keys, "item_id", *TOTALS]],
        on=[*keys, "item_id"],
        suffixes=("", "_ref"),
        validate="one_to_one",
    )
    changes = estimates(
        both,
        [measure(f"d_{one.name}") for one in members("rates")],
        [*TOTALS, *(f"{name}_ref" for name in TOTALS)],
        keys,
    )
    return pd.concat(
        [
            *(role_rates(table).assign(parser=parser) for parser, table in tables.items()),
            changes.assign(parser="published minus strict"),
        ],
        ignore_index=True,
    )


def specification_curve(
    answers: pd.DataFrame,
    samples: pd.DataFrame,
    items: pd.DataFrame,
    precision: str,
    reference: str = REFERENCE,
    **options,
) -> pd.DataFrame:
    """The headline number, items that became biased, under every combination of four choices.

    Parameters
    ----------
    answers : DataFrame
        Without rows, fresh draws and the placebo are not among the combinations.
    precision : str
        The precision that is compared with the reference.

    Returns
    -------
    DataFrame
        ``draws`` (the study's own seeds or fresh ones), ``parser`` (strict or the paper's; fresh
        draws have the strict one), ``weights`` (every item alike, or every category alike),
        ``counting`` (one way; minus placebo; minus the items that lost their bias), and
        ``measure, estimate, low, high, n``. ``"minus placebo"`` subtracts what fresh draws at the
        reference would give.
    """
    chosen = [reference, precision]
    samples = samples[samples["precision"].isin(chosen)]
    tables, exact = {}, None
    if len(answers):
        exact = role_probabilities(answers[answers["precision"].isin(chosen)], "study", "original")
        exact = _ambiguous(pair_with(exact, reference))
        before, after = exact["stereotyped_ref"], exact["stereotyped"]
        null = {f"{k}_0": v for k, v in five_seed_weights(before, before).items()}
        tables["fresh", "strict"] = exact.assign(**null, **five_seed_weights(before, after))
        keys = [*study_columns(exact), "item_id"]
        exact = exact[keys].assign(**null)
    for parser in PARSERS:
        seen = _ambiguous(pair_with(reparse(samples, items, parser), reference))
        seen = seen.assign(**observed_changes(seen).astype(float))
        if exact is not None:
            seen = seen.merge(exact, on=keys, validate="one_to_one")
        tables["study's", parser] = seen
    frames = []
    for (draws, parser), table in tables.items():
        for weights in ("items", "categories"):
            wide, columns, measures = _specified(table, weights)
            found = estimates(wide, measures, columns, study_columns(wide), **options)
            frames.append(found.assign(draws=draws, parser=parser, weights=weights))
    curve = pd.concat(frames, ignore_index=True)
    return curve.assign(counting=curve["measure"].map({v: k for k, v in COUNTINGS.items()}))


def _ambiguous(table):
    return table[table["context_condition"] == "ambig"].reset_index(drop=True)


def _specified(table, weights):
    """Totals and measures, of all items together or of each category."""
    names = ["gained_bias", "could_gain_bias", "lost_bias", "gained_bias_0", "could_gain_bias_0"]
    names = [name for name in names if name in table]
    table = table.assign(items=1.0)
    groups = {"": np.ones(len(table))}
    if weights == "categories":
        groups = {
            f"@{c}": (table["category"] == c).to_numpy(float)
            for c in sorted(table["category"].unique())
        }
    wide = {
        f"{name}{g}": table[name] * inside
        for g, inside in groups.items()
        for name in [*names, "items"]
    }

    def mean(top, bottom):
        # A resample that lacks a category has no mean over the categories: NaN drops it.
        return lambda t: sum(top(t, g) / t[bottom + g] for g in groups) / len(groups)

    one_way = mean(lambda t, g: t[f"gained_bias{g}"], "could_gain_bias")
    null = mean(lambda t, g: t[f"gained_bias_0{g}"], "could_gain_bias_0")
    back = mean(lambda t, g: t[f"lost_bias{g}"], "could_gain_bias")
    counted = {
        "one way": one_way,
        "minus placebo": minus(one_way, null),
        "minus lost": minus(one_way, back),
    }
    if "gained_bias_0" not in table:
        del counted["minus placebo"]
    measures = [measure(COUNTINGS[name]).computed(of) for name, of in counted.items()]
    return table.assign(**wide), [*wide], measures
