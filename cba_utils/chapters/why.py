"""Is the alignment rounded away? Lengths in the weights, answers with a part of the error removed."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import interval, reading
from cba_utils.telling.page import ROUNDING, Page
from cba_utils.telling.study import find, pick
from cba_utils.telling.variants import BIASED, HOW, WHERE, Variants, told_by_label

TITLE = "Items that became biased, % of unbiased"
NAMES = {
    "noise removed": "With the noise removed, and only what is left of the alignment added to the base,",
    "alignment exact": "With the alignment added exactly to the rounded base,",
    "error shuffled": "With the errors in a random order,",
}


class Chapter(Page):
    """Notebook ``32_why``."""

    needs = dict.fromkeys(
        (
            "rounding_weights",
            "rounding_how",
            "rounding_where",
            "why",
            "why_answer",
            "left",
            "how",
            "where",
        ),
        ROUNDING,
    )

    @cached_property
    def variants(self):
        """The variants and their estimates."""
        return Variants(self.study)

    def foot_more(self):
        """Provenance of the models that were taken apart."""
        return None if self.lacks("why") else self.variants.provenance

    # Readings

    @property
    def single(self):
        """Whether there is one checkpoint, so that no interval says anything."""
        return any(np.isnan(self._change(name)["high"]) for name in HOW[:2])

    def _change(self, name):
        return pick(self.variants.differences, "change", name)

    @property
    def falls(self):
        """Whether fewer items become biased without the noise, and with the alignment in full."""
        return {name: reading(self._change(name)) == "below" for name in HOW[:2]}

    @property
    def lengths(self):
        """Lengths in the weights at two precisions: lowest and highest mean of a family."""
        weights = self.variants.weights
        for p in self.study.shown:
            at = weights[weights["precision"] == p].groupby("measure")["estimate"]
            yield {"precision": p, "low": at.min(), "high": at.max()}

    @property
    def families(self):
        """Number of families whose weights were measured."""
        return self.variants.weights["family"].nunique()

    @property
    def over(self):
        """Whether more than all of the alignment is left somewhere."""
        return any(one["high"]["left"] > 1 for one in self.lengths)

    @property
    def rounded(self):
        """The rate as rounded."""
        return find(self.variants.changes, BIASED, self.study.lowest)

    @property
    def how(self):
        """The variants of the error."""
        return [self._compared(name, NAMES[name]) for name in HOW]

    @property
    def where(self):
        """The parts of the network in BF16."""
        return [
            self._compared(name, f"With the {name.removesuffix(' in BF16')} left in BF16,")
            for name in WHERE
        ]

    def _compared(self, name, words):
        change = self._change(name)
        less = {"estimate": -change["estimate"], "low": -change["high"], "high": -change["low"]}
        read = reading(change) if not np.isnan(change["low"]) else "no interval"
        return {
            "words": words,
            "rate": find(self.variants.changes, BIASED, name),
            "reading": read,
            "by": less if read == "below" else change,
        }

    # Figures and tables

    def figure_rounding_weights(self):
        """What is left of the alignment, and the noise beside it."""
        weights = self.variants.weights
        alt = [
            _alt_weights("Alignment left", weights, "left"),
            _alt_weights("Noise across it", weights, "noise"),
        ]
        return draw.rounding(weights), alt, weights

    def figure_rounding_how(self):
        """Items that became biased, by variant of the error."""
        return self._options([self.study.lowest, *HOW])

    def figure_rounding_where(self):
        """Items that became biased, by part of the network in BF16."""
        return self._options([self.study.lowest, *WHERE])

    def _options(self, names):
        rows = self.variants.rows(names)
        figure = draw.options(rows, TITLE, self.variants.placebo, "dashed: placebo")
        return figure, told_by_label("Items that became biased", rows), rows

    def table_why(self):
        """The variants in numbers, one row each."""
        names = [self.study.lowest, *HOW, *WHERE]
        columns = {
            "became biased": BIASED,
            "right on disambiguated": "accuracy",
            "perplexity change": "perplexity_change",
        }
        rows = {title: self.variants.rows(names, measure) for title, measure in columns.items()}
        frame = pd.DataFrame({"variant": rows["became biased"]["label"].to_numpy()})
        for title, found in rows.items():
            frame[title] = [row for _, row in found.iterrows()]
        return frame, dict.fromkeys(columns, interval)


def _alt_weights(what, weights, measure):
    rows = weights[weights["measure"] == measure]
    return (
        f"{what}, times the alignment: "
        + "; ".join(
            f"{family} "
            + ", ".join(f"{r.precision.upper()} {r.estimate:.2f}" for r in part.itertuples())
            for family, part in rows.groupby("family")
        )
        + "."
    )
