"""Is it noise? Changes beyond the placebo, where answers went, whether the lean grew."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import controls, sensitivity
from cba_utils.measures.tests import significant
from cba_utils.measures.transitions import transitions
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import count, interval, percent, reading
from cba_utils.telling.page import PROBABILITIES, Page
from cba_utils.telling.study import changes, pick

FEW = 20
EXCESS = ("became_biased_expected_excess", "became_anti_expected_excess")


@dataclass
class Seeds:
    """How the study's own seeds stand among fresh ones."""

    cells: int
    outside: int
    checkpoints: int
    none: int


def lean_at(frame, precision):
    """The lean at BF16, its change at a precision, and whether that is a growth."""
    before, change = pick(frame, "log_gap", "bf16"), pick(frame, "d_log_gap", precision)
    return {
        "before": before,
        "reading": reading(before),
        "change": change,
        "grew": bool(controls.grew(before, change)),
    }


class Chapter(Page):
    """Notebook ``40_is_it_noise``."""

    needs = {
        "noise_excess": PROBABILITIES,
        "noise_lean": PROBABILITIES,
        "lean": PROBABILITIES,
        "noise_seeds": PROBABILITIES,
        "seeds": PROBABILITIES,
    }
    few = FEW

    @cached_property
    def checkpoints(self):
        """Changes since BF16, an estimate a checkpoint."""
        return changes(self.study)

    @cached_property
    def moved(self):
        """Where answers went, an estimate a checkpoint."""
        return controls.direction(self.study.single)

    @cached_property
    def leans(self):
        """Odds of the stereotyped person against the other, an estimate a checkpoint."""
        return controls.lean(self.study.answers)

    @cached_property
    def ranges(self):
        """What sets of fresh draws would show, beside the study's own seeds."""
        return sensitivity.five_seed_range(self.study.answers, self.study.samples)

    @cached_property
    def tests(self):
        """Whether answers went to one person, a test a checkpoint and precision."""
        return controls.direction_tests(self.study.single)

    # Readings: what the template says

    def at_lowest(self, measure):
        """The pooled estimate of a change at the lowest precision."""
        return pick(self._pooled_changes, measure, self.study.lowest)

    @cached_property
    def _pooled_changes(self):
        return self.study.pooled(self.checkpoints)

    @property
    def mirror(self):
        """The decisive number: the excess minus the excess of its mirror image, in the same models."""
        for name, frame in self.study.each(self.checkpoints):
            row = pick(frame, "bias_beyond_mirror", self.study.lowest)
            yield {"name": name, "row": row, "reading": reading(row)}

    @property
    def left(self):
        """Answers that left "unknown" at the lowest precision."""
        return pick(self.study.pooled(self.moved), "left_unknown", self.study.lowest)

    @property
    def direction(self):
        """The share that went to the stereotyped person, beside one half."""
        row = pick(self.study.pooled(self.moved), "share_to_stereotyped", self.study.lowest)
        return {
            "row": row,
            "reading": reading(row, null=0.5),
            "none": bool(np.isnan(row["estimate"])),
        }

    @property
    def significant(self):
        """How many of the tests of directions hold after Holm's correction, and of how many."""
        return significant(self.tests)

    @property
    def not_made(self):
        """How many tests could not be made, and of how many."""
        return int(self.tests["p"].isna().sum()), len(self.tests)

    @property
    def lean(self):
        """The lean at BF16 and its change, a family or pooled."""
        for name, frame in self.study.each(self.leans):
            yield {"name": name, **lean_at(frame, self.study.lowest)}

    @property
    def lean_overall(self):
        """The same over all checkpoints."""
        return lean_at(self.study.pooled(self.leans), self.study.lowest)

    @property
    def net(self):
        """Gained minus lost at the lowest precision, by the study's own seeds."""
        pooled = self.study.pooled(transitions(self.study.drawn))
        return {name: pick(pooled, f"net_{name}", self.study.lowest) for name in ("biased", "anti")}

    @property
    def seeds(self):
        """In how many cells the study's seeds are unlike fresh ones."""
        seen = self.ranges[self.ranges["measure"] == "became_biased"]
        outside = seen[(seen["observed"] < seen["low"]) | (seen["observed"] > seen["high"])]
        return Seeds(
            len(seen), len(outside), outside["model"].nunique(), int((seen["observed"] == 0).sum())
        )

    # Figures and tables

    def figure_noise_excess(self):
        """Items that changed beyond the placebo, and their mirror image."""
        moves = self.study.summarise(self.checkpoints)
        alt = [
            told("Became biased minus placebo", moves, EXCESS[0]),
            told("Gained an anti-stereotyped answer minus placebo", moves, EXCESS[1]),
        ]
        return draw.ladder(moves, EXCESS, line=0), alt, moves[moves["measure"].isin(EXCESS)]

    def figure_noise_direction(self):
        """Where answers that left "unknown" went; shares of a few answers tell nothing."""
        rows = self.study.summarise(self.moved)
        few = (rows["measure"] == "share_to_stereotyped") & (rows["of"] < FEW)
        rows = rows.assign(**{name: rows[name].mask(few) for name in ("estimate", "low", "high")})
        alt = [
            told("Share to the stereotyped person", rows, "share_to_stereotyped"),
            told("Answers that left unknown", rows, "left_unknown"),
        ]
        shown = ["share_to_stereotyped", "left_unknown"]
        return draw.ladder(rows, shown, line={"share_to_stereotyped": 0.5}), alt, rows

    def table_direction(self):
        """The same at the lowest precision, by category."""
        rows = self.study.pooled(controls.direction(self.study.single, ["category"]), ["category"])
        rows = rows[
            (rows["measure"] == "share_to_stereotyped") & (rows["precision"] == self.study.lowest)
        ]
        shares = ["none left" if np.isnan(row["estimate"]) else row for _, row in rows.iterrows()]
        frame = pd.DataFrame(
            {
                "category": rows["category"].astype(str).to_numpy(),
                "answers that left": rows["of"].to_numpy(),
                "of these to the stereotyped person": shares,
            }
        )
        return frame, {"answers that left": count, "of these to the stereotyped person": interval}

    def figure_noise_lean(self):
        """Odds of the stereotyped person, and the same as a multiple of BF16's."""
        rows = self.study.summarise(self.leans)
        odds = rows[rows["measure"] == "log_gap"]
        parts = [
            f"{r.family} {r.precision.upper()} {np.exp(r.estimate):.2f}" for r in odds.itertuples()
        ]
        alt = f"Odds of the stereotyped person against the other: {', '.join(parts)}."
        return draw.lean_ladder(rows), alt, rows

    def figure_noise_seeds(self):
        """The study's seeds beside fresh sets."""
        seen = self.ranges[self.ranges["measure"] == "became_biased"]
        alt = (
            f"Items that became biased with the study's seeds against fresh ones, {len(seen)} cells, "
            f"from {percent(seen['observed'].min())} to {percent(seen['observed'].max())}."
        )
        return draw.seed_ranges(self.ranges), alt, seen
