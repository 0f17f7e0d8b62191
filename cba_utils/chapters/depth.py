"""Does a shallow alignment give way sooner? Changes by the depth at which alignment was stopped."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import rates
from cba_utils.measures.pooling import over_replicates
from cba_utils.telling import drawing as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import measured, reading
from cba_utils.telling.page import PROBABILITIES, SEVERAL_DEPTHS, Page
from cba_utils.telling.study import changes, find, pick

EXCESS = "became_biased_expected_excess"


class Chapter(Page):
    """Notebook ``30_alignment_depth``."""

    keep = "ladder"
    needs = {"depth": PROBABILITIES, "depth_sentence": SEVERAL_DEPTHS}

    @cached_property
    def checkpoints(self):
        """Changes since BF16, an estimate a checkpoint."""
        return changes(self.study)

    @cached_property
    def moves(self):
        """The same by depth."""
        return self.study.by_depth(self.checkpoints)

    @cached_property
    def answered(self):
        """Rates of answers by depth."""
        return self.study.by_depth(rates.role_rates(self.study.best))

    @property
    def before(self):
        """The stereotyped rate at BF16 after the shallowest and after the deepest alignment."""
        ends = self.study.depths[0], self.study.depths[-1]
        return [pick(self.answered[self.answered["depth"] == d], "srs", "bf16") for d in ends]

    @property
    def answerable(self):
        """Whether the records can tell depths apart."""
        return len(self.study.depths) > 1 and self.study.exact

    @cached_property
    def differences(self):
        """Excess of the shallowest alignment less that of the deepest, paired by checkpoint.

        Without several checkpoints, there are no intervals.
        """
        rows = self.checkpoints[self.checkpoints["measure"] == EXCESS]
        keys = ["family", "replicate", "precision"]
        first, last = (
            rows[rows["depth"] == depth].set_index(keys)
            for depth in (self.study.depths[0], self.study.depths[-1])
        )
        apart = (first["estimate"] - last["estimate"]).dropna().rename("estimate").reset_index()
        apart = apart.assign(measure="difference", low=np.nan, high=np.nan, n=1)
        return over_replicates(apart.drop(columns="family"))

    @property
    def apart(self):
        """The same at both precisions, and where the shallowest is shown to have given way by more."""
        rows = [(p, pick(self.differences, "difference", p)) for p in self.study.shown]
        shown = [p for p, row in rows if reading(row) == "above"]
        return {"at": rows, "shown": shown, "rest": [p for p, _ in rows if p not in shown]}

    def figure_depth(self):
        """Items that became biased by precision, a series a depth."""
        alt = [
            told(
                "Items that gained a stereotyped answer",
                self.moves,
                "became_biased_expected",
                by="depth",
            ),
            told("Placebo", self.moves, "became_biased_placebo", by="depth"),
        ]
        whose = " and ".join(self.study.families)
        return draw.depth_curves(self.moves), alt, self.moves.assign(family=whose)

    def table_depth(self):
        """What each depth answers at BF16, and its excess at two precisions."""
        rows = []
        for depth in self.study.depths:
            own, moved = (frame[frame["depth"] == depth] for frame in (self.answered, self.moves))
            row = {
                "depth": depth,
                "stereotyped at BF16": pick(own, "srs", "bf16"),
                "unknown at BF16": pick(own, "usr", "bf16"),
            }
            rows.append(
                row | {f"excess at {p.upper()}": find(moved, EXCESS, p) for p in self.study.shown}
            )
        frame = pd.DataFrame(rows)
        return frame, dict.fromkeys(frame.columns[1:], measured)
