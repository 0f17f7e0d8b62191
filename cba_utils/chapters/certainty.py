"""How sure are we? Odds by precision, what counts as no change, power, and our own choices."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import PARSERS
from cba_utils.measures import certainty, models, sensitivity, tests
from cba_utils.measures.frames import first_checkpoints, item_table
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import count, interval, odds_text, percent, points, reading
from cba_utils.telling.page import PERPLEXITY, PROBABILITIES, Page
from cba_utils.telling.study import pick

# How many times as often uncertain answers flip, by arXiv 2602.06181 for other models.
FLIPS_ELSEWHERE = (3, 11)
DIFFERENCE = "published minus strict"
# The choices of the specification curve, as sentences call them.
CHOICES = {
    "counting": "what is counted",
    "temperature": "the temperature (the study's, or 1)",
    "letters": "the letters (the order as written, or balanced orders)",
    "families": "the families (all alike, or one)",
    "without": "the odd checkpoint (kept, or left out)",
    "undefined": "what items without a defined target count for",
}


def steps_of(odds, samples, lowest):
    """The slope of a line through the ladder, its steps, and the slope without the lowest precision.

    Parameters
    ----------
    odds : DataFrame
        From `models.dose_response` of ``samples``.
    lowest : str
        The precision that is left out for the last.

    Returns
    -------
    dict
        ``trend`` (a row, or None where it is not defined); with two steps or more also ``most``,
        ``before``, ``factor`` and the range of the ``rest``, ``average`` (the steps' geometric mean);
        and ``without`` (a row).
    """

    def trend(table):
        return table[table["term"] == "trend"].iloc[0]

    if np.isnan(trend(odds)["estimate"]):
        return {"trend": None, "most": None}
    each = models.steps(odds)
    if len(each) < 2:
        return {"trend": trend(odds), "most": None}
    most = np.log(each).abs().idxmax()
    rest = each.drop(most)
    return {
        "trend": trend(odds),
        "most": most,
        "average": float(np.exp(np.log(each).mean())),
        "factor": each[most],
        "before": ["bf16", *each.index][each.index.get_loc(most)],
        "rest": (rest.min(), rest.max()),
        "without": trend(models.dose_response(samples[samples["precision"] != lowest])),
    }


class Chapter(Page):
    """Notebook ``43_how_sure``."""

    needs = {
        "sure_flips": PROBABILITIES,
        "flip_sentence": PROBABILITIES,
        "flips": PROBABILITIES,
        "same_perplexity": PERPLEXITY,
    }
    margin = tests.MARGIN
    simulations = 200
    flips_elsewhere = FLIPS_ELSEWHERE

    @cached_property
    def odds(self):
        """Odds of a stereotyped answer by precision."""
        return models.dose_response(self.study.drawn)

    @property
    def based(self):
        """Whether the clusters are bases: every family has several."""
        counts = self.study.samples.groupby("family")[["base", "model"]].nunique()
        return bool(((counts["base"] > 1) & (counts["base"] < counts["model"])).all())

    @cached_property
    def same(self):
        """Whether the rate at the highest quantized precision is BF16's: equivalence, each checkpoint."""
        rates = self.study.best
        return tests.equivalence(rates[rates["precision"].isin(["bf16", self.study.precisions[1]])])

    @cached_property
    def perplexity(self):
        """Whether perplexity is the same, each checkpoint and precision."""
        return perplexity_change(self.study.perplexity)

    @cached_property
    def power(self):
        """Power against a rise of SRS for the first checkpoint of each family."""
        exact = self.study.exact
        table = item_table(self.study.answers, "study", "original") if exact else self.study.drawn
        before = table[table["precision"] == "bf16"]
        curves = []
        for family, part in first_checkpoints(before).groupby("family"):
            curve = tests.minimum_detectable_effect(part, simulations=self.simulations)
            curves.append(curve.assign(family=family, **curve.attrs))
        return pd.concat(curves, ignore_index=True)

    @cached_property
    def choices(self):
        """The headline number under every combination of choices.

        In records of draws alone, where items without a defined target were answered, taking them as
        the published code did is one more choice.
        """
        study = self.study
        if study.exact:
            cells = sensitivity.specification_curve(study.answers, study.lowest)
        else:
            cells = sensitivity.specification_curve(study.drawn, study.lowest)
            if study.undefined is not None:
                every = self._with_letter_c(study.undefined)
                kept = sensitivity.specification_curve(every, study.lowest)
                cells = pd.concat(
                    [cells.assign(undefined="left out"), kept.assign(undefined="letter C")]
                )
        return sensitivity.over_choices(cells)

    def _with_letter_c(self, undefined):
        """Samples with those of undefined items too, whose target is the last answer."""
        indices = ["stereotyped_index", "anti_stereotyped_index", "unknown_index"]
        asked = undefined.drop_duplicates("item_id")[["item_id", "category", *indices]]
        # Where the last answer was also "unknown", another letter is left: read, and no stereotype.
        left = 3 - asked[indices].where(asked[indices] >= 0, 0).sum(axis=1)
        for name in indices:
            asked[name] = asked[name].where(asked[name] >= 0, left)
        items = pd.concat([self.study.items, asked.assign(label=asked["unknown_index"])])
        more = undefined.drop(columns=indices)
        return sensitivity.reparse(pd.concat([self.study.samples, more]), items, "strict")

    @cached_property
    def parsers(self):
        """Rates of the study's samples by either parser, and the change, over all checkpoints."""
        samples = self.study.samples
        told = ["bf16", *self.study.shown, self.study.lowest]
        shown = samples[samples["precision"].isin(told)]
        return self.study.pooled(sensitivity.parser_rates(shown, self.study.items), ["parser"])

    # Readings: what the template says

    @property
    def steps(self):
        """How the odds go down the ladder."""
        return steps_of(self.odds, self.study.drawn, self.study.lowest)

    @property
    def alike(self):
        """In how many checkpoints the rates are shown to be the same, and what cannot be excluded."""
        return {
            "precision": self.same["precision"].iloc[0],
            "yes": int(self.same["equivalent"].sum()),
            "by_ratio": int(self.same["equivalent_ratio"].sum()),
            "ratio": tests.RATIO,
            "of": len(self.same),
            "largest": self.same["smallest_margin"].max(),
        }

    @property
    def alike_in_perplexity(self):
        """In how many cells perplexity is the same, and what cannot be excluded."""
        return {
            "yes": int(self.perplexity["equivalent"].sum()),
            "of": len(self.perplexity),
            "largest": self.perplexity["bound"].max(),
        }

    @property
    def detectable(self):
        """The smallest rise that would have been found, None if none, and the rate from which it rises."""
        return [
            {
                "name": family,
                "baseline": rows["baseline"].iloc[0],
                "rise": rows["mde"].iloc[0] if rows["mde"].notna().all() else None,
            }
            for family, rows in self.power.groupby("family")
        ]

    @property
    def ratio(self):
        """How much more often the least sure answers flip, at the lowest precision."""
        row = certainty.flip_ratio(self.study.answers).set_index("precision").loc[self.study.lowest]
        return {
            "row": row,
            "reading": reading(row, null=1.0),
            "defined": bool(np.isfinite(row["estimate"])),
        }

    @property
    def headline(self):
        """Under how many combinations of which choices the headline number goes how far."""
        known = [c for c in CHOICES if c in self.choices and self.choices[c].nunique() > 1]
        shown = self.choices.sort_values("estimate")
        return {
            "combinations": len(self.choices),
            "choices": [CHOICES[c] for c in known],
            "low": shown.iloc[0],
            "high": shown.iloc[-1],
            "above": int((self.choices["low"] > 0).sum()),
            "counted": [
                {
                    "name": name,
                    "above": int((rows["low"] > 0).sum()),
                    "below": int((rows["high"] < 0).sum()),
                    "of": len(rows),
                }
                for name, rows in self.choices.groupby("counting", sort=False)
            ],
        }

    @property
    def left_out(self):
        """How many items that were answered lack a defined target."""
        return 0 if self.study.undefined is None else self.study.undefined["item_id"].nunique()

    def by_parser(self, measure, parser, precision=None):
        """An estimate of `parsers`, at the lowest precision if none is given."""
        rows = self.parsers[self.parsers["parser"] == parser]
        return pick(rows, measure, precision or self.study.lowest)

    @property
    def draws(self):
        """Draws an item and precision."""
        return self.study.samples["seed"].nunique()

    @property
    def reread(self):
        """How many answers at the lowest precision the parsers read differently, and what that changes."""
        samples = self.study.samples
        asked = samples[
            (samples["precision"] == self.study.lowest) & (samples["context_condition"] == "ambig")
        ]
        strict, published = (
            sensitivity.reparse(asked, self.study.items, parser)["parsed_answer"].fillna("")
            for parser in PARSERS
        )
        row = self.by_parser("d_srs", DIFFERENCE)
        return {
            "unlike": int((strict != published).sum()),
            "of": len(asked),
            "row": row,
            "reading": reading(row),
        }

    def table_parsers(self):
        """Rates by either parser and the change on the same answers, by precision."""
        answers = {
            "srs": "stereotyped",
            "anti_rate": "anti-stereotyped",
            "usr": "unknown",
            "unparsed_rate": "no letter",
        }
        frame = pd.DataFrame(
            [
                {
                    "precision": precision.upper(),
                    "answer": answer,
                    **{parser: self.by_parser(name, parser, precision) for parser in PARSERS},
                    "change, points": self.by_parser(f"d_{name}", DIFFERENCE, precision),
                    "items": self.by_parser(name, "strict", precision)["of"],
                }
                for precision in dict.fromkeys(["bf16", *self.study.shown])
                for name, answer in answers.items()
            ]
        )
        return frame, {
            **dict.fromkeys(PARSERS, interval),
            "items": count,
            "change, points": lambda row: points(row, 2),
        }

    # Figures

    def figure_sure_odds(self):
        """Odds ratios against BF16, and for a step of a line through the ladder."""
        shown = self.odds[~self.odds["term"].str.startswith("C(")]
        parts = [f"{row.term} {odds_text(row._asdict())}" for row in shown.itertuples()]
        return draw.odds(shown), f"Odds ratios against BF16: {', '.join(parts)}.", self.odds

    def figure_sure_power(self):
        """Power against the true rise."""
        parts = [
            f"{part['name']} 80 % {'not reached' if part['rise'] is None else 'at ' + percent(part['rise'])}"
            for part in self.detectable
        ]
        return (
            draw.power_curve(self.power),
            f"Power against the true rise: {', '.join(parts)}.",
            self.power,
        )

    def figure_sure_flips(self):
        """Flips by uncertainty."""
        curve = self.study.pooled(certainty.flip_rates(self.study.answers), ["bin"])
        ends = curve[(curve["measure"] == "flip_rate") & (curve["precision"] == self.study.lowest)]
        shares = ends[ends["bin"] > 0].sort_values("bin")["estimate"]
        alt = (
            f"Flip rate at {self.study.lowest.upper()} from the surest to the least sure fifth: "
            f"{', '.join(map(percent, shares))}."
        )
        return draw.flip_curve(curve, [self.study.middle, self.study.lowest]), alt, curve

    def figure_sure_choices(self):
        """The headline number under every combination of choices."""
        seen = self.headline
        ends = (percent(seen[end]["estimate"]) for end in ("low", "high"))
        alt = (
            f"Items that gained a stereotyped answer at {self.study.lowest.upper()} under "
            f"{seen['combinations']} combinations of choices, from {' to '.join(ends)}."
        )
        return draw.specification(self.choices), alt, self.choices
