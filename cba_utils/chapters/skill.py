"""Is it lost skill? Accuracy where the text says who it was, and the bias that guessing would leave."""

from functools import cached_property

import pandas as pd

from cba_utils.measures import controls, rates
from cba_utils.measures.measure import labels, measure
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import alt_text
from cba_utils.telling.numbers import reading
from cba_utils.telling.page import BOTH_CONTEXTS, Page
from cba_utils.telling.study import pick


class Chapter(Page):
    """Notebook ``42_is_it_lost_skill``."""

    needs = dict.fromkeys(
        (
            "skill_accuracy",
            "skill_matched",
            "skill_disambiguated",
            "kinds",
            "accuracy",
            "accuracy_and_gap",
            "matched",
            "reading",
            "disambiguated",
            "skill_answer",
        ),
        BOTH_CONTEXTS,
    )

    @cached_property
    def estimates(self):
        """Everything the page shows, pooled."""
        answers = self.study.answers
        each = pd.concat([rates.bias_scores(answers), rates.paired_differences(answers)])
        found = [
            controls.capability(answers, self.study.items),
            controls.matched_skill(answers),
            each[each["measure"].isin(["s_dis", "d_s_dis"])],
        ]
        return pd.concat(map(self.study.pooled, found), ignore_index=True)

    def at(self, name, precision=None):
        """The estimate of a measure, at the lowest precision if none is given."""
        return pick(self.estimates, name, precision or self.study.lowest)

    @property
    def kinds(self):
        """On how many disambiguated items the right answer agrees with the stereotype, and of how many."""
        items = self.study.items
        asked = items[items["context_condition"] == "disambig"]
        agrees = int((asked["label"] == asked["stereotyped_index"]).sum())
        return {"agrees": agrees, "asked": len(asked), "share": agrees / len(asked)}

    @property
    def beyond(self):
        """The ambiguous bias beyond what guessing would leave."""
        return reading(self.at("s_amb_beyond_guessing"))

    @property
    def shift(self):
        """The change of the bias score on the disambiguated items."""
        return reading(self.at("d_s_dis"))

    def figure_skill_accuracy(self):
        """Right answers by whether they agree with the stereotype."""
        return self._series(
            "Right answers",
            ["accuracy_consistent", "accuracy_inconsistent"],
            "accuracy",
            points=False,
        )

    def figure_skill_matched(self):
        """The ambiguous bias score, as measured and if it were guessing."""
        return self._series(
            "Bias score", ["s_amb", "s_amb_if_guessing"], "s_amb", line=0, scale=0.01
        )

    def figure_skill_disambiguated(self):
        """The bias score on disambiguated items."""
        return self._series("Bias score", ["s_dis"], "s_dis", line=0, scale=0.01)

    def _series(self, what, measures, title, scale=1.0, **options):
        """Measures as series of one panel; scores are drawn as fractions."""
        series = labels(*measures)
        rows = self.estimates[self.estimates["measure"].isin(series)]
        rows = rows.assign(
            series=rows["measure"].map(series), measure="one", estimate=rows["estimate"] * scale
        )
        figure = draw.together(self.estimates, series, measure(title).title, scale=scale, **options)
        return figure, alt_text(what, rows, "one", by="series"), self.estimates
