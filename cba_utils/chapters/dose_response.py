"""What happens with precision: rates, changes beside their placebo, templates never asked, both at once."""

from functools import cached_property

import pandas as pd
import yaml

from cba_utils.chapters import noise
from cba_utils.measures import perplexity, rates, transitions
from cba_utils.measures.published import load_published
from cba_utils.names import PROJECT
from cba_utils.telling import drawing as draw
from cba_utils.telling.drawing import alt_text, told
from cba_utils.telling.numbers import factor, measured
from cba_utils.telling.page import HELD_OUT, Page
from cba_utils.telling.study import changes, find
from cba_utils.telling.walk import Walk


class Chapter(Page):
    """Notebook ``20_dose_response``."""

    without_letters = (
        "who",
        "measured",
        "letters_here",
        "n_text",
        "interval_over",
        "scope_note",
        "study_name",
        "families",
        "cite_as",
        "remains",
        "drawn_at",
        "published_decline",
        "published_ranges",
        "pub_became_biased_q4",
        "pub_became_biased_q3",
        "pub_items",
        "pub_seeds",
        "first_page_letters",
    )
    needs = {"held_out_method": HELD_OUT, "held_out": HELD_OUT, "held_out_sentence": HELD_OUT}

    @cached_property
    def published(self):
        """Figures of the published study."""
        return load_published()

    @cached_property
    def rates(self):
        """Role rates, an estimate a checkpoint."""
        return rates.role_rates(self.study.best)

    @cached_property
    def checkpoints(self):
        """Changes since BF16, an estimate a checkpoint."""
        return changes(self.study)

    @cached_property
    def moves(self):
        """The same by family."""
        return self.study.summarise(self.checkpoints)

    @cached_property
    def perplexity(self):
        """Perplexity changes by family."""
        return self.study.summarise(perplexity.perplexity_change(self.study.perplexity))

    @cached_property
    def kinds(self):
        """Answers and changes by kind of template (asked in training, or held out), a checkpoint each."""
        frames = []
        parts = {"asked in training": self.study.best, "held out": self.study.held_out.best}
        for kind, part in parts.items():
            moves = transitions.placebo(part) if self.study.exact else transitions.transitions(part)
            found = [rates.role_rates(part), rates.bias_scores(part), moves]
            frames.append(pd.concat(found, ignore_index=True).assign(templates=kind))
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def noise(self):
        """The chapter on noise, whose reading of directions is said here too."""
        return noise.Chapter(self.study)

    @cached_property
    def walk(self):
        """One item, which the page on the method follows."""
        return Walk(self.study)

    @property
    def release(self):
        """Version of the compendium."""
        return yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))["version"]

    # Readings, by precision and family

    def _told(self, frame, measure, precisions=None, digits=None):
        return {
            p: self.study.told(frame, measure, p, digits=digits)
            for p in precisions or self.study.shown
        }

    @cached_property
    def srs(self):
        """Stereotyped answers."""
        return self._told(self.rates, "srs", ["bf16", *self.study.shown])

    @cached_property
    def usr(self):
        """Unknown answers."""
        return self._told(self.rates, "usr", ["bf16", *self.study.shown])

    @cached_property
    def rose(self):
        """Whether more answers are stereotyped than at BF16."""
        return self._told(rates.paired_differences(self.study.best), "d_srs", digits=3)

    @cached_property
    def lost(self):
        """Items that lost their stereotyped answers, of those with one at BF16."""
        return self._told(self.checkpoints, self.study.named("lost_bias"))

    @cached_property
    def lost_placebo(self):
        """How many would lose them in asking again."""
        return self._told(self.checkpoints, "lost_bias_placebo")

    @cached_property
    def mirrored(self):
        """Items that gained an anti-stereotyped answer."""
        return self._told(self.checkpoints, self.study.named("became_anti"))

    @cached_property
    def held_out_lead(self):
        """Whether the stereotype leads on templates that were never asked."""
        return self._told(self.kinds[self.kinds["templates"] == "held out"], "s_amb", digits=1)

    # Figures and tables

    def figure_dose_response(self):
        """Stereotyped and unknown answers by precision."""
        rows = self.study.summarise(self.rates)
        alt = [
            alt_text("Stereotyped answers by precision", rows, "srs"),
            alt_text("Unknown answers by precision", rows, "usr"),
        ]
        return draw.dose_response(rows), alt, rows

    def figure_transitions(self):
        """Items that became biased and the way back, beside the placebo and the published range."""
        return draw.transitions(self.moves, self.published), self._moves_alt(), self.moves

    def _moves_alt(self):
        return [
            told(
                "Items that gained a stereotyped answer",
                self.moves,
                self.study.named("became_biased"),
            ),
            told("Placebo", self.moves, "became_biased_placebo"),
        ]

    def table_held_out(self):
        """Answers by kind of template, family and precision; BF16 has not changed from itself."""
        measures = {"stereotyped": "srs", "anti-stereotyped": "anti_rate"}
        moved = {
            "gained one": self.study.named("became_biased"),
            "placebo": "became_biased_placebo",
        }
        frame = pd.DataFrame(
            [
                {
                    "templates": kind,
                    "family": name,
                    "at": p.upper(),
                    **{title: find(rows, measure, p) for title, measure in measures.items()},
                    **{
                        title: find(rows, measure, p) if p != "bf16" else ""
                        for title, measure in moved.items()
                    },
                }
                for kind, part in self.kinds.groupby("templates", sort=False)
                for name, rows in self.study.each(part.drop(columns="templates"))
                for p in ["bf16", *self.study.shown]
            ]
        )
        return frame, dict.fromkeys(frame.columns[3:], measured)

    def figure_headline(self):
        """Items that gained a stereotyped answer above, perplexity below."""
        story = pd.concat([self.moves, self.perplexity], ignore_index=True)
        alt = [*self._moves_alt(), told("Perplexity change", self.perplexity, "perplexity_change")]
        return draw.headline(story, self.published), alt, story

    def table_first(self):
        """What the first page says, in numbers."""
        study = self.study
        moves = dict(study.each(self.checkpoints))
        seen = dict(study.each(perplexity.perplexity_change(study.perplexity)))
        leans = dict(study.each(self.noise.leans)) if study.exact else {}
        rows = []
        for name, part in moves.items():
            for p in study.shown:
                row = {
                    "family": name,
                    "at": p.upper(),
                    "gained": find(part, study.named("became_biased"), p),
                    "asked again": find(part, "became_biased_placebo", p),
                }
                if name in leans:
                    row["odds at BF16"] = find(leans[name], "log_gap", "bf16")
                    row["times that"] = find(leans[name], "d_log_gap", p)
                if name in seen:
                    row["perplexity"] = find(seen[name], "perplexity_change", p)
                rows.append(row)
        frame = pd.DataFrame(rows)
        odds = [c for c in frame if c in ("odds at BF16", "times that")]
        return frame, {**dict.fromkeys(frame.columns[2:], measured), **dict.fromkeys(odds, factor)}

    def code_walk_prompt(self):
        """What the user says to the model; records without texts have none."""
        return self.walk.prompt or self.text("no_text")

    def table_walk(self):
        """The walked item's answers."""
        return self.walk.table()
