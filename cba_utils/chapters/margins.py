"""The margin, multiplied or shaken? What a precision does to margins, and which account predicts."""

from functools import cache, cached_property

import pandas as pd

from cba_utils.measures import margins
from cba_utils.measures.margins import ACCOUNTS, MARGINS
from cba_utils.measures.planted import STRENGTHS, planted_templates
from cba_utils.study.roles import template_ids
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import in_points, measured, reading, scores
from cba_utils.telling.page import PLANTED as OWN_ITEMS
from cba_utils.telling.page import PROBABILITIES, Need, Page
from cba_utils.telling.study import find, open_study

# The study whose model others made and people use; see the chapter `real_model`.
REAL = "smollm2"
FITTED = [account for account in ACCOUNTS if account != "placebo"]
PLANTED = Need(
    "planted_margins",
    lambda study: (
        study.items["margin"].notna().any() if "margin" in study.items else OWN_ITEMS.met(study)
    ),
)
TEMPLATES = Need(
    "several_templates", lambda study: study.exact and study.answers["template_id"].nunique() > 1
)


@cache
def real():
    """Margins of the real small model: its records are read once."""
    study = open_study(REAL)
    kept = study.answers[study.answers["precision"].isin(["bf16", *study.shown])]
    return study, margins.regression(kept), margins.predictions(kept)


class Chapter(Page):
    """Notebook ``47_margins``."""

    needs = {
        "": PROBABILITIES,
        "margin_truth": PLANTED,
        "truth": PLANTED,
        **dict.fromkeys(
            ("margin_accounts", "margin_predictions", "accounts", "answer", "account_by_account"),
            TEMPLATES,
        ),
    }
    accounts = ACCOUNTS
    kinds = MARGINS

    @cached_property
    def _items(self):
        """The study's items, with the margins that were planted where that is known."""
        items = self.study.items
        if "margin" in items or not PLANTED.met(self.study):
            return items
        planted = planted_templates(pd.read_csv(STRENGTHS))["margin"]
        return items.assign(margin=template_ids(items).map(planted))

    @cached_property
    def lines(self):
        """What became of margins, an estimate a checkpoint."""
        return margins.regression(self.study.answers, self._items)

    @cached_property
    def predicted(self):
        """What each account predicts out of sample, an estimate a checkpoint."""
        return margins.predictions(self.study.answers)

    @property
    def at(self):
        """The precisions of the published claim, from most bits."""
        return self.study.shown

    # Readings: what the template says

    def line(self, measure, precision):
        """A measure of the margins, a reading a family; a slope beside one."""
        null = 1.0 if measure.endswith("_slope") else 0.0
        return self.study.told(self.lines, measure, precision, null=null, digits=2)

    def better(self, precision, outcome="biased"):
        """Which of shrinkage and noise, each alone, predicts better: above where noise does."""
        return self.study.told(self.predicted, f"{outcome}_shrinkage_over_noise", precision)

    def best(self, precision, outcome="biased"):
        """The account with the least error of each family, with that error."""
        for name, part in self.study.each(self.predicted):
            rows = {a: find(part, f"{outcome}_{a}_error", precision) for a in FITTED}
            rows = {a: row for a, row in rows.items() if row is not None}
            if rows:
                account = min(rows, key=lambda a: rows[a]["estimate"])
                none = find(part, f"{outcome}_placebo_error", precision)
                yield {
                    "name": name,
                    "account": ACCOUNTS[account],
                    "row": rows[account],
                    "none": none,
                }

    @property
    def gaps(self):
        """The same by precision."""
        return {p: self.better(p) for p in self.at}

    @property
    def slopes(self):
        """Slopes of the margin that decides, by precision."""
        return {p: self.line("unknown_slope", p) for p in self.at}

    @property
    def truth(self):
        """The slope of the planted margin, a reading a family and precision."""
        return {
            p: self.study.told(self.lines, "truth_slope", p, null=1.0, digits=2) for p in self.at
        }

    @cached_property
    def real(self):
        """The same of the real small model, a row a precision."""
        study, lines, predicted = real()
        for precision in study.shown:
            gap = find(predicted, "biased_shrinkage_over_noise", precision)
            yield {
                "precision": precision.upper(),
                "items": gap["n"],
                **{
                    what: find(lines, f"unknown_{what}", precision)
                    for what in ("slope", "shift", "spread")
                },
                "seen": find(predicted, "biased_seen", precision),
                **{a: find(predicted, f"biased_{a}", precision) for a in ACCOUNTS},
                "reading": reading(gap),
            }

    # Figures and tables

    def figure_margin_lines(self):
        """Slope, shift and spread by precision."""
        names = ["unknown_slope", "unknown_shift", "unknown_spread"]
        frame = self.study.summarise(self.lines)
        titles = {
            "unknown_slope": "Slope on BF16's margin",
            "unknown_shift": "Shift, nats",
            "unknown_spread": "Added spread, nats",
        }
        line = {"unknown_slope": 1.0, "unknown_shift": 0.0, "unknown_spread": 0.0}
        figure = draw.ladder(frame, names, line=line, titles=titles)
        for axes in figure.axes:
            draw.plain_axis(axes)
        seen = frame[frame["precision"].isin(self.at)]
        alt = [
            told(titles[name], seen, name, text=lambda value: in_points(value, 2)) for name in names
        ]
        return figure, alt, frame

    def figure_margin_truth(self):
        """How far margins still rise with what was planted, by precision."""
        frame = self.study.summarise(self.lines)
        title = "Slope on the planted margin, of BF16's"
        figure = draw.ladder(
            frame, ["truth_slope"], line={"truth_slope": 1.0}, titles={"truth_slope": title}
        )
        for axes in figure.axes:
            draw.plain_axis(axes)
        alt = [told(title, frame, "truth_slope", text=lambda value: in_points(value, 2))]
        return figure, alt, frame[frame["measure"] == "truth_slope"]

    def figure_margin_accounts(self):
        """Error of every account, one panel a precision."""
        frame = self.study.summarise(self.predicted)
        panels = {p: f"At {p.upper()}" for p in self.at}
        rows = {f"biased_{account}_error": words for account, words in ACCOUNTS.items()}
        figure = draw.dots(
            frame[frame["precision"].isin(panels)],
            rows,
            "precision",
            panels,
            "error of the share that gained a stereotyped answer",
        )
        seen = frame[frame["precision"].isin(self.at)]
        alt = [told(f"Error if {words}", seen, name) for name, words in rows.items()]
        return figure, alt, frame[frame["measure"].isin(rows)]

    def table_margin_kinds(self):
        """Each kind of margin at the claim's precisions, a row a family."""
        frame = self.study.summarise(self.lines)
        rows = []
        for p in self.at:
            for family, part in frame.groupby("family", sort=False):
                for kind, title in MARGINS.items():
                    found = {
                        what: find(part, f"{kind}_{what}", p)
                        for what in ("slope", "shift", "spread", "kept")
                    }
                    rows.append(
                        {
                            "precision": p.upper(),
                            "family": family,
                            "margin": title,
                            "slope": found["slope"],
                            "shift, nats": found["shift"],
                            "added spread, nats": found["spread"],
                            "variance explained": found["kept"],
                        }
                    )

        def nats(row):
            return measured(row, lambda value: scores(value, 2))

        formats = dict.fromkeys(("slope", "shift, nats", "added spread, nats"), nats)
        return pd.DataFrame(rows), {**formats, "variance explained": measured}

    def table_margin_predictions(self):
        """What was seen and what each account predicted, a row a family and precision."""
        frame = self.study.summarise(self.predicted)
        rows = []
        for p in self.at:
            for family, part in frame.groupby("family", sort=False):
                for outcome, title in margins.OUTCOMES.items():
                    rows.append(
                        {
                            "precision": p.upper(),
                            "family": family,
                            "outcome": title,
                            "seen": find(part, f"{outcome}_seen", p),
                            **{
                                words: find(part, f"{outcome}_{account}", p)
                                for account, words in ACCOUNTS.items()
                            },
                        }
                    )
        table = pd.DataFrame(rows)
        return table, dict.fromkeys(table.columns[3:], measured)
