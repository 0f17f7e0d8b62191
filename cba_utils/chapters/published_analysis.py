"""The published analysis, step by step: its tables, figures and numbers, from the records at hand."""

from functools import cached_property

import numpy as np

from cba_utils.chapters.certainty import steps_of
from cba_utils.measures import models, published_analysis
from cba_utils.measures.frames import first_checkpoints
from cba_utils.telling import charts as draw
from cba_utils.telling import drawing
from cba_utils.telling.drawing import alt_text, told
from cba_utils.telling.numbers import count, defined, in_points, odds_text, p_text
from cba_utils.telling.page import PERPLEXITY, Page

HEADS = {
    "srs": "SRS %",
    "usr": "USR %",
    "anti_rate": "anti %",
    "d_srs": "ΔSRS",
    "d_usr": "ΔUSR",
    "d_anti_rate": "Δanti",
    "srs_pooled": "SRS %, answers alike",
    "d_srs_pooled": "ΔSRS, answers alike",
    "items_kept": "kept",
}


def as_published(frame):
    """The same under the names of the families, unless one of them has several models."""
    frame = first_checkpoints(frame)
    several = frame.groupby("family")["model"].nunique().max() > 1
    return frame if several else frame.assign(model=frame["family"])


class Chapter(Page):
    """Notebook ``44_published_analysis``: as published, there is one checkpoint a family."""

    needs = dict.fromkeys(("published_perplexity", "cells_alone", "cells"), PERPLEXITY)

    @cached_property
    def samples(self):
        """Item table of the sampled answers."""
        return as_published(self.study.drawn)

    @cached_property
    def main(self):
        """Rates by model and precision."""
        return published_analysis.main_table(self.samples)

    @cached_property
    def tests(self):
        """Chi-squared tests against BF16, by model, category and precision."""
        return published_analysis.chi_squared_tests(self.samples)

    @cached_property
    def categories(self):
        """Rates by model, category and precision."""
        return published_analysis.category_breakdown(self.samples)

    @cached_property
    def filtered(self):
        """Rates over all items, and over those that the latent-bias filter keeps."""
        return published_analysis.filtered_table(self.samples)

    @cached_property
    def one_way(self):
        """Items that became biased, one way only."""
        return published_analysis.one_way_transitions(self.samples)

    @cached_property
    def pairs(self):
        """Perplexity change beside items that became biased, and their rank correlation."""
        return published_analysis.perplexity_table(
            as_published(self.study.perplexity), self.samples
        )

    @cached_property
    def logit(self):
        """The pooled logistic regression."""
        return published_analysis.published_logit(self.samples)

    def foot_cells(self):
        """Only the first checkpoints are on this page."""
        return first_checkpoints(self.study.provenance)

    # Readings: what the template says

    def _lowest(self, table):
        return table[table["precision"] == self.study.lowest]

    @property
    def apart(self):
        """How far the published mean over categories is from counting every answer alike, at most."""
        return 100 * (self.main["srs"] - self.main["srs_pooled"]).abs().max()

    @property
    def unread(self):
        """Items of which no answer was read at BF16, over the models."""
        before = self.samples[self.samples["precision"] == "bf16"]
        asked = before[before["context_condition"] == "ambig"]
        return int((asked["parsed"] == 0).sum())

    @property
    def rises(self):
        """Change of SRS at the lowest precision, a model."""
        return self._lowest(self.main)["d_srs"]

    @property
    def tested(self):
        """How many tests there are, are defined, and are below 5 % without and with corrections."""
        made = self.tests.dropna(subset="p")
        return {
            "all": len(self.tests),
            "made": len(made),
            "h": self.tests["cohens_h"].abs().max(),
            **{name: int((made[name] < 0.05).sum()) for name in ("p", "p_holm", "p_bh")},
            **{
                name: int((self.tests[name] < 0.05).sum())
                for name in ("p_templates", "p_templates_holm")
            },
        }

    @property
    def decline(self):
        """Relative decline of USR, without and with weights."""
        return published_analysis.relative_decline(self.samples, self.study.lowest)

    @property
    def latent(self):
        """Change of SRS on the kept items at the lowest precision, a model."""
        return self._lowest(self.filtered[self.filtered["items_kept"] == "latent"])["d_srs"]

    @property
    def became_biased(self):
        """Share of the unbiased items that became biased at the lowest precision, a model."""
        return self._lowest(self.one_way)["rate"]

    @property
    def correlation(self):
        """The rank correlation over cells."""
        return self.pairs[1]

    @property
    def bits(self):
        """Odds ratio of one bit kept."""
        return self.logit[self.logit["term"] == "bits"].iloc[0]

    @property
    def steps(self):
        """How the odds go down the ladder."""
        return steps_of(models.dose_response(self.samples), self.samples, self.study.lowest)

    # Figures

    def figure_published_bits(self):
        """SRS and USR against bit width."""
        return draw.by_bits(self.main), _srs_alt(self.main), self.main

    def figure_published_heat(self):
        """SRS of each model and precision."""
        return draw.srs_heat_map(self.main), _srs_alt(self.main), self.main

    def figure_published_bars(self):
        """SRS at BF16 and at the lowest precision."""
        ends = self.main[self.main["precision"].isin(["bf16", self.study.lowest])]
        return draw.before_and_after(self.main, self.study.lowest), _srs_alt(ends), self.main

    def figure_published_categories(self):
        """SRS by precision in each category."""
        alt = _srs_alt(self._lowest(self.categories))
        return draw.category_facets(self.categories), alt, self.categories

    def figure_published_amplification(self):
        """SRS as a multiple of BF16's."""
        curve = published_analysis.amplification(self.samples)
        rows = self._lowest(curve)
        parts = [
            f"{m} {a:.1f} times" if np.isfinite(a) else f"{m} not defined, none at BF16"
            for m, a in zip(rows["model"], rows["amplification"], strict=True)
        ]
        alt = f"SRS at {self.study.lowest.upper()} as a multiple of BF16's: {', '.join(parts)}."
        return draw.amplification_curve(curve), alt, curve

    def figure_published_transitions(self):
        """Items that became biased, by model and precision."""
        rows = self.one_way.assign(measure="became_biased", estimate=self.one_way["rate"])
        alt = alt_text("Items that became biased", rows, "became_biased", by="model")
        return draw.transition_chart(self.one_way), alt, self.one_way

    def figure_published_perplexity(self):
        """Perplexity change against items that became biased."""
        cells = self.pairs[0]
        points = cells.assign(family=cells["model"], became_biased_expected=cells["became_biased"])
        alt = f"Perplexity change against items that became biased. {self.text('cells_alone')}"
        return drawing.perplexity_gap(points), alt, points

    # Tables

    def table_published_main(self):
        """The main table."""
        return _rates(self.main)

    def table_published_tests(self):
        """Chi-squared tests at the lowest precision."""
        frame = self._lowest(self.tests)[
            [
                "model",
                "category",
                "statistic",
                "p",
                "p_holm",
                "p_bh",
                "p_templates",
                "cohens_h",
                "n",
            ]
        ]
        frame = frame.set_axis(
            [
                "model",
                "category",
                "chi-squared",
                "p",
                "p (Holm)",
                "p (Benjamini-Hochberg)",
                "p over templates",
                "Cohen's h",
                "draws",
            ],
            axis="columns",
        )
        return frame, {
            "chi-squared": defined("{:.1f}".format),
            "p": p_text,
            "p (Holm)": p_text,
            "p (Benjamini-Hochberg)": p_text,
            "p over templates": p_text,
            "draws": count,
            "Cohen's h": lambda h: in_points(h, 2),
        }

    def table_published_filter(self):
        """All items and the kept ones, at BF16 and at the lowest precision."""
        return _rates(self.filtered[self.filtered["precision"].isin(["bf16", self.study.lowest])])

    def table_published_odds(self):
        """The pooled logistic regression."""
        rows = self.logit
        term = rows["term"].str.replace(r"C\(category\)\[T\.(.*)\]", r"category \1", regex=True)
        odds = "odds ratio (95 % interval)"
        frame = rows.assign(term=term, odds=[row for _, row in rows.iterrows()])[
            ["term", "odds", "p", "n"]
        ]
        frame = frame.rename(columns={"odds": odds, "n": "answers"})
        return frame, {odds: lambda row: odds_text(row, 3), "p": p_text, "answers": count}


def _srs_alt(table):
    """Alt text of SRS by model, or by model and category."""
    rows = table.assign(measure="srs", estimate=table["srs"])
    rows["name"] = rows["model"] + (" " + rows["category"] if "category" in rows else "")
    return told("Stereotyped answers", rows, "srs", by="name")


def _rates(table):
    """A table of rates in percent and changes in points, with its formats."""
    rates = {
        HEADS[name]: lambda rate: in_points(100 * rate)
        for name in table
        if name in HEADS and name != "items_kept"
    }
    counts = {name: count for name in ("items", "draws") if name in table}
    frame = table.assign(precision=table["precision"].str.upper()).rename(columns=HEADS)
    return frame, rates | counts
