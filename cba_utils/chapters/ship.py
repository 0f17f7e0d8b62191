"""Which recipe shall I ship? Size, speed and every change of a study's precisions, and pairs of one size."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.answering.precisions import parse_precision
from cba_utils.measures.controls import lean
from cba_utils.measures.drift import drifts
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.measures.rates import paired_differences
from cba_utils.measures.transitions import placebo
from cba_utils.names import CONFIG, REFERENCE
from cba_utils.telling import charts as draw
from cba_utils.telling.gate import read_thresholds
from cba_utils.telling.numbers import NOT_TOLD_APART, measured, percent, points, reading, scores
from cba_utils.telling.page import PROBABILITIES, Need, Page
from cba_utils.telling.study import find, open_study

# The study of the same recipes on a small model that others made.
REAL = "recipes-real"
EXCESS = "became_biased_expected_excess"
# Two recipes count as of one size if their bits a weight differ by less than this share.
SAME_SIZE = 0.04
WIDEST = 9.0
# What two recipes of one size are compared by, and what it is called in sentences.
COMPARED = {"d_log_gap": "lean", "d_srs": "stereotyped answers", "d_accuracy": "right answers"}


LETTERED = Need("lettered", lambda study: REFERENCE in study.lettered)


def kind_of(precision):
    """What a recipe is in a legend."""
    p = parse_precision(precision)
    if p.cache_bits:
        return "cache rounded too"
    if p.calibration:
        return "fitted to a text"
    return "mixed bits" if p.method in ("mixed", "recipes") else "rounded to nearest"


class Chapter(Page):
    """Notebook ``34_which_recipe``."""

    needs = {
        "": PROBABILITIES,
        "recipe_sizes": LETTERED,
        "recipe_families": LETTERED,
    }

    @cached_property
    def margins(self):
        """Margins of ``cba gate`` that this page can read."""
        return read_thresholds(CONFIG / "gate" / "thresholds.yml").margins

    @cached_property
    def cells(self):
        """What every recipe takes, a row a precision: bits a weight, megabytes, prompts a second, models."""
        known = self.study.provenance
        known = known.drop_duplicates(["model", "precision"])
        by = known["precision"].map(lambda p: parse_precision(p).stored_bits)
        bits = (
            8
            * _column(known, "weights_bytes")
            / _column(known, "parameters_of_model").replace(0, np.nan)
        )
        found = pd.DataFrame(
            {
                "precision": known["precision"],
                "bits": bits.fillna(by),
                "megabytes": _column(known, "weights_bytes") / 1e6,
                "speed": _column(known, "counts.answers") / _column(known, "seconds"),
                "models": 1,
            }
        )
        table = found.groupby("precision").agg(
            {"bits": "mean", "megabytes": "mean", "speed": "median", "models": "sum"}
        )
        return table.loc[self.study.precisions]

    @property
    def native(self):
        """Whether MLX's own kernels were used, whose speed depends on the recipe."""
        known = self.study.provenance
        return "identity.compute" in known and bool(known["identity.compute"].eq("native").all())

    @cached_property
    def each(self):
        """Every change since BF16, a row a checkpoint, precision and measure."""
        study, answers = self.study, self.study.answers
        found = [
            lean(study.answers),
            paired_differences(study.answers),
            drifts(study.answers),
        ]
        if LETTERED.met(study):
            found.append(placebo(answers[answers["precision"].isin(study.lettered)]))
        if len(study.perplexity):
            found.append(perplexity_change(study.perplexity))
        return pd.concat(found, ignore_index=True)

    @cached_property
    def changes(self):
        """The same over all checkpoints of all families."""
        return self.study.pooled(self.each)

    def of(self, measure, precision):
        """One of them; None where it was not measured."""
        return find(self.changes, measure, precision)

    # Readings

    @property
    def recipes(self):
        """All precisions but the reference, from many bits to few, as they are numbered."""
        return [p for p in self.study.precisions if p != REFERENCE]

    def number(self, precision):
        """The number of a recipe in the figure and the tables."""
        return self.recipes.index(precision) + 1

    @property
    def kept(self):
        """Recipes shown to keep every margin of the gate that was measured, the smallest first."""
        names = [p for p in self.recipes if self.keeps(p)]
        return sorted(names, key=lambda p: self.cells.loc[p, "bits"])

    @property
    def used(self):
        """Margins of the gate that the records can be read against."""
        return [m for m in self.margins if any(self.of(m, p) is not None for p in self.recipes)]

    def keeps(self, precision):
        """Whether all intervals of a recipe lie inside the margins."""
        if precision in self.unlettered:
            return False  # what cannot be measured is not shown to be kept
        rows = [(self.margins[m], self.of(m, precision)) for m in self.used]
        return bool(rows) and all(
            row is not None
            and max(margin.side * row["low"], margin.side * row["high"]) < margin.size
            for margin, row in rows
        )

    @cached_property
    def frontier(self):
        """Recipes that no smaller or equal one beats in the estimate of the excess."""
        best, found = np.inf, []
        known = [p for p in self.recipes if self.of(EXCESS, p) is not None]
        for p in sorted(
            known, key=lambda p: (self.cells.loc[p, "bits"], self.of(EXCESS, p)["estimate"])
        ):
            if self.of(EXCESS, p)["estimate"] < best:
                best = self.of(EXCESS, p)["estimate"]
                found.append(p)
        return found

    @property
    def drawn(self):
        """Recipes in the figure: those with an excess, and at most about a byte a weight.

        Larger ones would press all others together.
        """
        return [
            p
            for p in self.recipes
            if self.cells.loc[p, "bits"] < WIDEST and self.of(EXCESS, p) is not None
        ]

    @property
    def beyond(self):
        """Those that are larger."""
        return [p for p in self.recipes if self.cells.loc[p, "bits"] >= WIDEST]

    @property
    def unlettered(self):
        """Those without an excess: too few of their answers begin with a letter."""
        return [p for p in self.recipes if self.of(EXCESS, p) is None]

    @property
    def plain(self):
        """Plain rounding that others of its size are compared with."""
        return self.study.middle

    @property
    def rivals(self):
        """Recipes of the size of plain rounding, with weights rounded otherwise."""
        size = self.cells.loc[self.plain, "bits"]
        return [
            p
            for p in self.recipes
            if p != self.plain
            and parse_precision(p).weights != parse_precision(self.plain)
            and abs(self.cells.loc[p, "bits"] / size - 1) < SAME_SIZE
        ]

    def against(self, other, precision):
        """Paired changes from one recipe to another, over the checkpoints that have both."""
        answers = self.study.answers
        both = answers[answers["precision"].isin([other, precision])]
        full = both.groupby("model")["precision"].nunique() == 2
        both = both[both["model"].isin(full.index[full])]
        found = [paired_differences(both, reference=other), lean(both, reference=other)]
        table = pd.concat(found, ignore_index=True)
        table = table[(table["precision"] == precision) & table["measure"].isin(COMPARED)]
        return self.study.pooled(table).set_index("measure")

    @cached_property
    def pairs(self):
        """Each rival against plain rounding, by measure."""
        return {p: self.against(self.plain, p) for p in self.rivals}

    def apart(self, pairs):
        """Pairs that are told apart: name, and by what."""
        found = {}
        for name, table in pairs.items():
            by = [m for m in table.index if reading(table.loc[m]) != NOT_TOLD_APART]
            if by:
                found[name] = [COMPARED[m] for m in by]
        return found

    @property
    def told(self):
        """Rivals told apart from plain rounding, and those that are not."""
        apart = self.apart(self.pairs)
        return {"apart": apart, "rest": [p for p in self.pairs if p not in apart]}

    @property
    def divergences(self):
        """Plain rounding and its rivals by how far their letters are from BF16's, the nearest first."""
        found = {p: self.of("letters_kl", p) for p in [self.plain, *self.rivals]}
        return sorted(found.items(), key=lambda one: one[1]["estimate"])

    @cached_property
    def texts(self):
        """One method fitted to several texts: each text against the first, method by method."""
        groups: dict[tuple, list] = {}
        for p in self.recipes:
            known = parse_precision(p)
            if known.calibration and not known.cache_bits:
                groups.setdefault((known.method, known.bits, known.group), []).append(p)
        return {
            (names[0], other): self.against(names[0], other)
            for names in groups.values()
            for other in names[1:]
        }

    @property
    def texts_apart(self):
        """Pairs of texts that are told apart."""
        return self.apart(self.texts)

    @cached_property
    def real(self):
        """The same chapter of the small real model's records, whatever the study of the book."""
        return Chapter(open_study(REAL))

    # Figures and tables

    def figure_recipe_sizes(self):
        """Items that gained a stereotyped answer beyond the placebo, against measured bits a weight."""
        rows = pd.DataFrame(
            {
                **{k: self.of(EXCESS, p)[k] for k in ("estimate", "low", "high", "n")},
                "precision": p,
                "bits": self.cells.loc[p, "bits"],
                "kind": kind_of(p),
                "label": str(self.number(p)),
                "frontier": p in self.frontier,
            }
            for p in self.drawn
        )
        figure = draw.pareto(rows, "Gained a stereotyped answer beyond the placebo, %")
        alt = "On the frontier of size and excess: " + "; ".join(
            f"{p.upper()} with {self.cells.loc[p, 'bits']:.1f} bits a weight and "
            f"{percent(self.of(EXCESS, p)['estimate'])}"
            for p in self.frontier
            if p in self.drawn
        )
        return figure, alt + ".", rows

    def figure_recipe_families(self):
        """The same excess, family by family."""
        rows = self.study.summarise(self.each[self.each["measure"] == EXCESS])
        rows = rows[rows["precision"].isin(self.recipes)]
        figure = draw.dots(
            rows.assign(measure=rows["precision"], at="all"),
            {p: f"{self.number(p)}. {p.upper()}" for p in self.recipes},
            "at",
            {"all": "Gained one beyond the placebo"},
            "of items without one at BF16",
        )
        alt = "Gained a stereotyped answer beyond the placebo, family by family: " + "; ".join(
            f"{name} from {percent(part['estimate'].min())} to {percent(part['estimate'].max())}"
            for name, part in rows.groupby("family", sort=False)
        )
        return figure, alt + ".", rows

    def table_recipes(self):
        """What every recipe takes and what it changes."""
        rows = []
        for p in self.recipes:
            cell, cached = self.cells.loc[p], parse_precision(p).cache_bits
            row = {"no.": self.number(p), "recipe": p.upper(), "bits a weight": cell["bits"]}
            if self.cells["megabytes"].notna().all():
                row["weights, MB"] = cell["megabytes"]
            if self.native:
                row["prompts a second"] = cell["speed"]
            row |= {
                "divergence, nats": self.of("letters_kl", p)["estimate"],
                "perplexity": "as its weights" if cached else self.of("perplexity_change", p),
                "right answers, points": self.of("d_accuracy", p),
                "gained a stereotyped answer, beyond placebo": self.of(EXCESS, p),
                "lean, log odds": self.of("d_log_gap", p),
                "n": cell["models"],
            }
            rows.append(row)
        frame = pd.DataFrame(rows)
        formats = {
            "no.": "{:.0f}".format,
            "bits a weight": "{:.2f}".format,
            "weights, MB": "{:.2f}".format,
            "prompts a second": "{:.0f}".format,
            "divergence, nats": "{:.4f}".format,
            "perplexity": measured,
            "right answers, points": lambda row: measured(row, points),
            "gained a stereotyped answer, beyond placebo": measured,
            "lean, log odds": _lean,
            "n": "{:.0f}".format,
        }
        return frame, {name: how for name, how in formats.items() if name in frame}

    def table_real_recipes(self):
        """The first table, of the small real model."""
        return self.real.table_recipes()

    def table_same_size(self):
        """Recipes of one size against plain rounding, and one method fitted to several texts."""
        rows = [
            {"from": a.upper(), "to": b.upper(), **self._row(table)}
            for (a, b), table in (
                *(((self.plain, p), table) for p, table in self.pairs.items()),
                *self.texts.items(),
            )
        ]
        frame = pd.DataFrame(rows, columns=["from", "to", *COMPARED.values(), "n"])
        formats = dict.fromkeys(COMPARED.values(), lambda row: measured(row, points))
        return frame, {**formats, "lean": _lean, "n": "{:.0f}".format}

    def _row(self, table):
        row = {name: table.loc[m] if m in table.index else None for m, name in COMPARED.items()}
        return {**row, "n": int(table["n"].max()) if self.study.several else 1}


def _column(table, name):
    found = table[name] if name in table else pd.Series(np.nan, table.index)
    return found.astype(float)


def _lean(row):
    """A change of log odds with its interval."""
    return "not measured" if row is None else scores(row, 2)
