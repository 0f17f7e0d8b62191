"""Is the alignment rounded away? Lengths in the weights, answers with a part of the error removed."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import measured
from cba_utils.telling.page import ROUNDING, Page
from cba_utils.telling.study import find
from cba_utils.telling.variants import BIASED, HOW, WHERE, Variants, told_by_label

TITLE = "Gained a stereotyped answer, less placebo, points"
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
            "answer",
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
        return all(np.isnan(one.row["high"]) for name in HOW[:2] for one in self._changed(name))

    def _changed(self, name):
        return self.variants.changed(name)

    @cached_property
    def drowned(self):
        """Whether fewer items gain a stereotyped answer without the noise."""
        return self._changed(HOW[0])

    @cached_property
    def lost(self):
        """Whether fewer do with the alignment in full."""
        return self._changed(HOW[1])

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
    def how(self):
        """The variants of the error."""
        return [{"words": NAMES[name], "changed": self._changed(name)} for name in HOW]

    @property
    def where(self):
        """The parts of the network in BF16."""
        return [
            {
                "words": f"With the {name.removesuffix(' in BF16')} left in BF16,",
                "changed": self._changed(name),
            }
            for name in WHERE
        ]

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
        alt = told_by_label("Items that gained a stereotyped answer, less the placebo", rows)
        return draw.options(rows, TITLE), alt, rows

    def table_why(self):
        """The variants in numbers, a row a variant and family."""
        labels = {self.study.lowest: f"as rounded, {self.study.lowest.upper()}"}
        columns = {
            "gained": BIASED,
            "right, disambiguated": "accuracy",
            "perplexity": "perplexity_change",
        }
        frame = pd.DataFrame(
            [
                {
                    "variant": labels.get(name, name),
                    "family": family,
                    **{title: find(part, measure, name) for title, measure in columns.items()},
                }
                for name in (self.study.lowest, *HOW, *WHERE)
                for family, part in self.variants.families
            ]
        )
        return frame, dict.fromkeys(columns, measured)


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
