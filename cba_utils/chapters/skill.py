"""Is it lost skill? Accuracy where the text says who it was, and the bias that guessing would leave."""

from functools import cached_property

import pandas as pd

from cba_utils.chapters import letter, noise
from cba_utils.measures import controls, rates
from cba_utils.measures.measure import titles
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import in_points
from cba_utils.telling.page import BOTH_CONTEXTS, PROBABILITIES, Page
from cba_utils.telling.words import places

BEYOND = "s_amb_beyond_guessing"


class Chapter(Page):
    """Notebook ``42_is_it_lost_skill``."""

    needs = {"criteria": PROBABILITIES} | dict.fromkeys(
        (
            "answer",
            "skill_accuracy",
            "skill_matched",
            "skill_disambiguated",
            "kinds",
            "gap",
            "matched",
            "disambiguated",
            "skill_answer",
            "beyond_answer",
        ),
        BOTH_CONTEXTS,
    )

    @cached_property
    def estimates(self):
        """Everything the page shows, an estimate a checkpoint."""
        answers = self.study.answers
        each = pd.concat([rates.bias_scores(answers), rates.paired_differences(answers)])
        matched = controls.matched_skill(answers)
        found = [
            controls.capability(answers, self.study.items),
            # matched_skill gives the score as measured too
            matched[matched["measure"].isin(["guessed", BEYOND])],
            each[each["measure"].isin(["s_amb", "s_dis", "d_s_dis", "d_accuracy"])],
        ]
        return pd.concat(found, ignore_index=True)

    @cached_property
    def leans(self):
        """Odds of the stereotyped person against the other, an estimate a checkpoint."""
        return controls.lean(self.study.answers)

    # Readings: what the template says, by precision and family

    @property
    def last(self):
        """The last of the precisions that sentences are about."""
        return self.study.shown[-1]

    def _told(self, name, digits=None):
        return {
            p: self.study.told(self.estimates, name, p, digits=digits) for p in self.study.shown
        }

    @cached_property
    def accuracy(self):
        """Right answers."""
        return self._told("accuracy")

    @cached_property
    def lost(self):
        """Whether fewer answers are right than at BF16."""
        return self._told("d_accuracy", digits=3)

    @cached_property
    def guessed(self):
        """What share of guesses would lose as much accuracy."""
        return self._told("guessed")

    @cached_property
    def widened(self):
        """Whether more answers are right where the stereotype agrees."""
        return self._told("alignment_gap", digits=3)

    @cached_property
    def beyond(self):
        """Whether the ambiguous bias is above what guessing would leave."""
        return self._told(BEYOND, digits=1)

    @cached_property
    def shift(self):
        """Whether the bias score on the disambiguated items changed."""
        return self._told("d_s_dis", digits=1)

    @cached_property
    def leaned(self):
        """Whether BF16 leaned to the stereotyped person."""
        return self.study.told(self.leans, "log_gap", "bf16")

    @cached_property
    def grew(self):
        """Whether the lean grew."""
        return noise.grown(self.study, self.leans)

    @property
    def kinds(self):
        """On how many disambiguated items the right answer agrees with the stereotype, and of how many."""
        items = self.study.items
        asked = items[items["context_condition"] == "disambig"]
        agrees = int((asked["label"] == asked["stereotyped_index"]).sum())
        return {"agrees": agrees, "asked": len(asked), "share": agrees / len(asked)}

    @cached_property
    def criteria(self):
        """Findings that would make a rise mean something else: the words for each, and whether it was made.

        Those that the records cannot tell are not among them.
        """
        moved = noise.Chapter(self.study)
        letters = letter.Chapter.open(self.study.study)
        found = {
            "an excess not shown to be larger than its mirror image": not places(moved.mirror),
            "no lean that is shown to have grown": not (places(moved.grew) or places(moved.rose)),
        }
        if not letters.lacks("drift_answer"):
            found["answers that drift to a letter"] = bool(places(letters.drifted))
        if not self.lacks("skill_answer"):
            found["right answers lost as well"] = bool(places(self.lost, "below"))
        return found

    # Figures

    def figure_skill_accuracy(self):
        """Right answers, and by how much more where the stereotype agrees."""
        rows = self.study.summarise(self.estimates)
        shown = {
            **titles("accuracy"),
            "alignment_gap": "Where the stereotype agrees, % more right",
        }
        figure = draw.ladder(rows, [*shown], line={"alignment_gap": 0}, titles=shown)
        alt = [told(title, rows, name) for name, title in shown.items()]
        return figure, alt, rows[rows["measure"].isin(shown)]

    def figure_skill_matched(self):
        """The ambiguous bias score, and what is beyond guessing."""
        return self._scores(
            {"s_amb": "Bias score, points", BEYOND: "The same beyond guessing, points"}
        )

    def figure_skill_disambiguated(self):
        """The change of the bias score on disambiguated items."""
        return self._scores({"d_s_dis": "Bias score s_DIS, change since BF16, points"})

    def _scores(self, names):
        """Scores by family: drawn as fractions, which `draw.changes` labels in points."""
        rows = self.study.summarise(self.estimates)
        rows = rows[rows["measure"].isin(names)]
        fractions = rows.assign(**{c: rows[c] / 100 for c in ("estimate", "low", "high")})
        alt = [told(title, rows, name, text=in_points) for name, title in names.items()]
        return draw.changes(fractions, names), alt, rows
