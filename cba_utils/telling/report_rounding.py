"""What the pages on rounding show and say: alignment in weights, answers without a part of the error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cba_utils.measures.perplexity import perplexity_change
from cba_utils.telling.numbers import interval, percent
from cba_utils.measures.intervals import ESTIMATE_COLUMNS
from cba_utils.measures.pooling import over_replicates
from cba_utils.measures.rates import bias_scores
from cba_utils.measures.transitions import placebo
from cba_utils.answering.precisions import most_bits_first, parse_precision
from cba_utils.telling.report import ABSENT, common_words, depth_answer, pick, points as in_points, said
from cba_utils.study.rounding import PARTS, ROUNDED, alignment_left, bits_per_weight, read_rounding
from cba_utils.measures.tests import MARGIN
from cba_utils.study.roles import role_probabilities
from cba_utils.names import STUDY

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
        ``weights``: estimates of ``left`` and ``noise`` (see `cba_utils.study.rounding.alignment_left`)
        by family and precision; ``changes``: pooled estimates of what `placebo` gives, of
        ``accuracy`` and of ``perplexity_change``, the variants' names beside the precisions;
        ``differences``: pooled estimates of the variant's rate of newly biased items less that
        of the lowest precision, paired by checkpoint, and ``from_above`` less that of the next
        precision; ``bits``: bits per weight by name; ``provenance``: one row a model.
        None if no model of the study names a base.
    """
    tables = read_rounding(report.study)
    if tables is None or not report.exact:
        return None
    # Here a variant is one more precision to compare with BF16.
    for name in ("variants", "variant_perplexity"):
        named = tables[name]["variant"] != ROUNDED
        key = tables[name]["precision"].mask(named, tables[name]["variant"])
        tables[name] = tables[name].assign(precision=key).drop(columns="variant")
    models = tables["variants"]["model"].unique()
    answers = report.answers[report.answers["model"].isin(models)]
    roles = pd.concat([role_probabilities(answers, "study", "original"), tables["variants"]],
                      ignore_index=True)
    text = report.perplexity[report.perplexity["model"].isin(models)]
    nll = pd.concat([text, tables["variant_perplexity"]], ignore_index=True)
    moves = placebo(roles, method="jackknife")
    scores = bias_scores(roles, method="jackknife")
    frames = [moves, scores[scores["measure"] == "accuracy"], perplexity_change(nll, method="jackknife")]
    weights = _weights(tables["errors"])
    return {
        # lengths have no upper end at which an interval could be cut
        "weights": over_replicates(weights) if report.several else weights,
        "changes": pd.concat([report.pooled(frame) for frame in frames], ignore_index=True),
        "differences": report.pooled(_differences(moves, report.lowest)),
        "from_above": report.pooled(_differences(moves, report.precisions[-2])),
        "bits": _bits(report, tables),
        "provenance": tables["provenance"],
    }


def _weights(errors):
    rows = []
    for key, group in errors.groupby(STUDY, sort=False):
        rows += [(*key, name, value, value, value, int(group["weights"].sum()))
                 for name, value in alignment_left(group).items()]
    return pd.DataFrame(rows, columns=[*STUDY, *ESTIMATE_COLUMNS])


def _differences(moves, reference):
    """Rate of each variant less that of a precision, checkpoint by checkpoint."""
    rates = moves[moves["measure"] == BIASED]
    keys = [c for c in STUDY if c != "precision"]
    both = rates.merge(rates.loc[rates["precision"] == reference, [*keys, "estimate"]], on=keys,
                       suffixes=("", "_reference"))
    change = both["estimate"] - both["estimate_reference"]
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
    kinds = ["one part in BF16" if n in WHERE else f"groups of {parse_precision(n).group}"
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
        names = ("why_answer", "left_sentence", "how_sentence", "where_sentence")
        return {**words, **dict.fromkeys(names, NOT_HERE)}
    low = report.lowest
    return {
        **words,
        "provenance_line": f"{words['provenance_line']}; {rounding_line(found)}",
        "why_answer": _why_answer(report, found),
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


def rounding_line(found):
    """How many models were taken apart, by which code and when, for the foot of a page."""
    known = found["provenance"].sort_values("started")
    commits = " and ".join(c[:7] for c in known["git_commit"].dropna().unique()) or "none"
    days = dict.fromkeys([known["started"].iloc[0][:10], known["started"].iloc[-1][:10]])
    return (f"rounding of {len(known)} model{'s' * (len(known) > 1)} taken apart, code of commit "
            f"{commits}, {' to '.join(days)}")


def _why_answer(report, found):
    """Whether it is the lost part of the alignment or the noise that answers change with."""
    noise, lost = (pick(found["differences"], "change", name) for name in HOW[:2])
    low = report.lowest.upper()
    if np.isnan([noise["high"], lost["high"]]).any():
        return "With a single checkpoint there is no interval, so these records cannot say."
    away, drowned = lost["high"] < 0, noise["high"] < 0
    if drowned and not away:
        return (f"Rather drowned than rounded away: at {low}, fewer items become biased once the noise is "
                f"removed; once the alignment is given back in full under the noise, no fall is shown.")
    if away and not drowned:
        return (f"Rather rounded away than drowned: at {low}, fewer items become biased once the "
                f"alignment is given back in full; once the noise is removed, no fall is shown.")
    if away:
        return (f"Both: at {low}, fewer items become biased once the noise is removed, and fewer once "
                f"the alignment is given back in full.")
    return (f"These records cannot tell: at {low}, neither removing the noise nor giving the alignment "
            f"back in full is shown to lower the share of items that became biased.")


def _left_sentence(report, weights):
    parts, over = [], False
    for p in dict.fromkeys([report.middle, report.lowest]):
        at = weights[weights["precision"] == p].groupby("measure")["estimate"]
        low, high = at.min(), at.max()
        over = over or high["left"] > 1
        noise = " to ".join(dict.fromkeys(f"{end['noise']:.1f}" for end in (low, high)))
        parts.append(
            f"At {p.upper()}, {_span(low['left'], high['left'])} of the alignment is left along its "
            f"own direction, and the noise across it is {noise} times as long as the alignment")
    means = " (means of the families)" if weights["family"].nunique() > 1 else ""
    sentence = f"{'. '.join(parts)}{means}."
    if over:
        sentence += (" More than all of it is left where the rounding error happens to point along the "
                     "alignment, and so adds to it.")
    return sentence


def _span(low, high):
    ends = dict.fromkeys(percent(value, 0).removesuffix("\u00a0%") for value in (low, high))
    return f"{' to '.join(ends)}\u00a0%"


def _compared(found, name, text):
    """The rate of a variant, and whether it differs from the lowest precision's."""
    change = pick(found["differences"], "change", name)
    rate = said(found["changes"], BIASED, name)
    if np.isnan(change["low"]):
        return f"{text} it is {rate}."
    by = in_points(change)
    if change["high"] < 0:
        fewer = in_points({k: -change[v] for k, v in (("estimate", "estimate"), ("low", "high"),
                                                      ("high", "low"))})
        return f"{text} it is {rate}, which is {fewer} points less than as rounded."
    if change["low"] > 0:
        return f"{text} it is {rate}, which is {by} points more than as rounded."
    return f"{text} it is {rate}, not to be told from as rounded (a change of {by} points)."


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


def help_words(report, found, ladder, checkpoints):
    """Sentences of *What helps?*

    Parameters
    ----------
    report : Report
    found : dict or None
        From `open_rounding`.
    ladder : Report
        The study opened with its depths of alignment.
    checkpoints : DataFrame
        Its changes, an estimate a checkpoint.
    """
    words = {**common_words(report), "depth_help": _depth_help(ladder, checkpoints)}
    if found is None:
        names = ("help_answer", "group_sentence", "cheapest_sentence")
        return {**words, **dict.fromkeys(names, NOT_HERE)}
    bits, frame = found["bits"], found["changes"]
    excess = {name: pick(frame, f"{BIASED}_excess", name) for name in bits if name != "bf16"}
    shown = [name for name, row in excess.items() if row["high"] < MARGIN]
    cheapest = min(shown, key=bits.get, default=None)
    both = pd.concat([report.provenance, ladder.provenance]).drop_duplicates(["model", "precision"])
    return {
        **words,
        "provenance_line": f"{report.cited(both)}; {rounding_line(found)}",
        "help_answer": _help_answer(report, found),
        "group_sentence": _group_sentence(report, found),
        "cheapest_sentence": f"No option tried has an excess over the placebo that is shown to lie "
        f"below {percent(MARGIN, 0)}." if cheapest is None else
        f"The cheapest option tried whose excess over the placebo is shown to lie below "
        f"{percent(MARGIN, 0)} is {_option(report, cheapest)}, with {bits[cheapest]:.1f} bits per "
        f"weight ({interval(excess[cheapest])}).",
    }


def _help_answer(report, found):
    """Whether one more level beats the other ways to spend bits, from paired intervals."""
    bits, low, above = found["bits"], report.lowest, report.precisions[-2]
    if above == "bf16":
        return "This study has one quantized precision, so there is no step to compare others with."
    others = [name for name in bits if name in WHERE or name.startswith(f"{low}-g")]
    worse = [name for name in others if pick(found["from_above"], "change", name)["low"] > 0]
    price = f"{above.upper()} at {bits[above]:.1f} bits per weight"
    if not worse:
        return (f"These records cannot tell: no other way to spend bits at {low.upper()} is shown to "
                f"leave more newly biased items than {price}.")

    def named(names):
        what = (f"{name.replace(f'{low}-g', 'groups of ')} ({bits[name]:.1f} bits)" for name in names)
        return f"{low.upper()} with {' or '.join(what)}"

    rest = [name for name in others if name not in worse]
    if not rest:
        return f"On more levels: {price} leaves fewer newly biased items than {named(worse)}."
    return (f"More levels help most surely: {price} leaves fewer newly biased items than "
            f"{named(worse)}; it is not shown to leave fewer than {named(rest)}.")


def _group_sentence(report, found):
    low, above, bits, frame = report.lowest, report.precisions[-2], found["bits"], found["changes"]
    group = f"{low}-g32"
    if group not in bits:
        return f"At {low.upper()} no smaller groups were tried."
    step = "" if above == "bf16" else (
        f"; the step to {above.upper()} costs {bits[above] - bits[low]:.1f} and takes it to "
        f"{said(frame, BIASED, above)}")
    return (
        f"Groups of 32 weights instead of 64 cost {bits[group] - bits[low]:.1f} bits per weight "
        f"at {low.upper()} and take the rate from {said(frame, BIASED, low)} to "
        f"{said(frame, BIASED, group)}{step}."
    )


def _depth_help(ladder, checkpoints):
    if len(ladder.depths) == 1:
        return "This study has a single depth of alignment."
    families = " and ".join(sorted(ladder.samples["family"].unique()))
    return (f"Alignment that goes on for longer costs no bits. It was tried on {families}. Does a longer "
            f"one hold better? {depth_answer(ladder, checkpoints)}")


def depth_help_table(ladder, moves):
    """The excess over the placebo at each depth of alignment."""
    table = []
    for depth in ladder.depths:
        own = moves[moves["depth"] == depth]
        table.append({"alignment": depth} | {
            f"above placebo at {p.upper()}": said(own, f"{BIASED}_excess", p)
            for p in dict.fromkeys([ladder.middle, ladder.lowest])})
    return pd.DataFrame(table)
