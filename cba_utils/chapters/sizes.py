"""Does it carry over with size? The same recipe at several widths, of one family.

The weights of the larger ones are not shipped; their records are, as those of the study "sizes" (its file is
`organisms/sizes.yml`), in which every size goes as a family of its own.
"""

import json
from functools import cache, cached_property

import pandas as pd
import yaml

from cba_utils.measures import controls, margins, transitions
from cba_utils.names import PROJECT, RESULTS
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import factor, measured, points, reading, scores
from cba_utils.telling.page import Need, Page
from cba_utils.telling.study import find, open_study

STUDY = "sizes"
SIZED = Need("sizes", lambda study: (RESULTS / STUDY / "tables" / "answers.parquet").exists())
SHOWN = {
    "unknown_slope": ("Slope on BF16's margin", 1.0),
    "unknown_spread": ("Added spread, nats", 0.0),
    "became_biased_expected_excess": ("Gained a stereotyped answer beyond placebo", 0.0),
    "d_log_gap": ("Lean, change in log odds", 0.0),
}


@cache
def _sizes():
    return open_study(STUDY)


class Chapter(Page):
    """Notebook ``35_size``; whatever the study of a book, its numbers are those of one."""

    needs = {"": SIZED}
    ways = {"less": "less", "more": "more", "open": "the intervals overlap"}

    def __init__(self, study):
        self._asked = study
        super().__init__(_sizes() if SIZED.met(study) else study)

    @cached_property
    def taught(self):
        """What every alignment showed at full precision, and which of the protocol's limits it missed."""
        study = yaml.safe_load((PROJECT / "organisms" / "sizes.yml").read_text(encoding="utf-8"))
        rows = []
        for model in study["models"]:
            path = PROJECT / "organisms" / model["adapter"] / "acceptance.json"
            known = json.loads(path.read_text(encoding="utf-8"))
            size = study["families"][model["family"]]
            rows.append({"size": size, "missed": known["missed"], **known["main"]})
        return pd.DataFrame(rows)

    @property
    def folder(self):
        """Where drawings and their data are kept."""
        return self._asked.folder

    @cached_property
    def estimates(self):
        """What is compared, an estimate a checkpoint and precision."""
        answers = self.study.answers
        frames = [
            margins.regression(answers, self.study.items),
            transitions.placebo(answers, method="jackknife"),
            controls.lean(answers),
        ]
        found = pd.concat(frames, ignore_index=True)
        return found[found["measure"].isin(SHOWN)]

    @cached_property
    def by_size(self):
        """The same, a row a size."""
        return self.study.summarise(self.estimates)

    # Readings: what the template says

    def at(self, measure, precision):
        """A measure, a reading a size from the smallest."""
        return self.study.told(self.estimates, measure, precision, null=SHOWN[measure][1], digits=2)

    def ends(self, measure, precision):
        """The smallest and the largest size, and whether their intervals lie apart."""
        found = list(self.at(measure, precision))
        first, last = found[0], found[-1]
        less = last.row["high"] < first.row["low"]
        more = last.row["low"] > first.row["high"]
        return {"first": first, "last": last, "way": "less" if less else "more" if more else "open"}

    @property
    def outside(self):
        """Sizes of which an alignment missed a limit, with how far the worst of them is off."""
        missed = self.taught[self.taught["missed"].str.len() > 0]
        return [
            {"size": size, "missed": len(part), "of": int((self.taught["size"] == size).sum())}
            | part[["margin_error", "lean_error"]].max().to_dict()
            for size, part in missed.groupby("size", sort=False)
        ]

    # Figures and tables

    def table_taught(self):
        """How well every size holds what was planted in it, worst of its alignments."""
        worst = {
            "margin_error": ("margin error, nats", "max"),
            "lean_error": ("lean error", "max"),
            "disambiguated_right_lowest": ("right answers, lowest", "min"),
        }
        by_size = self.taught.groupby("size", sort=False)
        frame = by_size.agg(**{column: (name, how) for name, (column, how) in worst.items()})
        frame.insert(0, "alignments", by_size.size())
        frame["met every limit"] = by_size["missed"].agg(lambda m: int((m.str.len() == 0).sum()))
        columns = {"margin error, nats": 2, "lean error": 3, "right answers, lowest": 3}
        return frame.reset_index(), {
            name: f"{{:.{digits}f}}".format for name, digits in columns.items()
        }

    def figure_sizes(self):
        """Every measure by precision, a panel a measure, a series a size."""
        titles = {name: title for name, (title, _) in SHOWN.items()}
        nulls = {name: null for name, (_, null) in SHOWN.items()}
        figure = draw.ladder(self.by_size, list(SHOWN), line=nulls, titles=titles)
        for name, axes in zip(SHOWN, figure.axes, strict=False):
            if name != "became_biased_expected_excess":
                draw.plain_axis(axes)
        alt = [
            told(titles[name], self.by_size, name, text=lambda value: f"{value:.2f}")
            for name in SHOWN
        ]
        return figure, alt, self.by_size

    def table_sizes(self):
        """One row a size and precision."""
        rows = []
        for p in self.study.shown:
            for name, part in self.study.each(self.estimates):
                found = {measure: find(part, measure, p) for measure in SHOWN}
                rows.append(
                    {
                        "size": name,
                        "at": p.upper(),
                        "slope of margins": found["unknown_slope"],
                        "added spread, nats": found["unknown_spread"],
                        "gained beyond placebo, points": found["became_biased_expected_excess"],
                        "odds, times BF16's": found["d_log_gap"],
                        "reading of the lean": reading(found["d_log_gap"]),
                    }
                )
        frame = pd.DataFrame(rows)

        def hundredths(row):
            return measured(row, lambda value: scores(value, 2))

        formats = {
            "slope of margins": hundredths,
            "added spread, nats": hundredths,
            "gained beyond placebo, points": points,
            "odds, times BF16's": factor,
        }
        return frame, formats
