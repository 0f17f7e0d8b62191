"""Is it noise? Changes beyond the placebo, whether the lean grew, and where answers went."""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd

from cba_utils.measures import controls, sensitivity
from cba_utils.measures.pooling import leave_one_out
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
    in_hundredths,
    interval,
    measured,
    p_text,
    percent,
    points,
)
from cba_utils.telling.page import PROBABILITIES, Page
from cba_utils.telling.study import Readings, Told, changes, find

FEW = 20
LEAN = "d_log_gap"
EXCESS = ("became_biased_expected_excess", "became_anti_expected_excess")


@dataclass
class Seeds:
    """How the study's own seeds stand among fresh ones."""

    cells: int
    outside: int
    checkpoints: int
    none: int


def grown(study, leans):
    """Whether the lean grew, by precision and family: its change, read beside BF16's.

    Parameters
    ----------
    study : Study
    leans : DataFrame
        An estimate a checkpoint: from `controls.lean` where there are probabilities, else from
        `controls.own_odds`, whose share of the stereotyped person is the lean of draws.

    Returns
    -------
    dict of str to Readings
    """
    if study.exact:
        return _beside(study, leans, "log_gap", "d_log_gap", controls.grew, at="bf16")
    return _beside(study, leans, "named_share", "d_named_share", controls.rose, at="bf16")


def _beside(study, frame, before, change, judge, at=None):
    """Readings of a change that is judged beside another estimate, at a precision or the same one."""
    found = {}
    for p in study.shown:
        found[p] = Readings()
        for name, part in study.each(frame):
            one, other = find(part, before, at or p), find(part, change, p)
            if one is None or other is None:
                continue
            said = BELOW if other["high"] < 0 else NOT_TOLD_APART
            found[p].append(Told(name, other, ABOVE if judge(one, other) else said))
    return found


class Chapter(Page):
    """Notebook ``40_is_it_noise``."""

    needs = {
        "deciders": PROBABILITIES,
        "noise_excess": PROBABILITIES,
        "mirror": PROBABILITIES,
        "mirror_answer": PROBABILITIES,
        "categories": PROBABILITIES,
        "category": PROBABILITIES,
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
    def own(self):
        """Persons named beside each item's own odds at BF16, an estimate a checkpoint."""
        return controls.own_odds(self.study.single)

    @cached_property
    def leans(self):
        """Odds of the stereotyped person against the other (of draws: its share), a checkpoint each."""
        return controls.lean(self.study.answers) if self.study.exact else self.own

    @cached_property
    def categories(self):
        """Whether the lean grew in any single category."""
        return controls.category_leans(self.study.answers)

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
        if self.study.exact:
            return self.study.told(self.leans, "log_gap", "bf16")
        return self.study.told(self.leans, "named_share", "bf16", null=0.5)

    @cached_property
    def grew(self):
        """Whether the lean grew."""
        return grown(self.study, self.leans)

    @property
    def growth(self):
        """The factors by which it grew, where it did."""
        return [
            float(np.exp(one.row["estimate"]))
            for found in self.grew.values()
            for one in found
            if one.reading == ABOVE
        ]

    @cached_property
    def rose(self):
        """Whether the stereotyped person is named more often than BF16's own odds let expect."""
        names = ("named_share_expected", "beyond_own_odds")
        return _beside(self.study, self.own, *names, controls.rose)

    @cached_property
    def deciders(self):
        """Readings of a family that change when one checkpoint is left out, and which these are."""
        parts = {
            "excess": (self.checkpoints, EXCESS[0], self.excess),
            "lean": (self.leans, LEAN, self.grew),
            "own odds": (self.own, "beyond_own_odds", self.rose),
        }
        found = []
        for what, (frame, name, said) in parts.items():
            rows = frame[(frame["measure"] == name) & frame["precision"].isin(self.study.shown)]
            for family, part in rows.groupby("family", sort=False):
                for row in leave_one_out(part).itertuples():
                    # What the printed digits do not show is no reading that could change.
                    as_said = (family, row.reading) in {
                        (one.name, one.reading) for one in said[row.precision]
                    }
                    if row.decide and as_said and abs(row.estimate) >= 0.0005:
                        found.append(
                            {"what": what, "family": family, "at": row.precision, "of": row.n}
                            | {"names": list(row.decide), "shown": row.reading == ABOVE}
                        )
        return found

    @property
    def lone_deciders(self):
        """Those that hang on one checkpoint alone."""
        return [one for one in self.deciders if len(one["names"]) == 1]

    @property
    def grown_categories(self):
        """Categories in which alone the lean grew, by precision."""
        rows = self.categories[self.categories["grew"]]
        return {
            p: list(dict.fromkeys(map(str, rows.loc[rows["precision"] == p, "category"])))
            for p in self.study.shown
        }

    @cached_property
    def direction(self):
        """The share that went to the stereotyped person, of families with more than a few such answers."""
        found = self._told(self.moved, "share_to_stereotyped", null=0.5)
        return {
            p: Readings(one for one in told_ if one.row.get("of", one.row["n"]) >= FEW)
            for p, told_ in found.items()
        }

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
        """Whether the lean changed, and what is beyond each item's own odds."""
        first = LEAN if self.study.exact else "d_named_share"
        parts = [self.leans, self.own] if self.study.exact else [self.own]
        rows = pd.concat(map(self.study.summarise, parts), ignore_index=True)
        text = odds if self.study.exact else in_hundredths
        alt = [
            told("Lean to the stereotyped person, change since BF16", rows, first, text=text),
            told("Points beyond the odds of BF16", rows, "beyond_own_odds", text=in_hundredths),
        ]
        shown = rows[rows["measure"].isin([first, "beyond_own_odds"])]
        return draw.lean_and_own_odds(rows, first), alt, shown

    def table_noise(self):
        """What decides, family by family."""
        study, texts = self.study, {}
        moves, leans, own = (
            dict(study.each(frame)) for frame in (self.checkpoints, self.leans, self.own)
        )
        columns = {"gained": (moves, study.named("became_biased"), measured)}
        if study.exact:
            columns |= {
                "asked again": (moves, "became_biased_placebo", measured),
                "excess, points": (moves, EXCESS[0], points),
                "odds at BF16": (leans, "log_gap", factor),
                "times that": (leans, LEAN, factor),
            }
        else:
            columns["share named, change in points"] = (leans, "d_named_share", points)
        columns["beyond own odds, points"] = (own, "beyond_own_odds", points)
        rows = []
        for name in moves:
            for p in study.shown:
                row = {"family": name, "at": p.upper()}
                for title, (parts, measure, text) in columns.items():
                    row[title] = find(parts[name], measure, "bf16" if measure == "log_gap" else p)
                    texts[title] = partial(measured, text=text) if text != measured else measured
                rows.append(row)
        return pd.DataFrame(rows), texts

    def table_categories(self):
        """The change of the lean by category, over all families and in each."""
        each = controls.lean(self.study.answers, ["category"])
        families = {
            str(category): dict(self.study.each(part))
            for category, part in each.groupby("category", observed=True)
        }
        rows = self.categories[self.categories["precision"].isin(self.study.shown)]
        table = []
        for _, row in rows.iterrows():
            parts = families[str(row["category"])]
            own = {name: find(part, LEAN, row["precision"]) for name, part in parts.items()}
            lone = {"model": row["model"]} if "model" in row else {}
            told_ = {"all" if self.study.several else "times that": row} | (
                own if self.study.several and len(own) > 1 else {}
            )
            table.append(
                {**lone, "category": str(row["category"]), "at": row["precision"].upper()}
                | {"odds at BF16": float(np.exp(row["lean"])), **told_, "p, Holm": row["p_holm"]}
            )
        frame = pd.DataFrame(table)
        texts = {"odds at BF16": "{:.2f}".format, "p, Holm": p_text}
        plain = {"model", "category", "at", *texts}
        return frame, texts | dict.fromkeys([c for c in frame if c not in plain], factor)

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
