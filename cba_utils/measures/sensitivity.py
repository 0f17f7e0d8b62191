"""How numbers depend on choices: seeds, parser, counting, temperature, letters, family, checkpoint."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from scipy import stats as sps

from cba_utils.answering.prompts import LETTERS, PARSERS, parse_response
from cba_utils.measures.controls import is_balanced
from cba_utils.measures.frames import item_table, pair_with
from cba_utils.measures.intervals import ESTIMATE_COLUMNS, estimates
from cba_utils.measures.measure import (
    SHARE,
    Measure,
    difference,
    measure,
    members,
    minus,
    ratio,
    register,
)
from cba_utils.measures.pooling import leave_one_out, pool
from cba_utils.measures.rates import TOTALS, role_rates
from cba_utils.measures.transitions import (
    CAN_CHANGE,
    DRAWS,
    TRANSITIONS,
    five_seed_weights,
    observed_changes,
    transitions,
)
from cba_utils.names import REFERENCE, ROLES
from cba_utils.study.roles import role_probabilities, study_columns

register(
    Measure(
        "became_biased_beyond_odds",
        "Gained a stereotyped answer beyond what each item's own odds let expect, %",
        bounds=difference(SHARE),
        kind="beyond",
        base="became_biased_expected",
        counts=CAN_CHANGE,
    )
)


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
    frame: pd.DataFrame, precision: str, reference: str = REFERENCE
) -> pd.DataFrame:
    """Items that became biased at a precision, in every model, under every combination of choices.

    Parameters
    ----------
    frame : DataFrame
        Answers, or samples or their item table where there are no probabilities.
    precision : str
        The precision that is compared with the reference.

    Returns
    -------
    DataFrame
        Estimates of every model with ``counting``: ``"one way"``; ``"minus placebo"``, what fresh
        draws at the reference would give; ``"minus mirror image"``, what became anti-stereotyped;
        ``"beyond own odds"``, what would have become biased if persons were named as often, by the
        odds that each item gave them at the reference. From answers also ``temperature``, the
        study's or 1, and ``letters``, as written or balanced over option orders, where every model
        was asked in such orders. From draws there are neither; ``"minus lost"`` subtracts the items
        that lost their bias, which with the same draws stands for the placebo.
    """
    frame = frame[frame["precision"].isin([reference, precision])]
    if "logp_A" not in frame:
        paired = _ambiguous(pair_with(frame, reference))
        table = paired.assign(items=1.0, **observed_changes(paired).astype(float))
        return _counted(table, DRAWN, [*observed_changes(paired)])
    orders = frame.groupby("model")["order"].unique().map(sorted).map(tuple)
    letters = {"as written": "original"}
    if orders.nunique() == 1 and len(orders.iloc[0]) > 1 and is_balanced(frame):
        letters["balanced"] = "all"
    found = []
    for (heat, temperature), (placed, order) in product(
        {"the study's": "study", "1": "unit"}.items(), letters.items()
    ):
        paired = pair_with(item_table(frame, temperature, order), reference)
        table, columns = _fresh(_ambiguous(paired))
        found.append(_counted(table, EXACT, columns).assign(temperature=heat, letters=placed))
    return pd.concat(found, ignore_index=True)


def over_choices(cells: pd.DataFrame) -> pd.DataFrame:
    """Pool a specification curve over all families and over each, with and without its odd checkpoint.

    The odd checkpoint is the one whose absence moves the estimate of the published counting most. It
    is left out where every family has three checkpoints or more.

    Returns
    -------
    DataFrame
        The columns of the choices, ``families`` (``"all"`` or one's name), ``without`` (``"none"``
        or the name of the odd checkpoint) and ``measure, estimate, low, high, n``.
    """
    choices = [c for c in ("counting", "temperature", "letters", "undefined") if c in cells]
    names = list(dict.fromkeys(cells["family"]))
    replicated = cells.groupby("family")["model"].nunique().min() > 2
    found = []
    for name in ["all", *names] if len(names) > 1 else ["all"]:
        part = cells[cells["family"] == name] if name != "all" else cells
        apart = {"none": part}
        if replicated:
            first = part[choices] == part[choices].iloc[0]
            row = leave_one_out(part[first.all(axis=1)].drop(columns=choices)).iloc[0]
            away = {
                row[f"without_{end}"]: abs(row[end] - row["estimate"]) for end in ("least", "most")
            }
            odd = max(away, key=lambda one: away[one])
            apart[odd] = part[part["model"] != odd]
        for without, kept in apart.items():
            pooled = kept if kept["model"].nunique() == 1 else pool(kept)
            found.append(pooled.assign(families=name, without=without))
    columns = [*choices, "families", "without", *ESTIMATE_COLUMNS]
    return pd.concat(found, ignore_index=True)[columns]


def _ambiguous(table):
    return table[table["context_condition"] == "ambig"].reset_index(drop=True)


def _fresh(table):
    """Totals of items that become biased by fresh draws, by the placebo's and by own odds."""
    before, after = table["stereotyped_ref"], table["stereotyped"]
    mirror = table["anti_stereotyped_ref"], table["anti_stereotyped"]
    odds = before / (before + mirror[0])
    columns = {
        **five_seed_weights(before, after),
        **{f"{k}_0": v for k, v in five_seed_weights(before, before).items()},
        **{f"{k}_own": v for k, v in five_seed_weights(before, odds * (after + mirror[1])).items()},
        **five_seed_weights(*mirror, name="anti"),
        **{f"{k}_0": v for k, v in five_seed_weights(mirror[0], mirror[0], name="anti").items()},
    }
    return table.assign(**columns), [*columns]


def _counted(table, countings, columns):
    """Estimates of every counting in every model."""
    measures = [measure(name).computed(of, "could_gain_bias") for name, of in countings.values()]
    keys = [c for c in study_columns(table) if c != "precision"]
    found = estimates(table, measures, columns, keys, method="jackknife")
    named = {name: counting for counting, (name, _) in countings.items()}
    return found.assign(counting=found["measure"].map(named))


_ONE_WAY = ratio("gained_bias", "could_gain_bias")
_EXCESS = minus(_ONE_WAY, ratio("gained_bias_0", "could_gain_bias_0"))
_MIRROR = ratio("gained_anti", "could_gain_anti")
EXACT = {
    "one way": ("became_biased_expected", _ONE_WAY),
    "minus placebo": ("became_biased_expected_excess", _EXCESS),
    "minus mirror image": (
        "bias_beyond_mirror",
        minus(_EXCESS, minus(_MIRROR, ratio("gained_anti_0", "could_gain_anti_0"))),
    ),
    "beyond own odds": (
        "became_biased_beyond_odds",
        minus(_ONE_WAY, ratio("gained_bias_own", "could_gain_bias_own")),
    ),
}
DRAWN = {
    "one way": ("became_biased", _ONE_WAY),
    "minus lost": (
        "became_biased_minus_lost",
        minus(_ONE_WAY, ratio("lost_bias", "could_gain_bias")),
    ),
    "minus mirror image": ("bias_beyond_mirror", minus(_ONE_WAY, _MIRROR)),
}
