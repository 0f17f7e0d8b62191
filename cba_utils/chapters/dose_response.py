"""What happens with precision: rates, changes beside their placebo, templates never asked, both at once."""

from functools import cached_property

import pandas as pd

from cba_utils.chapters import noise
from cba_utils.chapters.planted import STRENGTHS
from cba_utils.measures import perplexity, rates, transitions
from cba_utils.measures.published import load_published
from cba_utils.telling import drawing as draw
from cba_utils.telling.drawing import alt_text, told
from cba_utils.telling.numbers import measured, reading
from cba_utils.telling.page import HELD_OUT, Page
from cba_utils.telling.study import changes, find, open_study, pick
from cba_utils.telling.walk import Walk


class Chapter(Page):
    """Notebook ``20_dose_response``."""

    without_letters = (
        "study_records",
        "letters_here",
        "n_text",
        "interval_over",
        "scope_note",
        "study_name",
        "note_here",
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
        """Answers and changes by kind of template: asked in training, or held out."""
        frames = []
        for kind, part in _kinds_of_templates(self.study.best):
            moves = transitions.placebo(part) if self.study.exact else transitions.transitions(part)
            found = [rates.role_rates(part), rates.bias_scores(part), moves]
            frames.append(
                self.study.pooled(pd.concat(found, ignore_index=True)).assign(templates=kind)
            )
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def noise(self):
        """The chapter on noise, whose reading of directions is said here too."""
        return noise.Chapter(self.study)

    @cached_property
    def walk(self):
        """One item, which the page on the method follows."""
        return Walk(self.study)

    # Readings

    @cached_property
    def _pooled(self):
        return self.study.pooled(pd.concat([self.rates, self.checkpoints], ignore_index=True))

    def at(self, measure, precision):
        """The pooled estimate of a rate or change."""
        return pick(self._pooled, measure, precision)

    def change(self, name):
        """The pooled estimate of a change at the lowest precision, by fresh draws where they are known."""
        return self.at(self.study.named(name), self.study.lowest)

    @property
    def excess(self):
        """Whether more became biased than asking again explains; what is not printed is no excess."""
        return reading(self.at("became_biased_expected_excess", self.study.lowest), digits=3)

    @property
    def held_out_lead(self):
        """Whether the stereotype leads on templates that were never asked, and the rates there."""
        part = self.kinds[self.kinds["templates"] == "held out"]
        low = self.study.lowest
        return {
            "reading": reading(pick(part, "s_amb", low)),
            "stereotyped": find(part, "srs", low),
            "anti": find(part, "anti_rate", low),
        }

    @property
    def held_out_bases(self):
        """Lowest and highest stereotyped rate of the bases there; None without bases."""
        everything = open_study(self.study.study, keep="all")
        before = everything.best[everything.best["depth"] == "base"]
        if before.empty:
            return None
        found = rates.role_rates(dict(_kinds_of_templates(before))["held out"])
        found = found.loc[found["measure"] == "srs", "estimate"]
        return found.min(), found.max()

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
            told("Items that became biased", self.moves, self.study.named("became_biased")),
            told("Placebo", self.moves, "became_biased_placebo"),
        ]

    def table_held_out(self):
        """Answers by kind of template and precision; BF16 has not changed from itself."""
        measures = {
            "stereotyped": "srs",
            "anti-stereotyped": "anti_rate",
            "right, disambiguated": "accuracy",
        }
        moved = {
            "became biased": self.study.named("became_biased"),
            "placebo": "became_biased_placebo",
        }
        frame = pd.DataFrame(
            [
                {
                    "templates": kind,
                    "at": p.upper(),
                    **{title: find(part, measure, p) for title, measure in measures.items()},
                    **{
                        title: find(part, measure, p) if p != "bf16" else ""
                        for title, measure in moved.items()
                    },
                }
                for kind, part in self.kinds.groupby("templates", sort=False)
                for p in self.study.precisions
            ]
        )
        return frame, dict.fromkeys(frame.columns[2:], measured)

    def figure_headline(self):
        """Items that became biased above, perplexity below."""
        story = pd.concat([self.moves, self.perplexity], ignore_index=True)
        alt = [*self._moves_alt(), told("Perplexity change", self.perplexity, "perplexity_change")]
        return draw.headline(story, self.published), alt, story

    def code_walk_prompt(self):
        """What the user says to the model; records without texts have none."""
        return self.walk.prompt or self.text("no_text")

    def table_walk(self):
        """The walked item's answers."""
        return self.walk.table()


def _kinds_of_templates(answers):
    """Kinds of templates, and the answers to each."""
    strengths = pd.read_csv(STRENGTHS)
    apart = strengths[strengths["version"] == "heldout-template"]
    names = set(apart["category"] + "/" + apart["question_index"].astype(str))
    held = answers["template_id"].isin(names)
    return [("asked in training", answers[~held]), ("held out", answers[held])]
