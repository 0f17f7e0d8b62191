"""Does it depend on the temperature? The headline numbers from 0 to 1, from the recorded probabilities."""

from functools import cached_property

import pandas as pd

from cba_utils.chapters.real_model import records
from cba_utils.measures.pooling import over_replicates, presentable
from cba_utils.measures.temperature import TEMPERATURES, by_temperature
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import percent, reading
from cba_utils.telling.page import Need, Page

EXCESS = "became_biased_expected_excess"
RECORDED = Need("recorded_temperature", lambda study: study.exact and study.temperature is not None)


class Curves:
    """Headline measures of one study at every temperature."""

    def __init__(self, study):
        self.study = study

    @cached_property
    def checkpoints(self):
        """Estimates of every checkpoint at BF16 and the precisions that sentences are about."""
        answers = self.study.answers
        kept = answers["precision"].isin(["bf16", *self.study.shown])
        kept &= answers["context_condition"] == "ambig"
        return by_temperature(answers[kept], self.study.temperature, method="jackknife")

    @cached_property
    def summary(self):
        """The same a family."""
        if self.study.several:
            return presentable(over_replicates(self.checkpoints))
        parts = [part.assign(family=name) for name, part in self.study.each(self.checkpoints)]
        return pd.concat(parts, ignore_index=True)

    def rows(self, measure, precision):
        """A measure at a precision, family by family."""
        frame = self.summary
        return frame[(frame["measure"] == measure) & (frame["precision"] == precision)]


class Chapter(Page):
    """Notebook ``49_temperature``."""

    needs = dict.fromkeys(("answer", "rates", "heat", "odds"), RECORDED)
    without_letters = ("real", "heat_real")
    temperatures = TEMPERATURES

    @cached_property
    def here(self):
        """The study of the page."""
        return Curves(self.study)

    @cached_property
    def real(self):
        """The small real model."""
        return Curves(records().study)

    # Readings: what the template says

    @cached_property
    def changed(self):
        """By family and precision: the excess at the study's temperature and its range, with readings."""
        found = []
        for precision in self.study.shown:
            rows = self.here.rows(EXCESS, precision)
            for name, part in rows.groupby("family", sort=False):
                part = part.assign(reading=[reading(row) for _, row in part.iterrows()])
                part = part.set_index("temperature")
                found.append(
                    {
                        "name": name,
                        "precision": precision,
                        "zero": part.loc[0.0],
                        "one": part.loc[1.0],
                        "readings": sorted(set(part["reading"])),
                        "above": [f"{t:g}" for t, row in part["reading"].items() if row == "above"],
                    }
                )
        return found

    @property
    def agree(self):
        """Families and precisions whose excess is read alike at all temperatures, and the others."""
        same = [one for one in self.changed if len(one["readings"]) == 1]
        return {"same": same, "other": [one for one in self.changed if len(one["readings"]) > 1]}

    @property
    def real_none(self):
        """Answers of the real model that are no letter, at 0 and at 1, by precision."""
        found = []
        for precision in ["bf16", *self.real.study.shown]:
            rows = self.real.rows("unparsed_rate", precision).set_index("temperature")
            found.append({"precision": precision, "zero": rows.loc[0.0], "one": rows.loc[1.0]})
        return found

    # Figures

    def figure_heat(self):
        """Stereotyped answers and items that became biased, by temperature."""
        low = self.study.shown[-1]
        now = self.here.rows("srs", low).assign(hollow=False)
        before = self.here.rows("srs", "bf16").assign(hollow=True)
        panels = [(f"Stereotyped answers, {low.upper()} (hollow: BF16)", pd.concat([now, before]))]
        for precision in self.study.shown:
            title = f"Gained beyond the placebo, {precision.upper()}"
            panels.append((title, self.here.rows(EXCESS, precision)))
        return draw.curves(panels, "temperature", "temperature"), self._alt(panels), _joined(panels)

    def figure_heat_real(self):
        """Stereotyped answers of the real model, and those that are no letter."""
        panels = []
        for measure, title in (
            ("srs", "Stereotyped, of the answers that are letters"),
            ("unparsed_rate", "Answers that are no letter"),
        ):
            parts = [
                self.real.rows(measure, precision).assign(family=precision.upper())
                for precision in ["bf16", *self.real.study.shown]
            ]
            panels.append((title, pd.concat(parts, ignore_index=True)))
        return draw.curves(panels, "temperature", "temperature"), self._alt(panels), _joined(panels)

    @staticmethod
    def _alt(panels):
        texts = []
        for title, frame in panels:
            if "hollow" in frame:
                frame = frame[~frame["hollow"]]
            parts = [
                f"{name} from {percent(part['estimate'].iloc[0])} at 0 to "
                f"{percent(part['estimate'].iloc[-1])} at 1"
                for name, part in frame.sort_values("temperature").groupby("family", sort=False)
            ]
            texts.append(f"{title}: {', '.join(parts)}.")
        return texts


def _joined(panels):
    return pd.concat([frame.assign(panel=title) for title, frame in panels], ignore_index=True)
