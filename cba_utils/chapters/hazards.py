"""What could have moved the published run: known traits of its software and data, at work on toys.

The numbers are those of ``results/hazards``, see `cba_utils.instrument.hazards`; the study makes no
difference to them.
"""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS
from cba_utils.instrument import hazards
from cba_utils.measures.intervals import stratified_interval, wilson
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import in_points, interval, percent, reading, scores
from cba_utils.telling.page import Page

# Truths of the simulated respondents, in words.
TRUTHS = {"none": "nothing changes", "bias": "the stereotype gains", "letter": "letter C gains"}


class Chapter(Page):
    """Notebook ``46_published_hazards``; whatever the study, its numbers are the same."""

    without_letters = ("all",)
    border = hazards.SHORT_TEXTS

    def _read(self, name):
        return pd.read_csv(hazards.OUT / f"{name}.csv")

    @cached_property
    def rope(self):
        """A checkpoint and item a row: letters and log-probabilities by long and by short factors."""
        found = self._read("rope_factors")
        return found.assign(other=(found["letter_long"] != found["letter_short"]).astype(float))

    @cached_property
    def targets(self):
        """Rates without items that have no target, and with letter C as their stereotyped answer."""
        return self._read("undefined_targets")

    @cached_property
    def seeds(self):
        """The number that each published seed is, and the letters it draws."""
        return self._read("seeds")

    @cached_property
    def draws(self):
        """What five such numbers do to five answers."""
        return self._read("seed_draws")

    @cached_property
    def roles(self):
        """Where each template puts what the system says."""
        return self._read("system_role")

    # Readings: what the template says

    @property
    def rope_n(self):
        """How many checkpoints and items, and the longest question in tokens."""
        return {
            "checkpoints": self.rope["checkpoint"].nunique(),
            "items": self.rope["item_id"].nunique(),
            "tokens": self.rope["tokens"].max(),
        }

    @cached_property
    def rope_rates(self):
        """How often the letter is another one and by how much, over checkpoints, beside mere chance.

        Chance is what letters that have nothing to do with each other would give, each as frequent as
        it is with its factors.
        """
        by = self.rope.groupby("checkpoint")
        chance = by.apply(
            lambda rows: (
                1
                - sum(
                    (rows["letter_long"] == x).mean() * (rows["letter_short"] == x).mean()
                    for x in LETTERS
                )
            ),
            include_groups=False,
        )
        other = by["other"].mean()
        return {
            "other": _over(other),
            "nats": _over(by["nats"].mean()),
            "chance": _over(chance),
            "reading": reading(_over(other - chance)),
            "agreement": self.rope["agreement"].max(),
        }

    @property
    def share(self):
        """The largest share of items without a target."""
        return self.targets["share"].max()

    @property
    def target_items(self):
        """Simulated items of a truth."""
        return self.targets["items"].iloc[0]

    @property
    def rises(self):
        """The rise of the stereotyped rate since BF16 either way, by truth, at that share."""
        rows = self.targets[
            (self.targets["share"] == self.share) & (self.targets["measure"] == "srs")
        ]
        wide = rows.set_index(["truth", "precision"])[["left_out", "letter_c"]]
        found = []
        for truth in dict.fromkeys(rows["truth"]):
            without, counted = 100 * (wide.loc[(truth, "q3")] - wide.loc[(truth, "bf16")])
            # An unchanged rise is one that prints alike.
            change = round(counted, 1) - round(without, 1)
            found.append(
                {
                    "truth": TRUTHS[truth],
                    "without": without,
                    "counted": counted,
                    "bf16": wide.loc[(truth, "bf16")],
                    "change": "larger" if change > 0 else "smaller" if change < 0 else "the same",
                }
            )
        return found

    @property
    def drawn(self):
        """By seed, from the lowest number to the highest: the number, its usual letter and how usual."""
        shares = self.seeds[[f"share_{x}" for x in LETTERS]]
        found = self.seeds.assign(letter=shares.idxmax(axis=1).str[-1], most=shares.max(axis=1))
        return found.sort_values("uniform").to_dict("records")

    @property
    def simulated(self):
        """Simulated items a seed, and half the widest interval of a share."""
        n = int(self.seeds["items"].min())
        low, high = wilson(n / 2, n)
        return {"items": n, "half": 100 * (high - low) / 2}

    @property
    def again(self):
        """Items that a second run of the same probabilities counts as having become biased."""
        by = self.draws.groupby("seeds")["became_biased_by_chance"]
        return {"published": by.get_group("published"), "independent": by.get_group("independent")}

    @property
    def alike(self):
        """Whether five fixed numbers agree less often than five independent ones, at every concentration."""
        wide = self.draws.pivot(index="concentration", columns="seeds", values="all_alike")
        less = wide["published"] < wide["independent"]
        return "less" if less.all() else "more" if not less.any() else "by turns"

    @property
    def same_prompt(self):
        """Whether the templates lead to one prompt."""
        return self.roles["rendered"].nunique() == 1

    # Figures and tables

    def figure_hazard_rope(self):
        """How far the two sets of factors lie apart, a dot a question."""
        found = self.rope_rates
        alt = (
            f"Largest difference of a letter's log-probability between long and short factors, in nats: "
            f"mean {scores(found['nats'])}, at least {in_points(self.rope['nats'].min())}. "
            f"Between two computations with the same factors: at most {in_points(found['agreement'], 4)}."
        )
        return (
            draw.differences(
                self.rope,
                "checkpoint",
                {
                    "nats": "long against short factors",
                    "agreement": "the same factors, computed twice",
                },
                "Difference in nats (log scale)",
                "random checkpoint",
            ),
            alt,
            self.rope,
        )

    def figure_hazard_target(self):
        """What counting letter C adds to each rate."""
        titles = {
            ("srs", "bf16"): "SRS at BF16",
            ("srs", "q3"): "SRS at Q3",
            ("became_biased", "q3"): "Gained a stereotyped answer at Q3",
        }
        rows = self.targets.assign(
            added=100 * (self.targets["letter_c"] - self.targets["left_out"]),
            rate=[
                titles[key]
                for key in zip(self.targets["measure"], self.targets["precision"], strict=False)
            ],
            truth=self.targets["truth"].map(TRUTHS),
        )
        most = rows[rows["share"] == self.share]
        alt = (
            "Points that the rule adds: "
            + "; ".join(
                f"{row.rate}, {row.truth}: {in_points(row.added)}" for row in most.itertuples()
            )
            + "."
        )
        return draw.added_points(rows, [*titles.values()]), alt, rows

    def figure_hazard_seeds(self):
        """Which letters a seed draws."""
        rows = self.seeds.sort_values("uniform")
        labels = [f"{row.seed} ({in_points(row.uniform, 2)})" for row in rows.itertuples()]
        shares = pd.DataFrame({x: rows[f"share_{x}"].to_numpy() for x in LETTERS}, index=labels)
        alt = (
            "; ".join(
                f"seed {label}: {', '.join(f'{x} {percent(share)}' for x, share in row.items())}"
                for label, row in shares.iterrows()
            )
            + "."
        )
        return draw.letter_shares(shares, "Letters that a seed (its number) draws, %"), alt, rows

    def table_hazard_draws(self):
        """Published seeds beside independent ones."""
        frame = pd.DataFrame(
            [
                {
                    "concentration, seeds": f"{row.concentration:g}, {row.seeds}",
                    "all alike": _rate(row.all_alike, row.items_),
                    "gained a stereotyped answer": _rate(row.became_biased_by_chance, row.unbiased),
                }
                for row in self.draws.rename(columns={"items": "items_"}).itertuples()
            ]
        )
        return frame, {"all alike": interval, "gained a stereotyped answer": interval}

    def table_hazard_roles(self):
        """Each template: whether it takes a system role, and where the words stand."""
        return self.roles[["template", "system_role", "written"]].rename(
            columns={"system_role": "a system role is", "written": "its words stand"}
        ), {}


def _over(values):
    """Mean over checkpoints with Student's interval."""
    values = values.to_numpy()
    estimate, low, high = stratified_interval(
        lambda kept: values[kept].mean(), np.zeros(len(values))
    )
    return {"estimate": estimate, "low": low, "high": high}


def _rate(share, n):
    low, high = wilson(round(share * n), n)
    return {"estimate": share, "low": low, "high": high}
