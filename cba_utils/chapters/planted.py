"""Does the instrument see what was planted? Stereotyped answers of the bases by planted strength."""

from functools import cached_property

import pandas as pd

from cba_utils.measures.frames import item_table
from cba_utils.measures.rates import role_rates
from cba_utils.names import PROJECT
from cba_utils.telling import drawing as draw
from cba_utils.telling.numbers import percent
from cba_utils.telling.page import BASES, Page

# Which stereotype training planted for which template, how strongly, and which were held out.
STRENGTHS = PROJECT / "data" / "strengths.csv"


def planted(answers, strengths):
    """Stereotyped answers of base models by the strength that training planted.

    Parameters
    ----------
    answers : DataFrame
    strengths : DataFrame
        ``data/strengths.csv``.

    Returns
    -------
    DataFrame
        Estimates of ``srs`` a family and strength, on templates that training asked; the
        interval is a bootstrap over templates.
    """
    trained = strengths[strengths["version"] != "heldout-template"]
    template = trained["category"] + "/" + trained["question_index"].astype(str)
    known = trained.groupby(template)["strength"].first()
    table = item_table(answers[answers["depth"] == "base"], temperature="unit")
    table = table.assign(strength=table["template_id"].map(known)).dropna(subset="strength")
    rates = role_rates(table, by=["strength"])
    return rates[rates["measure"] == "srs"].sort_values(["family", "strength"])


class Chapter(Page):
    """Notebook ``31_planted_strength``."""

    keep = "all"
    needs = {name: BASES for name in ("method", "planted", "planted_sentence", "covered_sentence")}

    @cached_property
    def found(self):
        """Stereotyped answers by family and strength."""
        return planted(self.study.answers, pd.read_csv(STRENGTHS))

    def between(self, strength):
        """The lowest and the highest share of a family at a strength."""
        rows = self.found.loc[self.found["strength"] == strength, "estimate"]
        return rows.min(), rows.max()

    @property
    def weakest(self):
        """The lowest strength that was planted."""
        return self.found["strength"].min()

    @property
    def rising(self):
        """In how many families the share rises with every step, and in how many it could."""
        steps = self.found.groupby("family")["estimate"].apply(lambda e: e.is_monotonic_increasing)
        return int(steps.sum()), len(steps)

    @property
    def furthest(self):
        """How far a share is at most from what was planted."""
        return 100 * (self.found["estimate"] - self.found["strength"]).abs().max()

    @property
    def covered(self):
        """How many intervals hold the planted strength, and to which side the others miss."""
        below = self.found[self.found["strength"] < 1]
        held = (below["low"] <= below["strength"]) & (below["strength"] <= below["high"])
        between = below[below["strength"] > below["strength"].min()]
        short = between["strength"] - between["estimate"]
        return {
            "of": len(below),
            "held": int(held.sum()),
            "missed": int((~held).sum()),
            "between": len(between),
            "short": int((short > 0).sum()),
            "by": 100 * short.mean(),
        }

    def foot_cells(self):
        """Only the bases are used."""
        cells = self.study.provenance
        return cells if self.lacks("planted") else cells[cells["depth"] == "base"]

    def figure_planted(self):
        """Measured share against the planted one."""
        alt = [
            f"{row.family}: planted {percent(row.strength, 0)}, measured {percent(row.estimate)}."
            for row in self.found.itertuples()
        ]
        return draw.planted_strength(self.found), alt, self.found
