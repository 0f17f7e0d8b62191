"""Is it the letter? Letters that drift, and what a drift cannot do, over balanced option orders."""

from functools import cached_property

from cba_utils.answering.prompts import LETTERS
from cba_utils.chapters.noise import lean_at
from cba_utils.measures import controls
from cba_utils.measures.measure import titles
from cba_utils.measures.tests import significant
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import reading
from cba_utils.telling.page import BALANCED_ORDERS, Page
from cba_utils.telling.study import pick

PERSONS = ("d_stereotyped", "d_anti_stereotyped", "d_lead")


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
        ("letter_drift", "drift", "letter_lead", "lead", "leaned"), BALANCED_ORDERS
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

    @property
    def drift(self):
        """The letter that changed most at the lowest precision, a family or pooled."""
        for name, frame in self.study.each(self.positions):
            rows = {x: pick(frame, f"d_letter_{x}", self.study.lowest) for x in LETTERS}
            letter = max(rows, key=lambda x: abs(rows[x]["estimate"]))
            yield {"name": name, "letter": letter, "row": rows[letter]}

    @property
    def significant(self):
        """How many of the tests of drifts hold after Holm's correction, and of how many."""
        return significant(self.tests)

    @property
    def lead(self):
        """The change of either person at the lowest precision and the difference, a family or pooled."""
        for name, frame in self.study.each(self.positions):
            one, other, row = (pick(frame, person, self.study.lowest) for person in PERSONS)
            yield {
                "name": name,
                "stereotyped": one,
                "other": other,
                "row": row,
                "reading": reading(row),
            }

    @property
    def lean(self):
        """The lean at BF16 and its change, a family or pooled."""
        for name, frame in self.study.each(self.leans):
            yield {"name": name, **lean_at(frame, self.study.lowest)}

    def figure_letter_drift(self):
        """Change of each letter's share by precision."""
        return self._changes([f"d_letter_{x}" for x in LETTERS])

    def figure_letter_lead(self):
        """Change of either person's probability by precision, and of one against the other."""
        return self._changes(PERSONS)

    def _changes(self, measures):
        alt = [told(title, self.changes, name) for name, title in titles(*measures).items()]
        return draw.changes(self.changes, titles(*measures)), alt, self.changes
