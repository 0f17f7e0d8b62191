"""Is it the letter? Letters that drift, and what a drift cannot do, over balanced option orders."""

from functools import cached_property

import pandas as pd

from cba_utils.answering.prompts import LETTERS
from cba_utils.chapters.noise import grown
from cba_utils.measures import controls
from cba_utils.measures.measure import titles
from cba_utils.measures.tests import significant
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import ABOVE, NOT_TOLD_APART, factor
from cba_utils.telling.page import BALANCED_ORDERS, Page
from cba_utils.telling.study import Readings, Told, find, pick

PERSONS = ("d_stereotyped", "d_anti_stereotyped", "d_lead")
LEVEL = 0.05


def balanced(study):
    """The part of a study whose quantized models were asked in balanced option orders.

    Where several depths of alignment were, the one with most models is kept; where no model was, the
    study comes back as it is, and the chapter says that it has nothing to say.
    """
    answers = study.answers
    chosen = [
        model
        for model, part in answers.groupby("model")
        if part["precision"].nunique() > 1 and controls.is_balanced(part)
    ]
    if not chosen:
        return study
    depths = answers[answers["model"].isin(chosen)].groupby("depth")["model"].nunique()
    kept = set(chosen) & set(answers.loc[answers["depth"] == depths.idxmax(), "model"])
    return study.of(kept)


class Chapter(Page):
    """Notebook ``41_is_it_the_letter``."""

    keep = "all"
    needs = dict.fromkeys(
        (
            "answer",
            "drift_answer",
            "letter_drift",
            "drift",
            "letter_lead",
            "lead",
            "leaned",
            "letter",
        ),
        BALANCED_ORDERS,
    )

    def __init__(self, study):
        super().__init__(balanced(study))

    @cached_property
    def positions(self):
        """Shares of letters and probabilities of persons, an estimate a checkpoint."""
        return controls.position(self.study.answers)

    @cached_property
    def tests(self):
        """Whether the letters drifted, a test a checkpoint and precision."""
        return controls.position_tests(self.study.answers)

    @cached_property
    def leans(self):
        """Odds of the stereotyped person against the other, an estimate a checkpoint."""
        return controls.lean(self.study.answers)

    @cached_property
    def changes(self):
        """What changed since BF16, by family."""
        pooled = self.study.summarise(self.positions)
        return pooled[controls.are_changes(pooled)].reset_index(drop=True)

    @cached_property
    def drifted(self):
        """Where the test finds a drift in every checkpoint of a family that was asked so."""
        found = {}
        for p in self.study.shown:
            at = self.tests[self.tests["precision"] == p]
            found[p] = Readings(
                Told(
                    name, part.iloc[0], ABOVE if (part["p_holm"] < LEVEL).all() else NOT_TOLD_APART
                )
                for name, part in self._named(at)
            )
        return found

    def _named(self, frame):
        """Parts of a frame by what the chapter's sentences call them."""
        names = [name for name, _ in self.study.each(self.leans)]
        by = "family" if set(names) <= set(frame["family"]) else "model"
        return [(name, frame[frame[by] == name]) for name in names]

    @property
    def drift(self):
        """The letter that changed most, by precision and family."""
        return {
            p: [self._most(name, frame, p) for name, frame in self.study.each(self.positions)]
            for p in self.study.shown
        }

    def _most(self, name, frame, precision):
        rows = {x: pick(frame, f"d_letter_{x}", precision) for x in LETTERS}
        letter = max(rows, key=lambda x: abs(rows[x]["estimate"]))
        return {"name": name, "letter": letter, "row": rows[letter]}

    @property
    def significant(self):
        """How many of the tests of drifts hold after Holm's correction, and of how many."""
        return significant(self.tests)

    def _told(self, measure):
        return {p: self.study.told(self.positions, measure, p) for p in self.study.shown}

    @property
    def lead(self):
        """The change of either person, by precision."""
        one, other = map(self._told, PERSONS[:2])
        return {p: {"stereotyped": one[p], "other": other[p]} for p in one}

    @property
    def ahead(self):
        """Where the stereotyped person gained on the other."""
        return self._told(PERSONS[2])

    @cached_property
    def grew(self):
        """Whether the lean grew."""
        return grown(self.study, self.leans)

    def table_letter(self):
        """The lean over balanced orders, family by family."""
        frame = pd.DataFrame(
            [
                {
                    "family": name,
                    "odds at BF16": find(part, "log_gap", "bf16"),
                    **{
                        f"times that at {p.upper()}": find(part, "d_log_gap", p)
                        for p in self.study.shown
                    },
                }
                for name, part in self.study.each(self.leans)
            ]
        )
        return frame, dict.fromkeys(frame.columns[1:], factor)

    def figure_letter_drift(self):
        """Change of each letter's share by precision."""
        return self._changes([f"d_letter_{x}" for x in LETTERS])

    def figure_letter_lead(self):
        """Change of either person's probability by precision, and of one against the other."""
        return self._changes(PERSONS)

    def _changes(self, measures):
        alt = [told(title, self.changes, name) for name, title in titles(*measures).items()]
        return draw.changes(self.changes, titles(*measures)), alt, self.changes
