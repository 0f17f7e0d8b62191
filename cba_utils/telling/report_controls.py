"""What the control chapters say: their estimates as sentences, glued into the pages.

Every function takes a :class:`cba_utils.telling.report.Report` and frames of estimates and returns a
mapping from glue name to text. Where a study cannot answer a question, because it holds one option
order or no disambiguated items, the text says so.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cba_utils.instrument import verdicts as instrument
from cba_utils.measures import tests as stats
from cba_utils.telling.numbers import (
    interval, percent,
)
from cba_utils.names import PROJECT
from cba_utils.telling.report import ABSENT, common_words

INSTRUMENT = PROJECT / "results" / "instrument" / "rejections.csv"


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
