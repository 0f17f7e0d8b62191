"""What the pages on rounding show and say: alignment in weights, answers without a part of the error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cba_utils.dose_response import perplexity_change
from cba_utils.figures import interval, percent
from cba_utils.intervals import ESTIMATE_COLUMNS
from cba_utils.metrics import bias_scores, placebo
from cba_utils.precisions import most_bits_first, parse_precision
from cba_utils.report import ABSENT, common_words, pick, said
from cba_utils.report_controls import MARGIN
from cba_utils.rounding import PARTS, alignment_left, bits_per_weight, read_rounding
from cba_utils.tables import STUDY, role_probabilities

BIASED = "became_biased_expected"
HOW = ("noise removed", "alignment exact", "error shuffled")
WHERE = tuple(f"{part} in BF16" for part in PARTS)
NOT_HERE = "No model of this study names the checkpoint that it was aligned from."


def open_rounding(report):
    """The tables of a study on rounding, and estimates from them.

    Parameters
    ----------
    report : Report

    Returns
    -------
    dict or None
        ``weights``: estimates of ``left`` and ``noise`` (see `cba_utils.rounding.alignment_left`)
        by family and precision; ``changes``: pooled estimates of what `placebo` gives, of
        ``accuracy`` and of ``perplexity_change``, the variants' names beside the precisions;
        ``differences``: pooled estimates of the variant's rate of newly biased items less that
        of the lowest precision, paired by checkpoint; ``bits``: bits per weight by name.
        None if no model of the study names a base.
    """
    tables = read_rounding(report.study)
    if tables is None or not report.exact:
        return None
    models = tables["variants"]["model"].unique()
    answers = report.answers[report.answers["model"].isin(models)]
    roles = pd.concat([role_probabilities(answers, "study", "original"), tables["variants"]],
                      ignore_index=True)
    text = report.perplexity[report.perplexity["model"].isin(models)]
    nll = pd.concat([text, tables["variant_perplexity"]], ignore_index=True)
    moves = placebo(roles, method="jackknife")
    scores = bias_scores(roles, method="jackknife")
    frames = [moves, scores[scores["measure"] == "accuracy"], perplexity_change(nll, method="jackknife")]
    return {
        "weights": report.summarise(_weights(tables["errors"])),
        "changes": pd.concat([report.pooled(frame) for frame in frames], ignore_index=True),
        "differences": report.pooled(_differences(moves, report.lowest)),
        "bits": _bits(report, tables),
    }


def _weights(errors):
    rows = []
    for key, group in errors.groupby(STUDY, sort=False):
        rows += [(*key, name, value, value, value, int(group["weights"].sum()))
                 for name, value in alignment_left(group).items()]
    return pd.DataFrame(rows, columns=[*STUDY, *ESTIMATE_COLUMNS])


def _differences(moves, lowest):
    """Rate of each variant less that of the lowest precision, checkpoint by checkpoint."""
    rates = moves[moves["measure"] == BIASED]
    keys = [c for c in STUDY if c != "precision"]
    both = rates.merge(rates.loc[rates["precision"] == lowest, [*keys, "estimate"]], on=keys,
                       suffixes=("", "_lowest"))
    change = both["estimate"] - both["estimate_lowest"]
    return both.assign(measure="change", estimate=change, low=np.nan, high=np.nan)[
        [*STUDY, *ESTIMATE_COLUMNS]]


def _bits(report, tables):
    """Bits per weight of everything that was tried: precisions, other groups, parts in BF16."""
    errors = tables["errors"]
    one = errors[(errors["model"] == errors["model"].iloc[0])
                 & (errors["precision"] == report.lowest)]
    finer = set(tables["variants"]["precision"]) - {*HOW, *WHERE}
    bits = {p: bits_per_weight(one, p) for p in most_bits_first([*report.precisions, *finer])}
    kept = {f"{part} in BF16": bits_per_weight(one, report.lowest, (part,)) for part in PARTS}
    return bits | kept


def rows(report, found, names, measure=BIASED):
    """Estimates of a measure, one row a name in the order given, with its ``label``."""
    if found is None:
        return pd.DataFrame(columns=["precision", "label", *ESTIMATE_COLUMNS])
    frame = found["changes"]
    frame = frame[(frame["measure"] == measure) & frame["precision"].isin(names)]
    labels = {name: name for name in (*HOW, *WHERE)}
    labels[report.lowest] = f"as rounded, {report.lowest.upper()}"
    frame = frame.assign(label=frame["precision"].map(labels))
    return frame.sort_values("precision", key=lambda p: p.map(list(names).index))


def placebo_rate(report, found):
    """The placebo of newly biased items, None without probabilities."""
    if found is None:
        return None
    return pick(found["changes"], "became_biased_placebo", report.lowest)["estimate"]


def points(report, found):
    """Newly biased items against bits per weight, one row an option, for a figure."""
    if found is None:
        return pd.DataFrame(columns=["bits", "kind", "label", *ESTIMATE_COLUMNS])
    frame, bits = found["changes"], found["bits"]
    frame = frame[(frame["measure"] == BIASED) & frame["precision"].isin(bits)]
    name = frame["precision"]
    kinds = ["one part in BF16" if n in WHERE else f"groups of {parse_precision(n)['group_size']}"
             for n in name]
    labels = name.str.replace("-g32", ", 32").str.removesuffix(" in BF16")
    labels = labels.where(name.isin(WHERE), labels.str.upper())
    return frame.assign(bits=name.map(bits), kind=kinds, label=labels).sort_values("bits")


def alt_rows(what, frame):
    """A sentence that says what a figure with one row a label shows."""
    if frame.empty:
        return f"{what}: 0 rows to show."
    return f"{what}: " + "; ".join(
        f"{row.label} {percent(row.estimate)}" for row in frame.itertuples()) + "."


def alt_weights(what, weights, measure):
    """Alt text of one measure of the weights by family and precision."""
    frame = weights[weights["measure"] == measure] if len(weights) else weights
    if frame.empty:
        return f"{what}: 0 rows to show."
    return f"{what}, times the alignment: " + "; ".join(
        f"{family} " + ", ".join(f"{r.precision.upper()} {r.estimate:.2f}" for r in part.itertuples())
        for family, part in frame.groupby("family")) + "."


def why_table(report, found):
    """The variants in numbers, one row each."""
    if found is None:
        return pd.DataFrame({"variant": [ABSENT]})
    names = [report.lowest, *HOW, *WHERE]
    columns = {"became biased": BIASED, "right on disambiguated": "accuracy",
               "perplexity change": "perplexity_change"}
    table = pd.DataFrame({"variant": rows(report, found, names)["label"].to_numpy()})
    for title, measure in columns.items():
        table[title] = [interval(row) for _, row in rows(report, found, names, measure).iterrows()]
    return table


def why_words(report, found):
    """Sentences of *Is the alignment rounded away?*"""
    words = common_words(report)
    if found is None:
        names = ("left_sentence", "how_sentence", "where_sentence")
        return {**words, **dict.fromkeys(names, NOT_HERE)}
    low = report.lowest
    return {
        **words,
        "left_sentence": _left_sentence(report, found["weights"]),
        "how_sentence": (
            f"As rounded to {low.upper()}, {said(found['changes'], BIASED, low)} of the unbiased "
            f"items became biased. " + " ".join(_compared(found, name, text) for name, text in (
                ("noise removed", "With the noise removed, and only what is left of the alignment "
                                  "added to the base,"),
                ("alignment exact", "With the alignment added exactly to the rounded base,"),
                ("error shuffled", "With the errors in a random order,")))
        ),
        "where_sentence": " ".join(
            _compared(found, f"{part} in BF16", f"With the {part} left in BF16,") for part in PARTS),
    }


def _left_sentence(report, weights):
    parts = []
    for p in dict.fromkeys([report.middle, report.lowest]):
        at = weights[weights["precision"] == p].groupby("measure")["estimate"]
        low, high = at.min(), at.max()
        parts.append(
            f"At {p.upper()}, {_span(low['left'], high['left'])} of the alignment is left along its "
            f"own direction, and the noise across it is {low['noise']:.1f} to {high['noise']:.1f} "
            f"times as long as the alignment")
    return f"{'. '.join(parts)} (means of the families)."


def _span(low, high):
    return f"{percent(low, 0).removesuffix(chr(160) + '%')} to {percent(high, 0)}"


def _compared(found, name, text):
    """The rate of a variant, and whether it differs from the lowest precision's."""
    change = pick(found["differences"], "change", name)
    rate = said(found["changes"], BIASED, name)
    if np.isnan(change["low"]):
        return f"{text} it is {rate}."
    points = ", ".join(f"{100 * change[k]:.1f}".replace("-", "−") for k in ("low", "high"))
    if change["high"] < 0:
        reading = "less than as rounded"
    elif change["low"] > 0:
        reading = "more than as rounded"
    else:
        reading = "not to be told from as rounded"
    return f"{text} it is {rate}, {reading} (difference within {points} points)."


def help_table(report, found):
    """What every option costs in bits and what it does, from few bits to many."""
    if found is None:
        return pd.DataFrame({"option": [ABSENT]})
    frame, table = found["changes"], []
    for name, bits in sorted(found["bits"].items(), key=lambda pair: pair[1]):
        if name != "bf16":
            table.append({
                "option": _option(report, name), "bits": f"{bits:.1f}",
                "above placebo": said(frame, f"{BIASED}_excess", name),
                "right, disambiguated": said(frame, "accuracy", name),
                "perplexity": said(frame, "perplexity_change", name),
            })
    return pd.DataFrame(table)


def _option(report, name):
    """The name of an option in words.

    Examples
    --------
    >>> _option(None, "q3-g32"), _option(None, "q4")
    ('Q3, groups of 32', 'Q4')
    """
    if name in WHERE:
        return f"{report.lowest.upper()}, {name}"
    precision, _, group = name.partition("-g")
    return precision.upper() + (f", groups of {group}" if group else "")


def help_words(report, found, ladder, depth_moves):
    """Sentences of *What helps?*

    Parameters
    ----------
    report : Report
    found : dict or None
        From `open_rounding`.
    ladder : Report
        The study opened with its depths of alignment.
    depth_moves : DataFrame
        Its estimates a depth.
    """
    words = {**common_words(report), "depth_help": _depth_help(ladder, depth_moves)}
    if found is None:
        return {**words, "group_sentence": NOT_HERE, "cheapest_sentence": NOT_HERE}
    low, bits, frame = report.lowest, found["bits"], found["changes"]
    excess = {name: pick(frame, f"{BIASED}_excess", name) for name in bits if name != "bf16"}
    shown = [name for name, row in excess.items() if row["high"] < MARGIN]
    cheapest = min(shown, key=bits.get, default=None)
    return {
        **words,
        "group_sentence": _group_sentence(report, found),
        "cheapest_sentence": f"No option tried has an excess over the placebo that is shown to lie "
        f"below {percent(MARGIN, 0)}." if cheapest is None else
        f"The cheapest option tried whose excess over the placebo is shown to lie below "
        f"{percent(MARGIN, 0)} is {_option(report, cheapest)}, with {bits[cheapest]:.1f} bits per "
        f"weight ({interval(excess[cheapest])}).",
    }


def _group_sentence(report, found):
    low, above, bits, frame = report.lowest, report.precisions[-2], found["bits"], found["changes"]
    group = f"{low}-g32"
    if group not in bits:
        return f"At {low.upper()} no smaller groups were tried."
    return (
        f"Groups of 32 weights instead of 64 cost {bits[group] - bits[low]:.1f} bits per weight "
        f"at {low.upper()} and take the rate from {said(frame, BIASED, low)} to "
        f"{said(frame, BIASED, group)}; the step to {above.upper()} costs "
        f"{bits[above] - bits[low]:.1f} and takes it to {said(frame, BIASED, above)}."
    )


def _depth_help(ladder, moves):
    if len(ladder.depths) == 1:
        return "This study has a single depth of alignment."
    first, last = ladder.depths[0], ladder.depths[-1]
    at = " and ".join(
        f"{_excess(moves, first, p)} after {first}, {_excess(moves, last, p)} after {last}, at {p.upper()}"
        for p in dict.fromkeys([ladder.middle, ladder.lowest])
    )
    families = " and ".join(sorted(ladder.samples["family"].unique()))
    return (f"Alignment that goes on for longer costs no bits. Tried on {families}, the excess over the "
            f"placebo is {at}.")


def _excess(moves, depth, precision):
    return said(moves[moves["depth"] == depth], f"{BIASED}_excess", precision)
