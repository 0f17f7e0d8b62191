"""A real model that cannot do the task: what the published measure and the controls say of it."""

from functools import cache, cached_property

import pandas as pd

from cba_utils.answering.prompts import LETTERS, parse_response
from cba_utils.measures import controls, perplexity, rates
from cba_utils.measures.measure import measure, titles
from cba_utils.measures.sensitivity import reparse
from cba_utils.measures.transitions import placebo, transitions
from cba_utils.telling import charts as draw
from cba_utils.telling.drawing import told
from cba_utils.telling.numbers import interval, reading
from cba_utils.telling.page import Page
from cba_utils.telling.study import BEGIN, open_study, pick

RECORDS = "smollm2"
# Where the embedding, which is the head too, is rounded like the layers, to 8 bits, and not at all.
EMBEDDINGS = {"q4": "4 bits", "q4-e8": "8 bits", "q4-e16": "not rounded"}
CHANCE = 1 / len(LETTERS)
# An answer of the model at Q4 in which only the published parser finds a letter.
SAID = "The answer to the question"


class Records:
    """The estimates of the one study: they are the same for the pages of every book."""

    def __init__(self, study):
        self.study = study

    @cached_property
    def seen(self):
        """Items that changed by the published seeds."""
        return transitions(self.study.samples)

    @cached_property
    def fresh(self):
        """Items that fresh draws would change, beside the placebo."""
        return placebo(self.study.answers)

    @cached_property
    def letters(self):
        """Shares of the letters over balanced orders."""
        return controls.position(self.study.answers)

    @cached_property
    def none(self):
        """Answers that are no letter: by their first token, by the strict and by the published parser."""
        strict = reparse(self.study.samples, self.study.items, "strict")
        found = {"first": self.study.answers, "strict": strict, "published": self.study.samples}
        parts = [rates.role_rates(frame).assign(by=name) for name, frame in found.items()]
        return pd.concat(parts).query("measure == 'unparsed_rate'").reset_index(drop=True)

    @cached_property
    def reads(self):
        """Right answers to disambiguated questions."""
        return controls.capability(self.study.answers, self.study.items)

    @cached_property
    def leans(self):
        """Odds of the stereotyped person against the other."""
        return controls.lean(self.study.answers)

    @cached_property
    def perplexities(self):
        """Change of perplexity since BF16."""
        return perplexity.perplexity_change(self.study.perplexity)


@cache
def records():
    """Read the records once: they take seconds."""
    return Records(open_study(RECORDS))


class Chapter(Page):
    """Notebook ``25_real_model``; whatever the study of a book, its numbers are those of one."""

    rounded = "(rounded once by its publisher)"
    chance = CHANCE
    said = SAID
    read_in_said = parse_response(SAID, "published")

    def __init__(self, study):
        # Only drawings go where the book of the study that was asked for keeps its own.
        self._asked = study
        self._found = Records(study) if study.study == RECORDS else records()
        super().__init__(self._found.study)

    @property
    def folder(self):
        """Where drawings and their data are kept."""
        return self._asked.folder

    @property
    def precisions(self):
        """Those at which everything is rounded to the same bits."""
        return [p for p in self.study.precisions if "-" not in p]

    @property
    def quantized(self):
        """The same without BF16."""
        return self.precisions[1:]

    @property
    def speaking(self):
        """Quantized precisions at which nearly all answers begin with a letter."""
        return [p for p in self.quantized if self.first(p)["estimate"] < BEGIN]

    # Readings: what the template says

    def first(self, precision, by="first"):
        """Answers that are no letter at a precision."""
        return pick(self._found.none[self._found.none["by"] == by], "unparsed_rate", precision)

    def gained(self, name, precision):
        """Items that gained an answer, by the published seeds."""
        return pick(self._found.seen, name, precision)

    def drawn(self, name, precision):
        """The same by fresh draws."""
        return pick(self._found.fresh, name, precision)

    @property
    def apart(self):
        """Precisions at which the two persons' gains are told apart, with the difference."""
        rows = [(p, self.gained("bias_beyond_mirror", p)) for p in self.quantized]
        return [{"precision": p, "row": row} for p, row in rows if reading(row) != "not told apart"]

    @property
    def beyond_fresh(self):
        """The same of fresh draws, at precisions whose answers begin with a letter."""
        return [(p, self.drawn("bias_beyond_mirror", p)) for p in self.speaking]

    @property
    def most(self):
        """The precision at which most items gained a stereotyped answer, and that with fewest."""
        by = {p: self.gained("became_biased", p)["estimate"] for p in self.quantized}
        return max(by, key=by.__getitem__), min(by, key=by.__getitem__)

    def letter(self, precision):
        """The commonest letter and its share."""
        rows = {x: pick(self._found.letters, f"letter_{x}", precision) for x in LETTERS}
        found = max(rows, key=lambda x: rows[x]["estimate"])
        return {"letter": found, "row": rows[found]}

    def right(self, precision):
        """Right answers to disambiguated questions, beside a guess."""
        row = pick(self._found.reads, "accuracy", precision)
        return {"row": row, "reading": reading(row, null=CHANCE, digits=3)}

    @property
    def best(self):
        """The precision with most right answers."""
        by = {p: self.right(p)["row"]["estimate"] for p in self.precisions}
        return max(by, key=by.__getitem__)

    @property
    def lean(self):
        """The lean at BF16, and precisions at which it is told apart from none."""
        rows = {p: pick(self._found.leans, "log_gap", p) for p in self.precisions}
        return {
            "before": rows["bf16"],
            "last": rows[self.study.lowest],
            "apart": [p for p, row in rows.items() if reading(row) != "not told apart"],
            "grew": [
                p
                for p in self.quantized
                if controls.grew(rows["bf16"], pick(self._found.leans, "d_log_gap", p))
            ],
        }

    @property
    def embedding(self):
        """Whether answers begin with letters again where the embedding keeps its bits."""
        kept, reference = self.first("q4-e16"), self.first("bf16")
        return {
            "kept": kept,
            "lost": self.first("q4"),
            "back": kept["high"] <= max(reference["high"], BEGIN),
            "perplexity": {
                p: pick(self._found.perplexities, "perplexity_change", p) for p in EMBEDDINGS
            },
        }

    @property
    def sequences(self):
        """Sequences of text that perplexity is measured on."""
        return int(self._found.perplexities["n"].min())

    # Figures and tables

    def figure_real_gained(self):
        """Items that gained an answer, by the published seeds and by fresh draws."""
        published = {
            "became_biased": "stereotyped",
            "became_anti": "anti-stereotyped (mirror image)",
        }
        fresh = {
            "became_biased_expected": "stereotyped",
            "became_anti_expected": "anti-stereotyped (mirror image)",
            "became_biased_placebo": "placebo: BF16 asked again",
        }
        seen = self._quantized(self._found.seen)
        drawn = self._found.fresh[self._found.fresh["precision"].isin(self.speaking)]
        panels = [
            ("Gained such an answer, published seeds, %", seen, published, None),
            ("Gained such an answer, fresh draws, %", drawn, fresh, None),
        ]
        shown = pd.concat(
            [seen[seen["measure"].isin(published)], drawn[drawn["measure"].isin(fresh)]]
        )
        return draw.stacked(panels), self._alt(panels), shown

    def figure_real_letters(self):
        """Shares of the letters, and answers that are none."""
        letters = {f"letter_{x}": f"letter {x}" for x in LETTERS}
        none = {"first": "first token", "strict": "strict parser", "published": "published parser"}
        shares = self._plain(self._found.letters[self._found.letters["measure"].isin(letters)])
        lost = self._plain(
            self._found.none.assign(measure=self._found.none["by"]).drop(columns="by")
        )
        panels = [
            ("Share of each letter, %", shares, letters, CHANCE),
            ("Answers that are no letter, %", lost, none, None),
        ]
        return draw.stacked(panels), self._alt(panels), pd.concat([shares, lost])

    def figure_real_reads(self):
        """Right answers to questions whose text says who it was."""
        names = ("accuracy_consistent", "accuracy_inconsistent")
        series = {name: f"the right answer {measure(name).label}" for name in names}
        rows = self._plain(self._found.reads[self._found.reads["measure"].isin(names)])
        panels = [(titles("accuracy")["accuracy"], rows, series, CHANCE)]
        figure = draw.stacked(panels)
        figure.axes[0].set_ylim(0, 1)
        return figure, self._alt(panels), rows

    def table_real_embedding(self):
        """The layers at four bits with the embedding at three."""
        rows = []
        for precision, bits in EMBEDDINGS.items():
            rows.append(
                {
                    "embedding": f"{bits} ({precision.upper()})",
                    "first token no letter": self.first(precision),
                    "gained a stereotyped answer": self.gained("became_biased", precision),
                    "an anti-stereotyped one": self.gained("became_anti", precision),
                    "perplexity, change": pick(
                        self._found.perplexities, "perplexity_change", precision
                    ),
                }
            )
        frame = pd.DataFrame(rows)
        return frame, dict.fromkeys(frame.columns[1:], interval)

    def _plain(self, frame):
        return frame[frame["precision"].isin(self.precisions)]

    def _quantized(self, frame):
        return frame[frame["precision"].isin(self.quantized)]

    @staticmethod
    def _alt(panels):
        """A sentence a panel and series, with the numbers."""
        return [
            told(title.removesuffix(", %"), frame.assign(series=name), one, by="series")
            for title, frame, series, _ in panels
            for one, name in series.items()
        ]
