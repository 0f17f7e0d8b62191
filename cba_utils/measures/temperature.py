"""What the recorded probabilities say of other temperatures than those they were recorded at.

Records hold the probability of each letter, and of all that is no letter, at temperature 1 and at the
study's own. In between, and below, the log odds of one of these four against another are taken to be
linear in one over the temperature, through the two recorded points. For single tokens that is exact. A
letter that has several spellings, and "no letter", which is thousands of tokens, are sums: their mass
falls faster with the temperature than a single token's would, the more so the more tokens share it, and
the line through both recorded points carries that. It is exact at both, and a test bounds it elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS, ORIGINAL
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import measure, minus, ratio, suffixed
from cba_utils.measures.transitions import five_seed_weights
from cba_utils.names import REFERENCE, ROLES
from cba_utils.study.roles import study_columns

TEMPERATURES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_GAINED, _NULL = ("gained_bias", "could_gain_bias"), ("gained_bias_0", "could_gain_bias_0")
_HEADLINE = {
    "srs": ratio("stereotyped", "parsed"),
    "named_share": ratio("stereotyped", "named"),
    "unparsed_rate": ratio("unparsed", "draws"),
    "became_biased_expected": ratio(*_GAINED),
    "became_biased_placebo": ratio(*_NULL),
    "became_biased_expected_excess": minus(ratio(*_GAINED), ratio(*_NULL)),
}
_LEAST = -80.0  # log probability that stands for none: no odds of nothing


def at_temperature(answers: pd.DataFrame, temperature: float, recorded: float) -> pd.DataFrame:
    """Answers whose second set of probabilities (suffix ``_t``) is that of another temperature.

    Parameters
    ----------
    answers : DataFrame
    temperature : float
        From 0, which is the likeliest answer alone, to 1.
    recorded : float
        The study's temperature, at which the columns with ``_t`` were recorded.

    Examples
    --------
    >>> from cba_utils.instrument.respondents import simulate_respondents
    >>> answers = simulate_respondents("none", templates=2, items_per_template=4, temperature=0.3)
    >>> again = at_temperature(answers, 0.3, recorded=0.3)
    >>> bool(np.allclose(again["logp_A_t"], answers["logp_A_t"], atol=1e-5))
    True
    """
    if not 0 <= temperature <= 1:
        raise ValueError(f"temperature: {temperature!r} is not between 0 and 1")
    if not 0 < recorded < 1:
        raise ValueError(f"recorded: {recorded!r} is no temperature between 0 and 1")
    logp = [_with_other(answers, suffix) for suffix in ("", "_t")]
    if temperature:
        part = (1 / temperature - 1) / (1 / recorded - 1)
        line = (1 - part) * logp[0] + part * logp[1]
        line = line - line.max(axis=1, keepdims=True)
        p = np.exp(line)
        p = p / p.sum(axis=1, keepdims=True)
    else:
        slope = (logp[1] - logp[0]) / (1 / recorded - 1)
        # Of equals the first recorded decides, so that one answer has it all.
        p = np.eye(4)[(slope + 1e-9 * logp[0]).argmax(axis=1)]
    names = [f"logp_{x}_t" for x in LETTERS]
    with np.errstate(divide="ignore"):
        shown = dict(zip(names, np.log(p[:, :3]).T, strict=True))
    return answers.assign(**shown, mass_other_t=p[:, 3])


def _with_other(answers, suffix):
    """Log-probabilities of the three letters and of no letter."""
    other = answers[f"mass_other{suffix}"].to_numpy(float)
    with np.errstate(divide="ignore"):
        logs = np.column_stack(
            [*(answers[f"logp_{x}{suffix}"].to_numpy(float) for x in LETTERS), np.log(other)]
        )
    return np.maximum(logs, _LEAST)


def by_temperature(
    answers: pd.DataFrame,
    recorded: float,
    temperatures: Sequence[float] = TEMPERATURES,
    by: Sequence[str] = (),
    reference: str = REFERENCE,
    **options,
) -> pd.DataFrame:
    """Headline measures at each of several temperatures, which is a column.

    Parameters
    ----------
    answers : DataFrame
    recorded : float
        The study's temperature.
    temperatures : sequence of float
    **options
        Passed to :func:`cba_utils.measures.intervals.estimates`.

    Measures
    --------
    srs, named_share, unparsed_rate
        Of ambiguous items, averaged over their option orders.
    became_biased_expected, became_biased_placebo, became_biased_expected_excess
        Of five fresh draws at the temperature, in the original option order, as
        :func:`cba_utils.measures.transitions.placebo` has them at the study's. At 0 every draw is the
        likeliest answer, and the placebo is none.

    ``n`` counts items.
    """
    answers = answers[answers["context_condition"] == "ambig"]
    keys = [*study_columns(answers), *by]
    unit = pd.MultiIndex.from_frame(answers[[*study_columns(answers), "item_id"]]).factorize()[0]
    roles = answers[[f"role_{x}" for x in LETTERS]].to_numpy(str)
    written = (answers["order"] == ORIGINAL).to_numpy()
    first = pd.Series(unit).drop_duplicates().index
    table = answers.iloc[first][[*keys, "item_id", "template_id"]].reset_index(drop=True)
    before = _at_reference(table, reference)
    columns, measures = {}, []
    for temperature in temperatures:
        hot = at_temperature(answers, temperature, recorded)
        p = np.exp(hot[[f"logp_{x}_t" for x in LETTERS]].to_numpy(float))
        persons = [(p * (roles == role)).sum(axis=1) for role in ROLES[:2]]
        told = {
            "stereotyped": _means(unit, persons[0]),
            "named": _means(unit, sum(persons)),
            "unparsed": _means(unit, hot["mass_other_t"].to_numpy(float)),
            "draws": np.ones(len(table)),
        }
        told["parsed"] = 1 - told["unparsed"]
        drawn = _means(unit[written], persons[0][written])
        seeds = five_seed_weights(drawn[before], drawn)
        null = five_seed_weights(drawn[before], drawn[before])
        told |= seeds | {f"{name}_0": value for name, value in null.items()}
        columns |= {f"{name}@{temperature}": value for name, value in told.items()}
        measures += [
            replace(
                measure(name).computed(suffixed(of, f"@{temperature}")),
                name=f"{name}@{temperature}",
            )
            for name, of in _HEADLINE.items()
        ]
    table = table.assign(**columns)
    found = estimates(table, measures, [*columns], keys, **options)
    names = found["measure"].str.split("@", expand=True)
    found = found.assign(measure=names[0], temperature=names[1].astype(float))
    changes = found["measure"].str.startswith("became")
    return found[~changes | (found["precision"] != reference)].reset_index(drop=True)


def _means(unit, values):
    """Mean over the option orders of each item."""
    return np.bincount(unit, values) / np.bincount(unit)


def _at_reference(table, reference):
    """The row of each item at the reference."""
    cell = [c for c in study_columns(table) if c != "precision"]
    index = pd.MultiIndex.from_frame(table[[*cell, "item_id"]])
    there = np.flatnonzero(table["precision"] == reference)
    at = index[there].get_indexer(index)
    if (at < 0).any():
        lone = table[at < 0].iloc[0]
        raise ValueError(f"item {lone['item_id']!r} has no {reference} answers")
    return there[at]
