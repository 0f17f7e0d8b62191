"""What became of a study's rounded models: alignment in weights, answers without a part of the error."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.answering.precisions import most_bits_first
from cba_utils.measures.intervals import ESTIMATE_COLUMNS
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.measures.pooling import over_replicates
from cba_utils.measures.rates import bias_scores
from cba_utils.measures.transitions import placebo
from cba_utils.study.roles import role_probabilities, study_columns
from cba_utils.study.rounding import PARTS, ROUNDED, alignment_left, bits_per_weight, read_rounding
from cba_utils.telling.numbers import in_hundredths
from cba_utils.telling.study import titled

BIASED = "became_biased_expected"
EXCESS = f"{BIASED}_excess"
HOW = ("noise removed", "alignment exact", "error shuffled")
WHERE = tuple(f"{part} in BF16" for part in PARTS)


class Variants:
    """The variants of a study's rounded models, and estimates from them.

    Their names stand beside those of the precisions: a variant is one more thing to compare with BF16.

    Parameters
    ----------
    study : Study
        One with probabilities, whose models name the checkpoint that they were aligned from.

    Attributes
    ----------
    weights : DataFrame
        Estimates of ``left`` and ``noise`` (see `cba_utils.study.rounding.alignment_left`) by family and
        precision.
    checkpoints : DataFrame
        What `placebo` gives, ``accuracy`` and ``perplexity_change``, an estimate a checkpoint.
    differences, from_above : DataFrame
        The rate of items that gained a stereotyped answer less that of the lowest precision, an estimate
        a checkpoint, and less that of the next precision above it.
    bits : dict of str to float
        Bits per weight by name.
    provenance : DataFrame
        One row a model that was taken apart.
    """

    def __init__(self, study):
        tables = {
            name: titled(table, study.titles) for name, table in read_rounding(study.study).items()
        }
        bases = study.provenance.drop_duplicates("model").set_index("model")["base"]
        # Models that gave no letter were taken apart too, and have no answers to compare with.
        heard = study.answers["model"].unique()
        for name in ("errors", "variants", "variant_perplexity"):
            part = tables[name][tables[name]["model"].isin(heard)]
            tables[name] = part.assign(base=part["model"].map(bases))
        # Of items that the bank keeps apart there are variants too.
        kept = tables["variants"]["item_id"].isin(study.items["item_id"])
        tables["variants"] = tables["variants"][kept]
        for name in ("variants", "variant_perplexity"):
            named = tables[name]["variant"] != ROUNDED
            key = tables[name]["precision"].mask(named, tables[name]["variant"])
            tables[name] = tables[name].assign(precision=key).drop(columns="variant")
        models = tables["variants"]["model"].unique()
        self.study = study.of(models)
        answers = self.study.answers
        roles = pd.concat(
            [role_probabilities(answers, "study", "original"), tables["variants"]],
            ignore_index=True,
        )
        nll = pd.concat([self.study.perplexity, tables["variant_perplexity"]], ignore_index=True)
        moves = placebo(roles, method="jackknife")
        scores = bias_scores(roles, method="jackknife")
        frames = [
            moves,
            scores[scores["measure"] == "accuracy"],
            perplexity_change(nll, method="jackknife"),
        ]
        weights = _weights(tables["errors"])
        # lengths have no upper end at which an interval could be cut
        self.weights = over_replicates(weights) if self.study.several else weights
        self.checkpoints = pd.concat(frames, ignore_index=True)
        self.differences = _differences(moves, study.lowest)
        self.from_above = _differences(moves, study.precisions[-2])
        self.bits = _bits(study, tables)
        self.provenance = tables["provenance"]

    @cached_property
    def families(self):
        """The families and the estimates of each."""
        return self.study.each(self.checkpoints)

    def told(self, measure, name):
        """What can be said of a measure of a variant, family by family."""
        return self.study.told(self.checkpoints, measure, name, digits=3)

    def changed(self, name, above=False):
        """Whether a variant has fewer such items than the lowest precision, or than the one above it."""
        frame = self.from_above if above else self.differences
        return self.study.told(frame, "change", name, digits=3)

    def rows(self, names, measure=EXCESS, labels=None):
        """Estimates by family, one row a name in the order given, with its ``label``."""
        frame = self.checkpoints
        frame = frame[(frame["measure"] == measure) & frame["precision"].isin(names)]
        frame = self.study.summarise(frame)
        labels = labels or {
            **{name: name for name in (*HOW, *WHERE)},
            self.study.lowest: f"as rounded, {self.study.lowest.upper()}",
        }
        frame = frame.assign(label=frame["precision"].map(labels))
        return frame.sort_values("precision", key=lambda p: p.map(list(names).index), kind="stable")

    def option(self, name):
        """The name of an option in words, such as "Q3, groups of 32"."""
        if name in WHERE:
            return f"{self.study.lowest.upper()}, {name}"
        precision, _, group = name.partition("-g")
        return precision.upper() + (f", groups of {group}" if group else "")


def told_by_label(what, frame):
    """Alt text of a figure with one row a label and a mark a family."""
    parts = [
        f"{label}: "
        + ", ".join(f"{row.family} {in_hundredths(row.estimate)}" for row in rows.itertuples())
        for label, rows in frame.groupby("label", sort=False)
    ]
    return f"{what}, in points. {'; '.join(parts)}."


def _weights(errors):
    rows = []
    for key, group in errors.groupby(study_columns(errors), sort=False):
        rows += [
            (*key, name, value, value, value, int(group["weights"].sum()))
            for name, value in alignment_left(group).items()
        ]
    return pd.DataFrame(rows, columns=[*study_columns(errors), *ESTIMATE_COLUMNS])


def _differences(moves, reference):
    """Rate of each variant less that of a precision, checkpoint by checkpoint."""
    rates = moves[moves["measure"] == BIASED]
    keys = [c for c in study_columns(rates) if c != "precision"]
    both = rates.merge(
        rates.loc[rates["precision"] == reference, [*keys, "estimate"]],
        on=keys,
        suffixes=("", "_reference"),
    )
    change = both["estimate"] - both["estimate_reference"]
    return both.assign(measure="change", estimate=change, low=np.nan, high=np.nan)[
        [*keys, "precision", *ESTIMATE_COLUMNS]
    ]


def _bits(report, tables):
    """Bits per weight of everything that was tried: precisions, other groups, parts in BF16."""
    errors = tables["errors"]
    one = errors[
        (errors["model"] == errors["model"].iloc[0]) & (errors["precision"] == report.lowest)
    ]
    finer = set(tables["variants"]["precision"]) - {*HOW, *WHERE}
    bits = {p: bits_per_weight(one, p) for p in most_bits_first([*report.precisions, *finer])}
    kept = {f"{part} in BF16": bits_per_weight(one, report.lowest, (part,)) for part in PARTS}
    return bits | kept
