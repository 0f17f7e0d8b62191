"""What became of a study's rounded models: alignment in weights, answers without a part of the error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cba_utils.answering.precisions import most_bits_first, parse_precision
from cba_utils.measures.intervals import ESTIMATE_COLUMNS
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.measures.pooling import over_replicates
from cba_utils.measures.rates import bias_scores
from cba_utils.measures.transitions import placebo
from cba_utils.study.roles import role_probabilities, study_columns
from cba_utils.study.rounding import PARTS, ROUNDED, alignment_left, bits_per_weight, read_rounding
from cba_utils.telling.numbers import percent
from cba_utils.telling.study import pick, titled

BIASED = "became_biased_expected"
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
    changes : DataFrame
        Pooled estimates of what `placebo` gives, of ``accuracy`` and of ``perplexity_change``.
    differences, from_above : DataFrame
        Pooled estimates of the rate of newly biased items less that of the lowest precision, paired by
        checkpoint, and less that of the next precision above it.
    bits : dict of str to float
        Bits per weight by name.
    provenance : DataFrame
        One row a model that was taken apart.
    """

    def __init__(self, study):
        self.study = study
        tables = {
            name: titled(table, study.titles) for name, table in read_rounding(study.study).items()
        }
        bases = study.provenance.drop_duplicates("model").set_index("model")["base"]
        for name in ("errors", "variants", "variant_perplexity"):
            tables[name] = tables[name].assign(base=tables[name]["model"].map(bases))
        # Of items that the bank keeps apart there are variants too.
        kept = tables["variants"]["item_id"].isin(study.items["item_id"])
        tables["variants"] = tables["variants"][kept]
        for name in ("variants", "variant_perplexity"):
            named = tables[name]["variant"] != ROUNDED
            key = tables[name]["precision"].mask(named, tables[name]["variant"])
            tables[name] = tables[name].assign(precision=key).drop(columns="variant")
        models = tables["variants"]["model"].unique()
        answers = study.answers[study.answers["model"].isin(models)]
        roles = pd.concat(
            [role_probabilities(answers, "study", "original"), tables["variants"]],
            ignore_index=True,
        )
        text = study.perplexity[study.perplexity["model"].isin(models)]
        nll = pd.concat([text, tables["variant_perplexity"]], ignore_index=True)
        moves = placebo(roles, method="jackknife")
        scores = bias_scores(roles, method="jackknife")
        frames = [
            moves,
            scores[scores["measure"] == "accuracy"],
            perplexity_change(nll, method="jackknife"),
        ]
        weights = _weights(tables["errors"])
        # lengths have no upper end at which an interval could be cut
        self.weights = over_replicates(weights) if study.several else weights
        self.changes = pd.concat([study.pooled(frame) for frame in frames], ignore_index=True)
        self.differences = study.pooled(_differences(moves, study.lowest))
        self.from_above = study.pooled(_differences(moves, study.precisions[-2]))
        self.bits = _bits(study, tables)
        self.provenance = tables["provenance"]

    def rows(self, names, measure=BIASED):
        """Estimates of a measure, one row a name in the order given, with its ``label``."""
        frame = self.changes
        frame = frame[(frame["measure"] == measure) & frame["precision"].isin(names)]
        labels = {name: name for name in (*HOW, *WHERE)}
        labels[self.study.lowest] = f"as rounded, {self.study.lowest.upper()}"
        frame = frame.assign(label=frame["precision"].map(labels))
        return frame.sort_values("precision", key=lambda p: p.map(list(names).index))

    @property
    def placebo(self):
        """The placebo of newly biased items."""
        return pick(self.changes, "became_biased_placebo", self.study.lowest)["estimate"]

    def points(self):
        """Newly biased items against bits per weight, one row an option, for a figure."""
        frame = self.changes
        frame = frame[(frame["measure"] == BIASED) & frame["precision"].isin(self.bits)]
        name = frame["precision"]
        kinds = [
            "one part in BF16" if n in WHERE else f"groups of {parse_precision(n).group}"
            for n in name
        ]
        labels = name.str.replace("-g32", ", 32").str.removesuffix(" in BF16")
        labels = labels.where(name.isin(WHERE), labels.str.upper())
        return frame.assign(bits=name.map(self.bits), kind=kinds, label=labels).sort_values("bits")

    def option(self, name):
        """The name of an option in words, such as "Q3, groups of 32"."""
        if name in WHERE:
            return f"{self.study.lowest.upper()}, {name}"
        precision, _, group = name.partition("-g")
        return precision.upper() + (f", groups of {group}" if group else "")


def told_by_label(what, frame):
    """Alt text of a figure with one row a label."""
    return (
        f"{what}: "
        + "; ".join(f"{row.label} {percent(row.estimate)}" for row in frame.itertuples())
        + "."
    )


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
