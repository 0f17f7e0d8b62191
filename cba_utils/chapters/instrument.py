"""Does the instrument work? What every control says of simulated respondents whose truth is known."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.instrument import verdicts
from cba_utils.measures.tests import MARGIN
from cba_utils.names import PROJECT
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import percent
from cba_utils.telling.page import Page


def read_rejections(path=PROJECT / verdicts.RESULT):
    """The instrument's record, made by ``cba instrument``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table; make it with 'cba instrument'")
    return pd.read_csv(path)


class Chapter(Page):
    """Notebook ``45_instrument``; whatever the study, its numbers are the same."""

    margin = MARGIN
    level = verdicts.LEVEL

    @cached_property
    def rejections(self):
        """How often each control said yes, by truth, size of the effect and number of checkpoints."""
        return read_rejections()

    @property
    def _single(self):
        table = self.rejections
        return table[(table["checkpoints"] == 1) & (table["truth"] != verdicts.MARGIN_TRUTH)]

    @property
    def _full(self):
        return self._single[self._single["effect"] == 1]

    # Readings: what the template says

    @property
    def simulations(self):
        """Studies of each truth, at least."""
        return int(self._single["n"].min())

    @property
    def false_median(self):
        """Median rate of "yes" where a control should say "no", at full effects."""
        return self._full.loc[self._full["should"] == "no", "estimate"].median()

    @property
    def worst(self):
        """The highest of these rates."""
        return _extreme(self._full, "no", "idxmax")

    @property
    def weakest(self):
        """The lowest rate of "yes" where a control should say it, at full effects."""
        return _extreme(self._full, "yes", "idxmin")

    @property
    def anywhere(self):
        """The highest false rate at effects of any size."""
        return _extreme(self._single, "no", "idxmax")

    @property
    def effects(self):
        """Sizes of the weaker effects."""
        effects = self._single["effect"]
        return [f"{effect:g}" for effect in sorted(effects[effects < 1].unique())]

    @property
    def fooled(self):
        """Controls that take a lean that was there before for a bias that grew, and how often at most."""
        rows = self._single[
            (self._single["truth"] == "leaning noise") & (self._single["should"] == "no")
        ]
        rates = rows.groupby("control")["estimate"].max()
        rates = rates[rates > 2 * verdicts.LEVEL].sort_values(ascending=False)
        return [{"control": name, "rate": rate} for name, rate in rates.items()]

    @property
    def grown(self):
        """How often at most the control of the lean's growth is wrong, over all truths and effects."""
        rows = self._single[
            (self._single["control"] == "lean grew") & (self._single["should"] == "no")
        ]
        return rows["estimate"].max()

    @property
    def at_margin(self):
        """How often a change as large as the margin is called none, from probabilities and from draws."""
        rows = self.rejections[self.rejections["truth"] == verdicts.MARGIN_TRUTH].set_index(
            "control"
        )
        return {"exact": rows.loc[verdicts.SAME], "drawn": rows.loc[verdicts.SAME_DRAWN]}

    @property
    def pooled(self):
        """How often decisions over checkpoints are wrong: the least and the greatest rate."""
        rows = self.rejections[
            (self.rejections["checkpoints"] > 1) & (self.rejections["should"] == "no")
        ]
        return {
            "n": int(rows["n"].min()),
            "rates": rows["estimate"],
            "worst": _extreme(rows, "no", "idxmax"),
        }

    # Figures and tables

    def figure_instrument(self):
        """How often each control said yes to each truth."""
        alt = (
            f"How often each control says yes, median over truths where it should not: "
            f"{percent(self.false_median)}."
        )
        full = self.rejections.query("effect == 1 and checkpoints == 1")
        return draw.rejection_matrix(self.rejections), alt, full

    def table_power(self):
        """The same for weaker effects, one column a truth and effect."""
        weak = self._single[self._single["effect"] < 1]
        return _wide(
            weak, [f"{t} {e:g}" for t, e in zip(weak["truth"], weak["effect"], strict=True)]
        )

    def table_pooled(self):
        """Decisions over checkpoints, one column a truth."""
        pooled = self.rejections[self.rejections["checkpoints"] > 1]
        return _wide(pooled, pooled["truth"])


def _extreme(rows, should, which):
    rows = rows[rows["should"] == should]
    row = rows.loc[getattr(rows["estimate"], which)()]
    return {**row, "effect": f"{row['effect']:g}"}


def _wide(rows, columns):
    cells = rows.assign(column=columns, cell=[*zip(rows["estimate"], rows["should"], strict=True)])
    wide = cells.pivot(index="control", columns="column", values="cell")
    wide = wide.loc[cells["control"].unique(), cells["column"].unique()].reset_index()
    return wide, dict.fromkeys(wide.columns[1:], _yes)


def _yes(cell):
    """A rate of "yes", ticked where yes is right; a dash where nothing differs that the control sees."""
    rate, should = cell
    return "–" if np.isnan(rate) else percent(rate, 0) + " ✓" * (should == "yes")
