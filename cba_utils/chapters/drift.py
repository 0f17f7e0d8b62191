"""What would a cheap check have seen? Drift of answers and text beside the items that became biased."""

from functools import cache, cached_property

import pandas as pd

from cba_utils.measures import drift
from cba_utils.measures.drift import SCREENS
from cba_utils.measures.measure import measure, titles
from cba_utils.measures.transitions import placebo
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import in_points, interval, measured, percent, reading, scores
from cba_utils.telling.page import PROBABILITIES, Need, Page, plain
from cba_utils.telling.study import find, open_study

EXCESS = "became_biased_expected_excess"
REAL = "smollm2"
SAMPLES = Need("samples", lambda study: study.exact and len(study.samples) > 0)
SEVERAL = Need("several_cells", lambda study: study.exact and study.answers["model"].nunique() > 2)
# What each check needs, from the least.
NAMES = {
    "perplexity_change": "perplexity",
    "text_kl": "divergence on text",
    "text_flips": "flips on text",
    "vocab_kl": "divergence of the answer, all tokens",
    "letters_kl": "divergence over letters",
    "letters_tv": "total variation over letters",
    "entropy_change": "entropy of the answer",
    "concentration_change": "concentration of the answer",
    "all_flips": "first choices that flip",
}
# How each is written: shares in percent, all else as it is.
NUMBERS = {
    name: (interval if measure(name).unit in ("share", "relative") else lambda row: scores(row, 4))
    for name in SCREENS
}


@cache
def real():
    """Drift of the real small model, and its letters beside its text: its records are read once."""
    study = open_study(REAL)
    checks = drift.drifts(study.answers, study.perplexity, method="jackknife")
    texts = drift.letter_or_text(study.answers, study.samples, method="jackknife")
    return study, checks, texts, placebo(study.answers, method="jackknife")


class Chapter(Page):
    """Notebook ``48_cheap_checks``."""

    needs = {
        "": PROBABILITIES,
        "ranks": SEVERAL,
        "drift_ranks": SEVERAL,
        "answer": SEVERAL,
        "letter_text": SAMPLES,
        "texts": SAMPLES,
    }

    @cached_property
    def checks(self):
        """Every check that the records allow, an estimate a checkpoint."""
        return drift.drifts(self.study.answers, self.study.perplexity, method="jackknife")

    @cached_property
    def excess(self):
        """Items that became biased beyond the placebo, an estimate a checkpoint."""
        return placebo(self.study.answers)

    @cached_property
    def ranks(self):
        """How each check ranks cells, over all precisions and at each of the claim's."""
        found = drift.ranks(self.checks, self.excess, EXCESS)
        return found[found["precision"].isin(["all", *self.study.shown])]

    @cached_property
    def within(self):
        """The same within each family."""
        found = drift.ranks(self.checks, self.excess, EXCESS, by=["family"])
        return found[found["precision"].isin(self.study.shown)]

    @cached_property
    def texts(self):
        """The likeliest letter beside the parsed one, an estimate a checkpoint."""
        return drift.letter_or_text(self.study.answers, self.study.samples, method="jackknife")

    @property
    def measured(self):
        """Checks that the records hold, in the order of what they need."""
        return [name for name in SCREENS if (self.checks["measure"] == name).any()]

    # Readings: what the template says

    def rank(self, check, precision):
        """A check's rank correlation, and whether it is told apart from none."""
        rows = self.ranks[(self.ranks["check"] == check) & (self.ranks["precision"] == precision)]
        if rows.empty:
            return None
        row = rows.iloc[0]
        return {"name": NAMES[check], "row": row, "reading": reading(row)}

    @property
    def at(self):
        """Over all cells, and at each precision of the claim."""
        return ["all", *self.study.shown]

    def orders(self, precision, readings=("above", "below")):
        """Checks whose rank correlation at a precision is told apart from none."""
        found = (self.rank(check, precision) for check in self.measured)
        return [one for one in found if one and one["reading"] in readings]

    def best(self, precision):
        """The check that ranks best among those that do not nearly count the outcome."""
        found = [
            self.rank(check, precision)
            for check in self.measured
            if check not in drift.PARTLY_CIRCULAR
        ]
        known = [one for one in found if one and one["row"]["estimate"] == one["row"]["estimate"]]
        return max(known, key=lambda one: abs(one["row"]["estimate"]), default=None)

    def told_texts(self, measure_name, precision):
        """Agreement of letters and texts, a reading a family."""
        return self.study.told(self.texts, measure_name, precision, digits=3)

    @cached_property
    def real(self):
        """Checks of the real small model, a row a precision."""
        study, checks, texts, moves = real()
        for precision in study.shown:
            yield {
                "precision": precision.upper(),
                "perplexity": find(checks, "perplexity_change", precision),
                "kl": find(checks, "letters_kl", precision),
                "tv": find(checks, "letters_tv", precision),
                "flips": find(checks, "all_flips", precision),
                # fresh draws follow from the letters only where answers begin with one
                "excess": find(moves, EXCESS, precision) if precision in study.lettered else None,
                "agreement": find(texts, "agreement", precision),
                "expected": find(texts, "agreement_expected", precision),
                "items": find(checks, "letters_kl", precision)["n"],
            }

    # Figures and tables

    def figure_drift_ladder(self):
        """Four checks by precision."""
        wanted = ("all_flips", "letters_tv", "vocab_kl", "text_kl")
        names = [name for name in wanted if name in self.measured]
        frame = self.study.summarise(self.checks)
        figure = draw.ladder(frame, names, line=0.0)
        for axes, name in zip(figure.axes, names, strict=True):
            if measure(name).unit != "share":
                draw.plain_axis(axes)
        seen = frame[frame["precision"].isin(self.study.shown)]
        alt = [
            told(
                titles(name)[name],
                seen,
                name,
                text=percent
                if measure(name).unit == "share"
                else lambda value: in_points(value, 3),
            )
            for name in names
        ]
        return figure, alt, frame

    def figure_drift_ranks(self):
        """Rank correlations of every check, a panel a set of cells."""
        frame = self.ranks.rename(columns={"check": "measure"}).assign(family="checkpoints")
        panels = {
            p: "Over all precisions" if p == "all" else f"Checkpoints at {p.upper()}"
            for p in self.at
        }
        rows = {name: NAMES[name] for name in self.measured}
        figure = draw.dots(
            frame, rows, "precision", panels, "Spearman's rank correlation", percentages=False
        )
        figure.legends[0].remove()
        return figure, plain(self.text("ranks")), frame.drop(columns="family")

    def table_drift_ranks(self):
        """Rank correlations with their intervals, and those within each family."""
        rows = []
        for name in self.measured:
            row = {"check": NAMES[name]}
            for p in self.at:
                found = self.rank(name, p)
                row["all cells" if p == "all" else p.upper()] = found and found["row"]
            for p in self.study.shown:
                inside = self.within[
                    (self.within["check"] == name) & (self.within["precision"] == p)
                ]
                row[f"{p.upper()}, within families"] = ", ".join(
                    f"{one.family} {in_points(one.estimate, 2)}" for one in inside.itertuples()
                )
            rows.append(row)
        table = pd.DataFrame(rows)
        formats = dict.fromkeys(
            ["all cells", *(p.upper() for p in self.study.shown)],
            lambda row: measured(row, lambda value: scores(value, 2)),
        )
        return table, formats

    def table_drift_checks(self):
        """Every check at the claim's precisions, a row a family."""
        frame = self.study.summarise(self.checks)
        moves = self.study.summarise(self.excess)
        rows = [
            {
                "precision": p.upper(),
                "family": family,
                "gained a stereotyped answer beyond the placebo": measured(
                    find(moves[moves["family"] == family], EXCESS, p)
                ),
                **{
                    NAMES[name]: measured(find(part, name, p), NUMBERS[name])
                    for name in self.measured
                },
            }
            for p in self.study.shown
            for family, part in frame.groupby("family", sort=False)
        ]
        return pd.DataFrame(rows), {}

    def figure_letter_text(self):
        """Agreement of the likeliest letter with the text, beside what sampling lets expect."""
        frame = self.study.summarise(self.texts)
        names = ["agreement", "agreement_excess"]
        figure = draw.ladder(frame, names, line={"agreement_excess": 0.0})
        seen = frame[frame["precision"].isin(["bf16", *self.study.shown])]
        return figure, told("Agreement", seen, "agreement"), frame
