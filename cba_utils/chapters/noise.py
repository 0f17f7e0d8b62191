"""Is it noise? Changes beyond the placebo, whether the lean grew, and where answers went."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import controls, sensitivity
from cba_utils.measures.tests import significant
from cba_utils.measures.transitions import transitions
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import (
    ABOVE,
    BELOW,
    NOT_TOLD_APART,
    count,
    factor,
    interval,
    measured,
    percent,
    points,
)
from cba_utils.telling.page import PROBABILITIES, Page
from cba_utils.telling.study import Readings, Told, changes, find, pick

FEW = 20
EXCESS = ("became_biased_expected_excess", "became_anti_expected_excess")


@dataclass
class Seeds:
    """How the study's own seeds stand among fresh ones."""

    cells: int
    outside: int
    checkpoints: int
    none: int


def grown(study, leans, precision):
    """Whether the lean grew, family by family: its change at a precision, read beside BF16's.

    Parameters
    ----------
    study : Study
    leans : DataFrame
        From `controls.lean`, an estimate a checkpoint.
    precision : str

    Returns
    -------
    Readings
    """
    found = Readings()
    for name, part in study.each(leans):
        before, change = find(part, "log_gap", "bf16"), find(part, "d_log_gap", precision)
        if change is None:
            continue
        said = BELOW if change["high"] < 0 else NOT_TOLD_APART
        found.append(Told(name, change, ABOVE if controls.grew(before, change) else said))
    return found


class Chapter(Page):
    """Notebook ``40_is_it_noise``."""

    needs = {
        "noise_answer": PROBABILITIES,
        "noise": PROBABILITIES,
        "lean_answer": PROBABILITIES,
        "noise_excess": PROBABILITIES,
        "mirror": PROBABILITIES,
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

    # Readings: what the template says, by precision and family

    def _told(self, frame, measure, null=0.0, digits=None):
        return {p: self.study.told(frame, measure, p, null, digits) for p in self.study.shown}

    @cached_property
    def excess(self):
        """Whether more items gained a stereotyped answer than asking again explains.

        What the printed digits would not show is no excess.
        """
        return self._told(self.checkpoints, EXCESS[0], digits=3)

    @cached_property
    def gained(self):
        """Items that gained a stereotyped answer, of those without one at BF16."""
        return self._told(self.checkpoints, self.study.named("became_biased"))

    @cached_property
    def placebo(self):
        """What asking BF16 again would give."""
        return self._told(self.checkpoints, "became_biased_placebo")

    @cached_property
    def mirror(self):
        """Whether the excess is larger than that of its mirror image."""
        return self._told(self.checkpoints, "bias_beyond_mirror", digits=3)

    @cached_property
    def leaned(self):
        """Whether BF16 leaned to the stereotyped person."""
        return self.study.told(self.leans, "log_gap", "bf16")

    @cached_property
    def grew(self):
        """Whether the lean grew."""
        return {p: grown(self.study, self.leans, p) for p in self.study.shown}

    @cached_property
    def direction(self):
        """The share that went to the stereotyped person, beside one half."""
        return self._told(self.moved, "share_to_stereotyped", null=0.5)

    @property
    def last(self):
        """The last of the precisions that sentences are about."""
        return self.study.shown[-1]

    @property
    def significant(self):
        """How many of the tests of directions hold after Holm's correction, and of how many."""
        return significant(self.tests)

    @property
    def not_made(self):
        """How many tests could not be made, and of how many."""
        return int(self.tests["p"].isna().sum()), len(self.tests)

    @cached_property
    def net(self):
        """Gained minus lost, by the study's own seeds."""
        moves = transitions(self.study.drawn)
        return {
            p: {name: self.study.told(moves, f"net_{name}", p) for name in ("biased", "anti")}
            for p in self.study.shown
        }

    @property
    def seeds(self):
        """In how many cells the study's seeds are unlike fresh ones."""
        seen = self.ranges[self.ranges["measure"] == "became_biased"]
        outside = seen[(seen["observed"] < seen["low"]) | (seen["observed"] > seen["high"])]
        return Seeds(
            len(seen), len(outside), outside["model"].nunique(), int((seen["observed"] == 0).sum())
        )

    # Figures and tables

    def figure_noise_answer(self):
        """What is beyond the placebo, and whether the lean changed."""
        rows = pd.concat(map(self.study.summarise, (self.checkpoints, self.leans)))
        alt = [
            told("Gained a stereotyped answer minus placebo", rows, EXCESS[0]),
            told("Odds of the stereotyped person, change", rows, "d_log_gap", text=odds),
        ]
        shown = rows[rows["measure"].isin([EXCESS[0], "d_log_gap", "log_gap"])]
        return draw.excess_and_lean(rows, EXCESS[0]), alt, shown

    def table_noise(self):
        """What decides, family by family."""
        parts = [dict(self.study.each(frame)) for frame in (self.checkpoints, self.leans)]
        frame = pd.DataFrame(
            [
                {
                    "family": name,
                    "at": p.upper(),
                    "gained": find(moves, self.study.named("became_biased"), p),
                    "placebo": find(moves, "became_biased_placebo", p),
                    "excess, points": find(moves, EXCESS[0], p),
                    "odds at BF16": find(parts[1][name], "log_gap", "bf16"),
                    "times that": find(parts[1][name], "d_log_gap", p),
                }
                for name, moves in parts[0].items()
                for p in self.study.shown
            ]
        )
        texts = [measured, measured, points, factor, factor]
        return frame, dict(zip(frame.columns[2:], texts, strict=True))

    def figure_noise_excess(self):
        """Items that changed beyond the placebo, and their mirror image."""
        moves = self.study.summarise(self.checkpoints)
        alt = [
            told("Gained a stereotyped answer minus placebo", moves, EXCESS[0]),
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
        """The same at the last precision, by category and family."""
        moved = controls.direction(self.study.single, ["category"])
        moved = moved[moved["measure"] == "share_to_stereotyped"]
        rows = [
            {
                "category": str(category),
                "family": name,
                "answers that left": row["of"] if "of" in row else row["n"],
                "of these to the stereotyped person": "none left"
                if np.isnan(row["estimate"])
                else row,
            }
            for category, part in moved.groupby("category", observed=True)
            for name, found in self.study.each(part)
            for _, row in found[found["precision"] == self.last].iterrows()
        ]
        frame = pd.DataFrame(rows)
        return frame, {"answers that left": count, "of these to the stereotyped person": interval}

    def figure_noise_seeds(self):
        """The study's seeds beside fresh sets."""
        seen = self.ranges[self.ranges["measure"] == "became_biased"]
        alt = (
            f"Items that gained a stereotyped answer with the study's seeds against fresh ones, "
            f"{len(seen)} cells, "
            f"from {percent(seen['observed'].min())} to {percent(seen['observed'].max())}."
        )
        return draw.seed_ranges(self.ranges), alt, seen


def odds(value):
    """A logarithm of odds, as the factor it stands for."""
    return f"{np.exp(value):.2f}"
