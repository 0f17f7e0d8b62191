"""What perplexity sees of it: both changes beside each other."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import perplexity
from cba_utils.measures.frames import independent_units
from cba_utils.measures.published import load_published
from cba_utils.telling import drawing as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import measured, reading
from cba_utils.telling.page import PERPLEXITY, PUBLISHED_PERPLEXITY, Page
from cba_utils.telling.study import changes, find

GAINED = "became_biased_expected"


class Chapter(Page):
    """Notebook ``21_perplexity_gap``."""

    without_letters = (
        "answer_perplexity",
        "level_sentence",
        "published_bounds",
        "perplexity_published",
    )
    needs = {
        **{
            name: PERPLEXITY
            for name in (
                "answer",
                "gap",
                "answer_perplexity",
                "answer_rank",
                "level_sentence",
                "pair_sentence",
            )
        },
        "perplexity_published": PUBLISHED_PERPLEXITY,
    }

    @cached_property
    def published(self):
        """Bounds of the published study."""
        return load_published()

    @cached_property
    def change(self):
        """Change of perplexity since BF16, an estimate a checkpoint."""
        return perplexity.perplexity_change(self.study.perplexity)

    @cached_property
    def moves(self):
        """Items that changed since BF16, an estimate a checkpoint."""
        return changes(self.study)

    @cached_property
    def pairs(self):
        """Both changes, a row a checkpoint and precision, and their rank correlation."""
        return perplexity.perplexity_and_bias(
            self.study.perplexity, self.moves, self.study.named("became_biased")
        )

    @cached_property
    def changed(self):
        """Whether perplexity rose, by precision and family."""
        return {
            p: self.study.told(self.change, "perplexity_change", p, digits=3)
            for p in self._precisions
        }

    @cached_property
    def excess(self):
        """Whether more items gained a stereotyped answer than asking again explains."""
        name = "became_biased_expected_excess"
        return {p: self.study.told(self.moves, name, p, digits=3) for p in self._precisions}

    @property
    def _precisions(self):
        """What sentences are about; models that give no letter still have a perplexity."""
        return self.study.precisions[-2:] if self.study.speechless else self.study.shown

    @property
    def missed(self):
        """Where more items gained one than asking again explains, and perplexity did not rise."""
        if not self.study.exact:
            return []
        return [
            {"name": name, "precision": p, "row": find(part, GAINED, p)}
            for name, part in self.study.each(self.moves)
            for p in self._precisions
            if name in self.excess[p].above and name not in self.changed[p].above
        ]

    @property
    def caught(self):
        """Whether more items gained one anywhere."""
        return any(found.above for found in self.excess.values())

    @property
    def reading(self):
        """Whether the models know the text well enough for the check to mean anything."""
        return "worse than guessing" if self.study.worse_than_guessing else "told"

    @cached_property
    def ranks(self):
        """Spearman's correlation of both changes over the checkpoints at one precision.

        The interval is a bootstrap over bases, or over the checkpoints of families with one base; with
        fewer than six of these there is none.
        """
        gained = self.study.named("became_biased")
        found = {}
        for p in self._precisions:
            at = self.pairs[0][self.pairs[0]["precision"] == p]
            found[p] = perplexity.rank_correlation(
                at["perplexity_change"], at[gained], independent_units(at)
            )
            found[p]["known"] = not np.isnan(found[p]["low"])
        return found

    @property
    def marked(self):
        """The precisions at which the correlation is shown to be above none."""
        return [p for p, rank in self.ranks.items() if reading(rank) == "above"]

    @property
    def levels(self):
        """The lowest and the highest perplexity at BF16, and whether there are several."""
        levels = self.study.reference_perplexity
        return {"low": levels.min(), "high": levels.max(), "several": len(levels) > 1}

    @property
    def rank(self):
        """The rank correlation over all cells; None where it is not defined."""
        found = self.pairs[1]
        rank = None if np.isnan(found["estimate"]) else found["estimate"]
        return {"estimate": rank, "n": found["n"]}

    @cached_property
    def both_ways(self):
        """Perplexity by this project and as mlx-lm prints it with its standard error, a row a cell."""
        # Imported here: it brings MLX, which no other part of this page needs.
        from cba_utils.answering.likelihood import published_perplexity

        rows = self.study.perplexity.dropna(subset=["nll_published"])
        found = []
        for (model, precision), part in rows.groupby(["model", "precision"], sort=False):
            value, error = published_perplexity(part)
            found.append(
                {
                    "model": model,
                    "precision": precision,
                    "ours": np.exp(part["nll"].sum() / part["tokens"].sum()),
                    "published": value,
                    "error": error,
                }
            )
        return pd.DataFrame(found)

    @property
    def apart(self):
        """The largest difference of the two, as a share of the published way's."""
        return (self.both_ways["ours"] / self.both_ways["published"] - 1).abs().max()

    def table_perplexity_published(self):
        """Both ways beside each other."""
        heads = {"ours": "ours", "published": "as published", "error": "its standard error"}
        frame = self.both_ways.rename(columns=heads)
        return (
            frame.assign(precision=frame["precision"].str.upper()),
            dict.fromkeys(heads.values(), "{:,.3f}".format),
        )

    def figure_gap(self):
        """One change against the other, one panel a precision."""
        alt = [
            told("Perplexity change", self.study.summarise(self.change), "perplexity_change"),
            told(
                "Items that gained a stereotyped answer",
                self.study.summarise(self.moves),
                self.study.named("became_biased"),
            ),
        ]
        return draw.perplexity_gap(self.pairs[0]), alt, self.pairs[0]

    def table_gap(self):
        """Both beside each other, a row a family and precision."""
        seen = dict(self.study.each(self.change))
        frame = pd.DataFrame(
            [
                {
                    "family": name,
                    "at": p.upper(),
                    "perplexity change": find(seen[name], "perplexity_change", p),
                    "gained": find(part, self.study.named("became_biased"), p),
                    "placebo": find(part, "became_biased_placebo", p),
                }
                for name, part in self.study.each(self.moves)
                for p in self.study.precisions[1:]
            ]
        )
        return frame, dict.fromkeys(frame.columns[2:], measured)
