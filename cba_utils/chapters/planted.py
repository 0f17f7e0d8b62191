"""Does the instrument see what was planted? Planted margins and leans beside those given at BF16."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures.planted import STRENGTHS, given
from cba_utils.telling import drawing as draw
from cba_utils.telling.numbers import count, in_points, interval, percent, scores
from cba_utils.telling.page import PLANTED, Page

# Accepted at BF16 on fillings of their own: nats up to the margin SURE and at least LEAST beyond, and share.
NEAR, SURE, LEAST, LEAN_NEAR = 0.2, 3.0, 2.5, 0.03


class Chapter(Page):
    """Notebook ``31_planted_strength``."""

    keep, version = "all", "all"
    needs = {"": PLANTED}
    near, sure, least, lean_near = NEAR, SURE, LEAST, LEAN_NEAR

    @cached_property
    def strengths(self):
        """What was planted."""
        return pd.read_csv(STRENGTHS)

    @cached_property
    def _answers(self):
        """Answers of bases and of whole alignments: one that was stopped early was to hold nothing."""
        answers = self.study.answers
        aligned = answers[answers["depth"] != "base"]
        most = aligned.drop_duplicates(["model", "depth"])["depth"].value_counts().index[0]
        return answers[answers["depth"].isin(["base", most])]

    @cached_property
    def margins(self):
        """Margins given by family and rung, aligned models."""
        found = given(self._answers, self.strengths, "margin")
        return found[found["aligned"]].reset_index(drop=True)

    @cached_property
    def leans(self):
        """Leans given by family and rung, aligned models and bases."""
        return given(self._answers, self.strengths, "lean")

    def _leans(self, aligned=True, held_out=False):
        rows = self.leans
        return rows[(rows["aligned"] == aligned) & (rows["held_out"] == held_out)]

    @property
    def _asked(self):
        return self.margins[~self.margins["held_out"]]

    # Readings: what the template says

    @property
    def has_bases(self):
        """Whether bases were asked."""
        return bool((~self.leans["aligned"]).any())

    @property
    def n(self):
        """Aligned checkpoints and independent trainings a family, the fewest."""
        return {
            "checkpoints": int(self._leans()["n"].min()),
            "clusters": int(self._leans()["clusters"].min()),
        }

    @property
    def templates(self):
        """Question templates on a rung, the fewest."""
        return {
            "margin": int(self._asked["templates"].min()),
            "lean": int(self._leans()["templates"].min()),
        }

    @property
    def margin(self):
        """A family: how far its margins are from what was planted, and whether they rise."""
        for family, rows in self._asked.groupby("family", sort=False):
            low, high = rows[rows["planted"] <= SURE], rows[rows["planted"] > SURE]
            off = (low["estimate"] - low["planted"]).abs()
            yield {
                "family": family,
                "off": off.max(),
                "at": f"{low.loc[off.idxmax(), 'planted']:g}",
                "least": high["estimate"].min(),
                "beyond": len(high) > 0,
                "steps": len(rows) - 1,
                "rising": int((np.diff(rows["estimate"]) > 0).sum()),
                "met": bool(off.max() <= NEAR and not (high["estimate"] <= LEAST).any()),
            }

    @property
    def lean(self):
        """A family: how far its leans are from what was planted, aligned and in its bases."""
        bases = dict(list(self._leans(aligned=False).groupby("family")))
        for family, rows in self._leans().groupby("family", sort=False):
            yield {
                "family": family,
                "off": _furthest(rows),
                "bases": _furthest(bases[family]) if family in bases else None,
                "met": _furthest(rows) <= 100 * LEAN_NEAR,
            }

    @property
    def held(self):
        """How many intervals over trainings hold the planted value, and of how many that there are."""
        found = {}
        for name, rows in {"margin": self._asked, "lean": self._leans()}.items():
            rows = rows.dropna(subset="low")
            inside = (rows["low"] <= rows["planted"]) & (rows["planted"] <= rows["high"])
            found[name] = {"held": int(inside.sum()), "of": len(rows)}
        return found

    @property
    def held_out(self):
        """The lean of templates that were never asked in training, a family."""
        rows = self._leans(held_out=True)
        return [{"family": row["family"], "row": row} for _, row in rows.iterrows()]

    @property
    def stated(self):
        """The lean that was stated for templates that were never asked."""
        return self._leans(held_out=True)["planted"].max()

    def foot_cells(self):
        """Only BF16 is used."""
        cells = self.study.provenance
        return cells[cells["precision"] == "bf16"]

    # Figures and tables

    def figure_planted(self):
        """Given against planted: margins and leans of the aligned models, leans of the bases."""
        alt = [
            f"{part['family']}: margins up to {SURE:g} nats are at most {in_points(part['off'], 2)} nats "
            f"from what was planted."
            for part in self.margin
        ]
        alt += [
            f"{part['family']}: leans are at most {in_points(part['off'])} points from what was planted."
            for part in self.lean
        ]
        data = pd.concat([self.margins, self.leans], ignore_index=True)
        return draw.planted(data), alt, data

    def table_planted(self):
        """Every rung of every family."""
        rows = []
        for frame, text, planted in (
            (self.margins, scores_in_nats, lambda x: f"margin {x:g}"),
            (self.leans, interval, lambda x: f"lean {percent(x, 0)}"),
        ):
            for _, row in frame.iterrows():
                which = "aligned" if row["aligned"] else "bases"
                rows.append(
                    {
                        "family": row["family"],
                        "models": f"{which}, held-out templates" if row["held_out"] else which,
                        "planted": "none" if np.isnan(row["planted"]) else planted(row["planted"]),
                        "given": text(row),
                        "templates": row["templates"],
                    }
                )
        return pd.DataFrame(rows), {"given": str, "templates": count}


def scores_in_nats(row):
    """A margin with its interval."""
    return f"{scores(row, 2)} nats"


def _furthest(rows):
    return 100 * (rows["estimate"] - rows["planted"]).abs().max()
