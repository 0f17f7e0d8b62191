"""Nothing to find: what every measure says of items in which no answer is stereotyped but by a coin."""

from functools import cache, cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import controls, rates, transitions
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import count, factor, interval, points, reading
from cba_utils.telling.page import Page
from cba_utils.telling.study import find, open_study

RECORDS = {"organisms": "null", "real": "null-real"}
# What pages read, how an interval is printed, and what stands for no effect.
READ = {
    "became_biased_expected_excess": (
        "items that gained a stereotyped answer, beyond the placebo",
        interval,
        0.0,
    ),
    "bias_beyond_mirror": ("the same beyond its mirror image", points, 0.0),
    "share_to_stereotyped": ("left “unknown” for the stereotyped person", interval, 0.5),
    "d_log_gap": ("lean, times BF16's", factor, 0.0),
    "beyond_own_odds": ("beyond BF16's own odds, points", points, 0.0),
    "d_s_amb": ("bias score, change", lambda row: points(row_of(row, 0.01)), 0.0),
}
# One item more or less that changed is noise too: an excess says that something moved, not where to.
MOVES = ("became_biased_expected_excess",)
ROWS = {
    "bias_beyond_mirror": "beyond the mirror image",
    "share_to_stereotyped": "left “unknown” for whom",
    "d_log_gap": "lean",
    "beyond_own_odds": "beyond own odds",
    "d_s_amb": "bias score",
}


def row_of(row, scale):
    """An estimate on another scale."""
    return {name: row[name] * scale for name in ("estimate", "low", "high")}


class Part:
    """The records of some models of the study."""

    def __init__(self, study):
        self.study = study

    @cached_property
    def estimates(self):
        """Every measure, an estimate a checkpoint and precision."""
        study = self.study
        frames = [
            transitions.placebo(study.answers, method="jackknife"),
            controls.direction(study.answers),
            controls.lean(study.answers),
            controls.own_odds(study.answers),
            rates.paired_differences(study.answers, method="jackknife"),
        ]
        found = pd.concat(frames, ignore_index=True)
        return found[found["measure"].isin([*READ, "log_gap", "named_share_expected"])]

    @cached_property
    def rows(self):
        """What is read: one row a measure, precision and family (or model)."""
        found = []
        for measure, (title, text, null) in READ.items():
            for precision in self.study.precisions[1:]:
                for name, part in self.study.each(self.estimates):
                    row = find(part, measure, precision)
                    if row is None or np.isnan(row["estimate"]):
                        continue
                    found.append(
                        {
                            "measure": measure,
                            "title": title,
                            "precision": precision,
                            "name": name,
                            "row": row,
                            "null": null,
                            "text": text,
                            "reading": reading(row, null),
                        }
                    )
        return found


@cache
def _records():
    """The null benchmark asked of organisms, and of a small real model."""
    return {name: Part(open_study(study)) for name, study in RECORDS.items()}


class Chapter(Page):
    """Notebook ``51_nothing_to_find``; whatever the study of a book, its numbers are those of one."""

    without_letters = ("all",)

    def __init__(self, study):
        self._asked = study
        super().__init__(_records()["organisms"].study)

    @property
    def folder(self):
        """Where drawings and their data are kept."""
        return self._asked.folder

    @property
    def parts(self):
        """The organisms, and the small real model."""
        return list(_records().values())

    @property
    def sizes(self):
        """Items and templates that were asked."""
        items = self.study.items
        return {"asked": len(items), "templates": items["question_index"].nunique()}

    def counted(self, moves=False):
        """Readings that say something, of all, of measures that say where to, or of whether items move."""
        rows = [r for part in self.parts for r in part.rows if (r["measure"] in MOVES) == moves]
        said = [r for r in rows if r["reading"] != "not told apart"]
        return {
            "of": len(rows),
            "said": len(said),
            "above": sum(r["reading"] == "above" for r in said),
        }

    @property
    def said(self):
        """Readings of measures that say where to, in which something is said."""
        return [
            {**r, "shown": r["text"](r["row"]), "precision": r["precision"].upper()}
            for part in self.parts
            for r in part.rows
            if r["measure"] not in MOVES and r["reading"] != "not told apart"
        ]

    @cached_property
    def distances(self):
        """Readings of where answers went: how far from no effect, in halves of the own interval."""
        rows = []
        for part in self.parts:
            for r in (one for one in part.rows if one["measure"] in ROWS):
                row, null = r["row"], r["null"]
                towards = "low" if row["estimate"] > null else "high"
                half = abs(row["estimate"] - row[towards])
                if half > 0:
                    far = {k: (row[k] - null) / half for k in ("estimate", "low", "high")}
                    kept = ("measure", "precision", "name")
                    rows.append({**far, **{k: r[k] for k in kept}, "n": row["n"]})
        return pd.DataFrame(rows)

    def figure_nothing(self):
        """Every reading on one axis, a panel a precision, a colour a family."""
        frame = self.distances
        panels = {p: f"At {p.upper()}" for p in self.study.precisions[1:]}
        figure = draw.dots(
            frame,
            ROWS,
            "precision",
            panels,
            "from no effect, halves of the interval",
            series="name",
            percentages=False,
        )
        where = self.counted()
        alt = (
            f"{where['said']} of {where['of']} readings of measures that say where answers went are "
            f"further from no effect than half their interval; the furthest is at "
            f"{frame['estimate'].abs().max():.1f} halves."
        )
        return figure, [alt], frame

    def table_nothing(self):
        """One row a measure and precision, one column a family and one for the real model."""
        rows: dict = {}
        for part in self.parts:
            for r in part.rows:
                key = (r["title"], r["precision"].upper())
                shown = r["text"](r["row"])
                shown += "" if r["reading"] == "not told apart" else f": {r['reading']}"
                rows.setdefault(key, {"measure": key[0], "at": key[1]})[r["name"]] = shown
        frame = pd.DataFrame(list(rows.values())).fillna("no such answer")
        return frame, {}

    def table_null_rates(self):
        """How often which person was named."""
        rows = []
        for part in self.parts:
            for name, found in part.study.each(
                rates.role_rates(part.study.answers, method="jackknife")
            ):
                for precision in part.study.precisions:
                    one = {"of": name, "at": precision.upper(), "items": self.sizes["asked"]}
                    for title, measure in (
                        ("“stereotyped”", "srs"),
                        ("“anti-stereotyped”", "anti_rate"),
                        ("“unknown”", "usr"),
                    ):
                        one[title] = find(found, measure, precision)
                    rows.append(one)
        frame = pd.DataFrame(rows)
        return frame, {"items": count, **dict.fromkeys(frame.columns[3:], interval)}
