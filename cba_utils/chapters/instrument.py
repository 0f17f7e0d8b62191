"""Which verdicts can be trusted? What each says of simulated studies whose truth is known."""

from functools import cached_property

import pandas as pd

from cba_utils.instrument.trust import TOLERATED, read_coverage, read_rates, trust
from cba_utils.instrument.truths import DESIGNS, LEAN
from cba_utils.instrument.verdicts import (
    DECISIONS,
    ESTIMATES,
    LEVEL,
    OTHERS,
    SAME_LEVEL,
    VERDICTS,
)
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import interval, percent, percents
from cba_utils.telling.page import Page

GREW = [name for name, verdict in VERDICTS.items() if verdict.asks in ("grew", "category", "group")]


class Chapter(Page):
    """Notebook ``45_instrument``; whatever the study, its numbers are the same."""

    level, same_level, tolerated, others = LEVEL, SAME_LEVEL, TOLERATED, OTHERS

    @cached_property
    def rates(self):
        """How often each verdict said yes, by truth and way to decide."""
        return read_rates()

    @cached_property
    def coverage(self):
        """How often each interval held the true value."""
        return read_coverage()

    # Readings: what the template says

    @property
    def n(self):
        """Studies of each truth."""
        return int(self.rates["n"].min())

    @property
    def n_covered(self):
        """Studies of each truth in which coverage was counted."""
        return int(self.coverage["n"].min())

    @property
    def factor(self):
        """Odds of the stereotyped person where respondents lean, on average."""
        return float(draw.np.exp(LEAN))

    @property
    def design(self):
        """Bases and alignments of each family in the larger design."""
        return DESIGNS["bases"][1:]

    @property
    def reach(self):
        """Half the width of the widest interval of a rate."""
        return (self.rates["high"] - self.rates["low"]).max() / 2

    def judged(self, verdict, decision="bases"):
        """See `instrument.trust`, from this table."""
        return trust(verdict, decision, self.rates)

    def told(self, decision="bases"):
        """Verdicts on growth, those that can be trusted and those that cannot, the worst first."""
        found = [self.judged(name, decision) for name in GREW]
        found.sort(key=lambda one: -one["worst"]["estimate"])
        return {
            "trusted": [one for one in found if one["trusted"]],
            "misled": [one for one in found if not one["trusted"]],
        }

    def rate(self, verdict, truth, leaning=True, decision="bases"):
        """One row of the table."""
        table = self.rates
        found = table[
            (table["verdict"] == verdict)
            & (table["truth"] == truth)
            & (table["leaning"] == leaning)
            & (table["decision"] == decision)
        ]
        return found.iloc[0].to_dict()

    @property
    def blind(self):
        """What the verdict on the lean finds of a rise that comes with shrunk margins, models leaning."""
        names = [
            truth for truth in self.rates["truth"].unique() if "×" in truth and "rise" in truth
        ]
        return [self.rate("lean_grew", truth) for truth in names]

    @property
    def retrained(self):
        """The lean's verdict where each side of the comparison is a training of its own, by decision."""
        return {d: self.rate("lean_grew", "retrained", True, d) for d in DECISIONS}

    @property
    def parts(self):
        """The verdicts on categories and groups where only a part of the templates rose."""
        return {
            "overall": self.rate("lean_grew", "one category + 1"),
            "category": self.rate("lean_grew_in_a_category", "one category + 1"),
            "halves": self.rate("lean_grew", "halves, odds flat"),
            "group": self.rate("lean_grew_in_a_group", "halves, odds flat"),
        }

    @property
    def at_margin(self):
        """How often a change as large as the margin is called none, over checkpoints."""
        return self.judged("same")["worst"]

    def covered(self, promise, decision="bases"):
        """Coverage over truths and measures: the least and the greatest."""
        table = self.coverage
        return table[(table["promises"] == promise) & (table["decision"] == decision)]["estimate"]

    # Figures and tables

    def figure_instrument(self):
        """Each verdict's rates where the stereotyped person gained and where not, models leaning."""
        rows = self.rates[
            (self.rates["decision"] == "bases")
            & self.rates["leaning"]
            & self.rates["verdict"].isin(GREW)
            & (self.rates["should"] != "either")
        ]
        rows = rows.assign(title=[VERDICTS[name].title for name in rows["verdict"]])
        alt = [
            f"“{one['title']}” errs in up to {percent(one['worst']['estimate'], 0)}, where the truth is "
            f"{one['worst']['truth']}."
            for group in self.told().values()
            for one in group
        ]
        return draw.verdict_rates(rows, LEVEL), alt, rows

    def table_trust(self):
        """Each verdict's worst error and what it finds, over checkpoints."""
        rows = []
        for name in VERDICTS:
            one = self.judged(name)
            worst = one["worst"]
            truth = "none is wrong" if worst is None else _named(worst)
            found = {row["truth"]: row for row in one["power"]}
            rows.append(
                {
                    "verdict": _short(name),
                    "as pages say it": one["title"],
                    "errs most where": truth,
                    "there": "–" if worst is None else worst,
                    **{f"finds: {t}": found.get(t, "–") for t in ("rise 0.3", "rise 0.8")},
                }
            )
        frame = pd.DataFrame(rows)
        return frame, dict.fromkeys(frame.columns[3:], _rate)

    def table_leaning(self):
        """All rates over checkpoints, models leaning."""
        return self._wide("bases", True)

    def table_level(self):
        """The same, models that lean to neither person on average."""
        return self._wide("bases", False)

    def table_single(self):
        """The same for one checkpoint of each family, models leaning."""
        return self._wide("three", True)

    def _wide(self, decision, leaning):
        table = self.rates[
            (self.rates["decision"] == decision) & (self.rates["leaning"] == leaning)
        ]
        cells = table.assign(cell=[*zip(table["estimate"], table["should"], strict=True)])
        wide = cells.pivot(index="truth", columns="verdict", values="cell")
        names = [name for name in VERDICTS if name in wide]
        wide = wide.loc[cells["truth"].unique(), names].reset_index()
        wide = wide.rename(columns={name: _short(name) for name in names})
        return wide, dict.fromkeys(wide.columns[1:], _yes)

    def table_coverage(self):
        """Coverage of the intervals over checkpoints by truth, the lower of those with and without a lean."""
        table = self.coverage[self.coverage["decision"] == "bases"]
        wide = table.pivot_table(
            index="truth", columns=["measure", "promises"], values="estimate", aggfunc="min"
        )
        wide = wide.loc[table["truth"].unique()]
        titles = {name: COVERED.get(name, name) for name in ESTIMATES}
        wide = wide[[c for name in titles for c in wide.columns if c[0] == name]]
        wide.columns = [f"{titles[name]}, {promise}" for name, promise in wide.columns]
        wide = wide.reset_index()
        return wide, dict.fromkeys(wide.columns[1:], lambda value: percent(value, 0))

    def table_covered(self):
        """The range of coverage over truths, by way to decide."""
        rows = []
        for name in COVERED:
            row = {"interval of": COVERED[name]}
            for decision in DECISIONS:
                for promise in ("these items", "new templates"):
                    found = self.covered(promise, decision)
                    found = found[self.coverage["measure"] == name]
                    row[f"{DECIDED[decision]}: {promise}"] = percents(found, 0)
            rows.append(row)
        frame = pd.DataFrame(rows)
        return frame, dict.fromkeys(frame.columns[1:], str)


COVERED = {
    "lean": "lean at BF16",
    "d_log_gap": "change of the lean",
    "own_odds": "named beyond BF16's own odds",
    "excess": "gained stereotyped answers, over fresh draws",
    "mirror": "the same less its mirror image",
    "direction": "share to the stereotyped person",
}
DECIDED = {"one": "one checkpoint", "three": "one a family", "bases": "over bases"}


def _short(name):
    return name.replace("_", " ")


def _named(row):
    return f"{row['truth']}, {'leaning' if row['leaning'] else 'no lean'}"


def _rate(row):
    return interval(row, 0)


def _yes(cell):
    """A rate of yes, ticked where yes is right; a dash where nothing differs that the verdict sees."""
    if not isinstance(cell, tuple):
        return "–"
    rate, answer = cell
    return percent(rate, 0) + {"yes": " ✓", "either": " ~"}.get(answer, "")
