"""What perplexity sees of it: both changes beside each other."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.measures import perplexity
from cba_utils.measures.published import load_published
from cba_utils.telling import drawing as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import measured, reading
from cba_utils.telling.page import PERPLEXITY, PUBLISHED_PERPLEXITY, Page
from cba_utils.telling.study import changes, find, pick


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
            for name in ("gap", "answer_perplexity", "level_sentence", "pair_sentence")
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
    def pooled_change(self):
        """Change of perplexity over all checkpoints."""
        return self.study.pooled(self.change)

    @cached_property
    def pooled_moves(self):
        """Items that changed over all checkpoints."""
        return self.study.pooled(self.moves)

    @property
    def changed(self):
        """The change of perplexity at two precisions."""
        return [(p, pick(self.pooled_change, "perplexity_change", p)) for p in self.study.shown]

    @property
    def reading(self):
        """What a check that looks for a rise would see at the lowest precision."""
        if self.study.worse_than_guessing:
            return "worse than guessing"
        return reading(pick(self.pooled_change, "perplexity_change", self.study.lowest))

    @property
    def levels(self):
        """The lowest and the highest perplexity at BF16, and whether there are several."""
        levels = self.study.reference_perplexity
        return {"low": levels.min(), "high": levels.max(), "several": len(levels) > 1}

    @property
    def both(self):
        """Both changes at four bits."""
        return (
            pick(self.pooled_change, "perplexity_change", self.study.middle),
            pick(self.pooled_moves, self.study.named("became_biased"), self.study.middle),
        )

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
                "Items that became biased",
                self.study.summarise(self.moves),
                self.study.named("became_biased"),
            ),
        ]
        return draw.perplexity_gap(self.pairs[0]), alt, self.pairs[0]

    def table_gap(self):
        """Both beside each other, a row a precision."""
        frame = pd.DataFrame(
            [
                {
                    "precision": p.upper(),
                    "perplexity change": find(self.pooled_change, "perplexity_change", p),
                    "became biased": find(self.pooled_moves, self.study.named("became_biased"), p),
                    "placebo": find(self.pooled_moves, "became_biased_placebo", p),
                }
                for p in self.study.precisions[1:]
            ]
        )
        return frame, dict.fromkeys(frame.columns[1:], measured)
