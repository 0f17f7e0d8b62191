"""What helps? What a little more storage buys, and whether a longer alignment holds better."""

from functools import cached_property

import pandas as pd

from cba_utils.chapters import depth
from cba_utils.measures.tests import MARGIN
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import measured
from cba_utils.telling.page import PROBABILITIES, ROUNDING, Page, open_page
from cba_utils.telling.study import find
from cba_utils.telling.variants import EXCESS, WHERE, Variants, told_by_label

TITLE = "Gained a stereotyped answer, less placebo, points"


class Chapter(Page):
    """Notebook ``33_what_helps``."""

    needs = {
        **dict.fromkeys(
            ("answer", "bits_and_bias", "help", "help_answer", "group", "cheapest"), ROUNDING
        ),
        "depth_help": PROBABILITIES,
    }
    margin = MARGIN

    @cached_property
    def variants(self):
        """The variants and their estimates."""
        return Variants(self.study)

    @cached_property
    def ladder(self):
        """The chapter on depth, opened on the same study."""
        return open_page("depth", self.study.study)

    def foot_cells(self):
        """The study's cells and those of the depths."""
        both = pd.concat([self.study.provenance, self.ladder.study.provenance])
        return (
            self.study.provenance
            if self.lacks("help")
            else both.drop_duplicates(["model", "precision"])
        )

    def foot_more(self):
        """Provenance of the models that were taken apart."""
        return None if self.lacks("help") else self.variants.provenance

    # Readings

    @property
    def above(self):
        """The precision above the lowest."""
        return self.study.precisions[-2]

    def bits(self, name):
        """Bits per weight, as text."""
        return f"{self.variants.bits[name]:.1f}"

    def step(self, name):
        """How many more bits per weight than the lowest precision, as text."""
        return f"{self.variants.bits[name] - self.variants.bits[self.study.lowest]:.1f}"

    @property
    def several(self):
        """Whether there are several families."""
        return len(self.variants.study.families) > 1

    @property
    def others(self):
        """Other ways to spend bits at the lowest precision: those shown to be worse than one more level.

        Worse in every family, where there are several.
        """
        low = self.study.lowest
        names = [n for n in self.variants.bits if n in WHERE or n.startswith(f"{low}-g")]
        worse = [n for n in names if self.variants.changed(n, above=True).agreed == "above"]
        return {
            "worse": [self._short(n) for n in worse],
            "rest": [self._short(n) for n in names if n not in worse],
        }

    def _short(self, name):
        return f"{name.replace(f'{self.study.lowest}-g', 'groups of ')} ({self.bits(name)} bits)"

    @property
    def finer(self):
        """The lowest precision in smaller groups, if it was tried."""
        name = f"{self.study.lowest}-g32"
        return name if name in self.variants.bits else None

    def excess(self, name):
        """Items that gained a stereotyped answer, less the placebo, family by family."""
        return self.variants.told(EXCESS, name)

    @property
    def cheapest(self):
        """The cheapest option whose excess is shown to lie below the margin everywhere; None without one."""
        bits = self.variants.bits
        shown = [
            n
            for n in bits
            if n != "bf16" and all(one.row["high"] < MARGIN for one in self.excess(n))
        ]
        best = min(shown, key=bits.get, default=None)
        return best and {"option": self.variants.option(best), "bits": self.bits(best)}

    @property
    def families(self):
        """Families whose alignment was stopped at several depths."""
        return sorted(self.ladder.study.samples["family"].unique())

    # Figures and tables

    @property
    def _options(self):
        """Options from few bits to many, and their names with their bits."""
        bits = sorted(self.variants.bits.items(), key=lambda pair: pair[1])
        return {n: f"{self.variants.option(n)}: {b:.1f} bits" for n, b in bits if n != "bf16"}

    def figure_bits_and_bias(self):
        """Items that gained a stereotyped answer beyond the placebo, by option."""
        rows = self.variants.rows(list(self._options), labels=self._options)
        alt = told_by_label("Items that gained a stereotyped answer, less the placebo", rows)
        return draw.options(rows, TITLE), alt, rows

    def table_help(self):
        """What every option costs in bits and what it does, from few bits to many."""
        frame = pd.DataFrame(
            [
                {
                    "option": self.variants.option(name),
                    "bits": self.variants.bits[name],
                    "family": family,
                    "beyond placebo": find(part, EXCESS, name),
                    "right, disambiguated": find(part, "accuracy", name),
                    "perplexity": find(part, "perplexity_change", name),
                }
                for name in self._options
                for family, part in self.variants.families
            ]
        )
        return frame, {"bits": "{:.1f}".format, **dict.fromkeys(frame.columns[3:], measured)}

    def table_depth_help(self):
        """The excess over the placebo at each depth of alignment."""
        study, moves, table = self.ladder.study, self.ladder.moves, []
        for one in study.depths:
            own = moves[moves["depth"] == one]
            table.append(
                {"alignment": one}
                | {
                    f"beyond placebo at {p.upper()}": find(own, depth.EXCESS, p)
                    for p in study.shown
                }
            )
        frame = pd.DataFrame(table)
        return frame, dict.fromkeys(frame.columns[1:], measured)
