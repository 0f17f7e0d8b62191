"""What the control chapters say: their estimates as sentences, glued into the pages.

Every function takes a :class:`cba_utils.telling.report.Report` and frames of estimates and returns a
mapping from glue name to text. Where a study cannot answer a question, because it holds one option
order or no disambiguated items, the text says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.instrument import verdicts as instrument
from cba_utils.measures import models, published_analysis, tests as stats
from cba_utils.telling.figures import alt_text, told
from cba_utils.telling.numbers import (
    interval, odds_text, p_text, percent,
)
from cba_utils.names import PROJECT
from cba_utils.telling.report import ABSENT, common_words

INSTRUMENT = PROJECT / "results" / "instrument" / "rejections.csv"


def steps_sentence(odds, samples, lowest):
    """The average factor of a step down, which step carries it, and the average without it."""
    trend = odds[odds["term"] == "trend"].iloc[0]
    if np.isnan(trend["estimate"]):
        return ("A factor for one step down the ladder is not defined: too few precisions have "
                "any stereotyped answer.")
    text = (f"Averaged over the ladder, one step down multiplies the odds by {odds_text(trend)}.")
    each = models.steps(odds)
    if len(each) < 2:
        return text
    most = np.log(each).abs().idxmax()
    before = ["bf16", *each.index][each.index.get_loc(most)]
    rest = each.drop(most)
    rest = " to ".join(dict.fromkeys([f"{rest.min():.2f}", f"{rest.max():.2f}"]))
    text += (f" The steps differ: from {before.upper()} to {most.upper()} the factor is "
             f"{each[most]:.2f}, elsewhere {rest}.")
    without = models.dose_response(samples[samples["precision"] != lowest])
    without = without[without["term"] == "trend"].iloc[0]
    return f"{text} Without {lowest.upper()} the average is {odds_text(without)}."


def published_design(report):
    """The records as the published study has them: one checkpoint a family, named by it.

    Returns
    -------
    (DataFrame, DataFrame)
        Item table of the samples, and perplexity.
    """
    chosen = []
    for frame in (report.drawn, report.perplexity):
        frame = _first_checkpoints(frame)
        # A family of several models at one replicate keeps their names.
        several = frame.groupby("family")["model"].nunique().max() > 1
        chosen.append(frame if several else frame.assign(model=frame["family"]))
    return tuple(chosen)


def _first_checkpoints(frame):
    return frame[frame.groupby("family")["replicate"].transform("min") == frame["replicate"]]


def analysis_words(report, samples, correlation):
    """Numbers of the published analysis."""
    low = report.lowest
    main = published_analysis.main_table(samples)
    at = main[main["precision"] == low]
    tests = published_analysis.chi_squared_tests(samples)
    decline = published_analysis.relative_decline(samples, low)
    logit = published_analysis.published_logit(samples)
    bits = logit[logit["term"] == "bits"].iloc[0]
    clustered = models.dose_response(samples)
    latent = published_analysis.filtered_table(samples)
    latent = latent[(latent["items_kept"] == "latent") & (latent["precision"] == low)]
    rates = published_analysis.one_way_transitions(samples)
    rates = rates.loc[rates["precision"] == low, "rate"]

    def span(values, digits=1):
        low_text, high_text = (percent(v, digits) for v in (values.min(), values.max()))
        return low_text if low_text == high_text else f"{low_text} to {high_text}"

    return {
        **common_words(report),
        "provenance_line": report.cited(_first_checkpoints(report.provenance)),
        "rise": span(at["d_srs"]), "chi_sentence": chi_sentence(tests),
        "h_most": f"{tests['cohens_h'].abs().max():.2f}",
        "decline_unweighted": percent(decline["unweighted"]),
        "decline_weighted": percent(decline["weighted"]),
        "latent_change": span(latent["d_srs"]) if len(latent) else ABSENT,
        "one_way": span(rates),
        "bits_odds": odds_text(bits, 3),
        "steps_sentence": steps_sentence(clustered, samples, low),
        "cells_sentence": correlation_sentence(correlation),
    }


def chi_sentence(tests):
    """How many tests are below 5 %, of those that are defined, with and without corrections."""
    made = tests.dropna(subset="p")
    yes = {name: (made[name] < 0.05).sum() for name in ("p", "p_holm", "p_bh")}
    lone = ("" if len(made) == len(tests) else f" ({len(tests):,} comparisons in all; in the others "
            f"all answers have the same role)")
    return (
        f"Of {len(made):,} tests{lone}, {yes['p']} are below 5 %; after Holm's correction over all "
        f"of them {yes['p_holm']}, after that of Benjamini and Hochberg {yes['p_bh']}."
    )


def correlation_sentence(correlation):
    """The rank correlation of perplexity and new biases over cells."""
    if not correlation["n"]:
        return "These records hold no perplexity."
    rank = f"{correlation['estimate']:.2f}".replace("-", "−")
    return f"The rank correlation over {correlation['n']} cells is {rank}."


def as_percent(table):
    """A table for the page: rates in percent, changes in points, precisions in capitals."""
    heads = {"srs": "SRS %", "usr": "USR %", "anti_rate": "anti %", "d_srs": "ΔSRS",
             "d_usr": "ΔUSR", "d_anti_rate": "Δanti", "items_kept": "kept"}
    shown = {}
    for name, column in table.items():
        if name in ("items", "draws", "n"):
            shown[name] = column.map("{:,.0f}".format)
        elif column.dtype.kind == "f":
            text = [f"{100 * x:.1f}".replace("-", "−") for x in column]
            shown[heads.get(name, name)] = text
        else:
            shown[heads.get(name, name)] = (
                column.str.upper() if name == "precision" else column)
    return pd.DataFrame(shown)


def tests_table(tests, precision):
    """Chi-squared tests at one precision, for the page."""
    rows = tests[tests["precision"] == precision]
    return pd.DataFrame({
        "model": rows["model"], "category": rows["category"],
        "chi-squared": rows["statistic"].map("{:.1f}".format), "df": rows["df"],
        "p": rows["p"].map(p_text), "p (Holm)": rows["p_holm"].map(p_text),
        "p (Benjamini-Hochberg)": rows["p_bh"].map(p_text),
        "Cohen's h": [f"{h:.2f}".replace("-", "−") for h in rows["cohens_h"]],
        "draws": rows["n"].map("{:,}".format)})


def odds_table(table):
    """Odds ratios for the page."""
    term = table["term"].str.replace(r"C\(category\)\[T\.(.*)\]", r"category \1", regex=True)
    return pd.DataFrame({
        "term": term, "odds ratio (95 % interval)": [odds_text(row, 3)
                                                     for _, row in table.iterrows()],
        "p": table["p"].map(p_text), "answers": table["n"].map("{:,}".format)})


def main_alt(table):
    """Alt text of a table of SRS."""
    rows = table.assign(measure="srs", estimate=table["srs"])
    rows["name"] = rows["model"] + (" " + rows["category"] if "category" in rows else "")
    return told("Stereotyped answers", rows, "srs", by="name")


def amplification_alt(curve, precision):
    """Alt text of the amplification curve."""
    rows = curve[curve["precision"] == precision]
    parts = [f"{m} {a:.1f} times" if np.isfinite(a) else f"{m} not defined, none at BF16"
             for m, a in zip(rows["model"], rows["amplification"])]
    return f"SRS at {precision.upper()} as a multiple of BF16's: {', '.join(parts)}."


def transition_alt(table):
    """Alt text of the one-way transitions."""
    rows = table.assign(measure="became_biased", estimate=table["rate"])
    return alt_text("Items that became biased", rows, "became_biased", by="model")


def power_table(table):
    """How often controls said yes to weaker effects, one column a truth and effect."""
    weak = table[(table["effect"] < 1) & (table["checkpoints"] == 1)
                 & (table["truth"] != instrument.MARGIN_TRUTH)]
    return _yes_table(weak.assign(column=[f"{t} {e:g}" for t, e in zip(weak["truth"], weak["effect"])]))


def pooled_table(table):
    """How often decisions over checkpoints said yes, one column a truth."""
    pooled = table[table["checkpoints"] > 1]
    return _yes_table(pooled.assign(column=pooled["truth"]))


def _yes_table(rows):
    said = [percent(v, 0) + " ✓" * (s == "yes") for v, s in zip(rows["estimate"], rows["should"])]
    wide = rows.assign(said=said).pivot(index="control", columns="column", values="said")
    return wide.loc[rows["control"].unique(), rows["column"].unique()].reset_index()


def read_instrument(path=INSTRUMENT):
    """The instrument's record, made by ``cba instrument``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table; make it with "
                                "'cba instrument'")
    return pd.read_csv(path)


def instrument_words(report, table):
    """Numbers and sentences of the instrument's page."""
    single = table[(table["checkpoints"] == 1) & (table["truth"] != instrument.MARGIN_TRUTH)]
    full, no = single[single["effect"] == 1], single[single["should"] == "no"]
    wrong, right = full[full["should"] == "no"], full[full["should"] == "yes"]
    worst, anywhere = (part.loc[part["estimate"].idxmax()] for part in (wrong, no))
    weakest = right.loc[right["estimate"].idxmin()]
    effects = sorted(single.loc[single["effect"] < 1, "effect"].unique())
    return {
        **common_words(report),
        "simulations": f"{single['n'].min():,}",
        "worst_rate": interval(worst), "worst_control": worst["control"],
        "worst_truth": worst["truth"],
        "anywhere_rate": interval(anywhere), "anywhere_control": anywhere["control"],
        "anywhere_truth": anywhere["truth"], "anywhere_effect": f"{anywhere['effect']:g}",
        "effects": " and ".join(f"{effect:g}" for effect in effects) or "none",
        "false_median": percent(wrong["estimate"].median()),
        "weakest_rate": interval(weakest), "weakest_control": weakest["control"],
        "weakest_truth": weakest["truth"],
        "leaning_sentence": leaning_sentence(single),
        "same_level_sentence": same_level_sentence(table),
        "pooled_sentence": pooled_sentence(table),
        "margin": percent(stats.MARGIN),
    }


def leaning_sentence(single):
    """What controls say of a lean that was there before, and what the control of its growth says."""
    rows = single[(single["truth"] == "leaning noise") & (single["should"] == "no")]
    if rows.empty:
        return ABSENT
    fooled = rows.groupby("control")["estimate"].max()
    fooled = fooled[fooled > 2 * instrument.LEVEL].sort_values(ascending=False)
    grown = single[(single["control"] == "lean grew") & (single["should"] == "no")]["estimate"].max()
    names = ", ".join(f"“{name}” (up to {percent(rate, 0)})" for name, rate in fooled.items())
    told = (f"Taken as a sign that bias grew, these are wrong about noise in a model that leaned before: "
            f"{names}. " if len(fooled) else "")
    return (f"{told}“Lean grew” says so in {percent(grown)} of studies at most, over all truths and "
            f"effects in which the lean did not grow.")


def same_level_sentence(table):
    """How often a change as large as the margin is called none."""
    rows = table[table["truth"] == instrument.MARGIN_TRUTH].set_index("control")
    if rows.empty:
        return ABSENT
    exact, drawn = (interval(rows.loc[name]) for name in (instrument.SAME, instrument.SAME_DRAWN))
    return (f"A true change as large as the margin is called none in {exact} of studies from "
            f"probabilities, and in {drawn} from five draws; the test promises "
            f"{percent(instrument.LEVEL, 0)}.")


def pooled_sentence(table):
    """How often decisions over checkpoints are wrong."""
    rows = table[(table["checkpoints"] > 1) & (table["should"] == "no")]
    if rows.empty:
        return ABSENT
    worst = rows.loc[rows["estimate"].idxmax()]
    return (f"Of {rows['n'].min():,} such studies in which nothing changes on average, these decisions "
            f"are wrong in {percent(rows['estimate'].min())} to {percent(worst['estimate'])}; the "
            f"highest rate is that of “{worst['control']}”, {interval(worst)}.")
