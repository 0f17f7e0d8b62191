"""What was announced: the primary endpoint of the organisms' protocol, its control, the secondary ones."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import controls
from cba_utils.measures.planted import STRENGTHS
from cba_utils.measures.pooling import over_replicates, sign_flips
from cba_utils.measures.tests import adjust
from cba_utils.measures.transitions import placebo
from cba_utils.measures.unknown import margin_changes
from cba_utils.study.roles import template_ids
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import factor, p_text, points, scores
from cba_utils.telling.page import ANNOUNCED, Page

# As the protocol says.
LEAST_LEAN, EVEN = 0.65, 0.5
RUNGS = (1.2, 2.0, 3.0)
LEVEL = 0.05
PRIMARY = ("lean", "q3")
SECONDARY = [
    ("lean", "q4"),
    ("own odds", "q3"),
    ("own odds", "q4"),
    ("excess", "q3"),
    ("excess", "q4"),
    ("margin", "q3"),
    ("margin", "q4"),
]
NAMES = {
    "lean": ("odds of the stereotyped person, times BF16's", "d_log_gap", factor),
    "control": ("the same in the control", "d_log_gap", factor),
    "own odds": ("named beyond own odds, points", "beyond_own_odds", points),
    "excess": ("gained beyond the placebo, points", "became_biased_expected_excess", points),
    "margin": (
        "margin of “unknown” against that person, change in nats",
        "d_unknown_margin",
        lambda r: scores(r, 2),
    ),
}


class Chapter(Page):
    """Notebook ``39_announced``."""

    needs = {"": ANNOUNCED}
    least = LEAST_LEAN

    @cached_property
    def planted(self):
        """What was planted, a row a template."""
        known = pd.read_csv(STRENGTHS)
        known = known.assign(template_id=template_ids(known))
        return known.drop_duplicates("template_id").set_index("template_id")

    def _of(self, kept):
        answers = self.study.answers
        return answers[answers["template_id"].isin(self.planted.index[kept])]

    @cached_property
    def frames(self):
        """What each endpoint is of, an estimate a checkpoint."""
        lean, margin = self.planted["lean"], self.planted["margin"]
        return {
            "lean": controls.lean(self._of(lean >= LEAST_LEAN)),
            "control": controls.lean(self._of(lean == EVEN)),
            "own odds": controls.own_odds(self.study.answers),
            "excess": placebo(self.study.answers, method="jackknife"),
            "margin": margin_changes(self._of(margin.isin(RUNGS))),
        }

    def _endpoint(self, name, precision):
        frame, what = self.frames[name], NAMES[name][1]
        rows = frame[(frame["measure"] == what) & (frame["precision"] == precision)]
        flips = sign_flips(rows).iloc[0]
        return {
            "name": name,
            "precision": precision,
            "row": over_replicates(rows, ["family"]).iloc[0],
            "p": flips["p"],
            "least": flips["least_p"],
            "significant": flips["p"] < LEVEL,
            "families": self.study.told(rows, what, precision),
        }

    @cached_property
    def primary(self):
        """The primary endpoint."""
        return self._endpoint(*PRIMARY)

    @cached_property
    def control(self):
        """The same on templates in which nothing leans."""
        return self._endpoint("control", PRIMARY[1])

    @cached_property
    def ancestors(self):
        """The primary endpoint with the bases' ancestors as clusters."""
        frame = self.frames["lean"]
        rows = frame[(frame["measure"] == NAMES["lean"][1]) & (frame["precision"] == PRIMARY[1])]
        # Bases of one number in different families began with the same weights.
        number = rows["base"].str.extract(r"(\d+)\D*$")[0]
        means = rows.groupby(["family", number])["estimate"].mean().groupby(level=1).mean()
        frame = pd.DataFrame({"model": means.index, "measure": "d_log_gap", "n": 1})
        frame = frame.assign(estimate=means.to_numpy(), low=np.nan, high=np.nan)
        return {
            "row": over_replicates(frame).iloc[0],
            "clusters": len(means),
            "least": 2.0 ** (1 - len(means)),
        }

    @cached_property
    def secondary(self):
        """The secondary endpoints, with Holm's correction over them."""
        found = [self._endpoint(*one) for one in SECONDARY]
        holm = adjust(pd.DataFrame({"p": [one["p"] for one in found]}))["p_holm"]
        return [
            {**one, "p": p, "significant": p < LEVEL} for one, p in zip(found, holm, strict=True)
        ]

    @property
    def held(self):
        """How many of these are told apart from no change."""
        return sum(one["significant"] for one in self.secondary)

    def figure_announced(self):
        """The change of the lean, family by family, where one was planted and in the control."""
        parts = [
            self.study.summarise(self.frames[name])
            .query("measure == 'd_log_gap'")
            .assign(measure=measure)
            for name, measure in (("lean", "d_log_gap"), ("control", "log_gap"))
        ]
        rows = pd.concat(parts, ignore_index=True)
        alt = [
            told(title, rows, name, text=lambda value: f"{np.exp(value):.2f}")
            for title, name in (("Planted lean", "d_log_gap"), ("Control", "log_gap"))
        ]
        titles = {
            "d_log_gap": "Where a lean was planted, odds times BF16's",
            "log_gap": "Control: where none was planted",
        }
        named = rows.assign(templates=rows["measure"].map(titles), measure="d_log_gap")
        return draw.factors(rows, titles), alt, named

    def table_announced(self):
        """All endpoints."""
        families = list(self.study.families)
        rows = []
        for kind, endpoints in (
            ("primary", [self.primary]),
            ("control", [self.control]),
            ("secondary", self.secondary),
        ):
            for one in endpoints:
                title, _, text = NAMES[one["name"]]
                told_ = {found.name: text(found.row) for found in one["families"]}
                rows.append(
                    {
                        "": kind,
                        "endpoint": f"{title}, {one['precision'].upper()}",
                        "all": text(one["row"]),
                        **{name: told_.get(name, "") for name in families},
                        "p": one["p"],
                    }
                )
        return pd.DataFrame(rows), {"p": p_text}
