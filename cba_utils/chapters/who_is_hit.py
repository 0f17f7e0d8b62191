"""Who is hit: the lean group by group, in the study and in the small real model."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.chapters.real_model import records
from cba_utils.measures import controls, transitions
from cba_utils.measures.controls import LEAST_TEMPLATES
from cba_utils.measures.frames import several_checkpoints
from cba_utils.measures.groups import BY, group_leans, group_sizes
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import count, factor, interval
from cba_utils.telling.page import GROUPS, Page
from cba_utils.telling.study import find

TOLD = ("grew", "turned", "shrank")
POLARITIES = {"neg": "who did what is held against them", "nonneg": "who did what speaks for them"}
EXCESS = "became_biased_expected_excess"


class Groups:
    """What one study's records say of the groups that its items are about."""

    def __init__(self, study):
        self.study = study
        self.shown = study.shown

    @cached_property
    def asked(self):
        """Ambiguous answers at BF16 and at the precisions that sentences are about."""
        answers = self.study.answers
        kept = answers["precision"].isin(["bf16", *self.shown])
        return answers[kept & (answers["context_condition"] == "ambig")]

    @cached_property
    def leans(self):
        """The lean against each group and its change, over checkpoints or templates.

        Where each model stands for itself, ``label`` names it beside the group.
        """
        rows = self._ordered(group_leans(self.asked, self.shown))
        label = rows["target_group"]
        if self.models_apart:
            label = label + ", " + rows["model"]
        return rows.assign(label=label).reset_index(drop=True)

    @property
    def models_apart(self):
        """Whether several models stand for themselves, as without checkpoints trained alike."""
        return self.asked["model"].nunique() > 1 and not several_checkpoints(self.asked)

    @cached_property
    def sizes(self):
        """Items and templates of each group."""
        return group_sizes(self.study.items)

    @cached_property
    def polarities(self):
        """The same by what was asked."""
        return group_leans(self.asked, self.shown, by=["question_polarity"])

    @cached_property
    def whole(self):
        """The lean over all groups together, for each checkpoint."""
        return controls.lean(self.asked)

    @cached_property
    def moves(self):
        """Items that became biased beyond the placebo, by group, at the lowest precision shown."""
        low = self.shown[-1]
        kept = self.asked[self.asked["precision"].isin(["bf16", low])]
        return self.study.pooled(transitions.placebo(kept, by=[*BY]), [*BY])

    @cached_property
    def rates(self):
        """Stereotyped answers that the published seeds drew, and the mirror image, by group."""
        kept = self.study.samples["precision"].isin(["bf16", *self.shown])
        return self.study.pooled(transitions.transitions(self.study.samples[kept], [*BY]), [*BY])

    def _ordered(self, frame):
        """Rows in the order of the items' categories, and of the groups' names in them."""
        order = {name: k for k, name in enumerate(dict.fromkeys(self.study.items["category"]))}
        rank = frame["category"].map(order)
        return (
            frame.assign(_rank=rank)
            .sort_values(["_rank", "target_group"], kind="stable")
            .drop(columns="_rank")
        )

    def of(self, reading):
        """Groups with a reading, each with the precisions at which it has it."""
        rows = self.leans[self.leans["reading"] == reading]
        return [
            {"group": label, "category": category, "precisions": list(part["precision"])}
            for (category, label), part in rows.groupby(["category", "label"], sort=False)
        ]

    @property
    def tested(self):
        """Groups that were tested, those that were not, and the tests."""
        made = self.leans["p"].notna()
        return {
            "groups": int(self.leans[made][[*BY]].drop_duplicates().shape[0]),
            "few": int(self.leans[~made][[*BY]].drop_duplicates().shape[0]),
            "tests": int(made.sum()),
        }

    @property
    def moved(self):
        """Whether the lean against any group is told apart from no change."""
        return {name: self.of(name) for name in TOLD}

    @property
    def ends(self):
        """The tested groups whose lean rose and fell most, with the estimates."""
        rows = self.leans[self.leans["p"].notna()]
        if rows.empty:
            return None
        return {
            "most": rows.loc[rows["estimate"].idxmax()],
            "least": rows.loc[rows["estimate"].idxmin()],
        }

    @property
    def widest(self):
        """The widest interval of a tested group, as the factor that its half stands for."""
        rows = self.leans[self.leans["p"].notna()]
        return float(np.exp((rows["high"] - rows["low"]).max() / 2)) if len(rows) else np.nan

    def table(self):
        """A row a group: what was asked, the lean at BF16, and its factor at each precision.

        Returns
        -------
        frame : DataFrame
        formats : dict
        keys : list of tuple
            Category and group of every row.
        """
        sizes = self.sizes.set_index([*BY])
        rows, keys = [], []
        for (*key, label), part in self.leans.groupby([*BY, "label"], sort=False):
            part = part.set_index("precision")
            keys.append(tuple(key))
            row = {
                "group": label,
                "category": key[0],
                "templates": sizes.loc[tuple(key), "templates"],
                "items": sizes.loc[tuple(key), "items"],
                "odds at BF16": float(np.exp(part["lean"].iloc[0])),
            }
            for precision in self.shown:
                one = part.loc[precision]
                row[f"{precision.upper()}, times that"] = one
                row[f"{precision.upper()} is read as"] = one["reading"]
            rows.append(row)
        frame = pd.DataFrame(rows)
        formats = {
            "templates": count,
            "items": count,
            "odds at BF16": "{:.2f}".format,
            **{f"{p.upper()}, times that": _factor for p in self.shown},
        }
        return frame, formats, keys

    def figure(self, title):
        """Change of the lean group by group."""
        rows = self.leans.assign(told=self.leans["reading"].isin(TOLD))
        return draw.forest(rows, "category", "label", "told", title), self._alt(), rows

    def _alt(self):
        names = [
            f"{row.label} {row.precision.upper()} {np.exp(row.estimate):.2f}"
            for row in self.leans.itertuples()
        ]
        found = [f"{one['group']} {name}" for name in TOLD for one in self.of(name)]
        first = (
            f"Told apart from no change: {', '.join(found)}."
            if found
            else "No group is told apart from no change."
        )
        return f"{first} Factors of the lean since BF16: {', '.join(names)}."


def _factor(row):
    """A factor with its interval, as far as it has one."""
    if np.isnan(row["low"]):
        return f"{np.exp(row['estimate']):.2f} (no interval)"
    return factor(row)


class Chapter(Page):
    """Notebook ``26_who_is_hit``."""

    needs = dict.fromkeys(
        ("answer", "who_lean", "flat", "who_groups", "who_polarity", "polarity", "sizes"), GROUPS
    )
    without_letters = ("real", "who_real", "who_real_groups", "real_seen", "real_polarity")
    least = LEAST_TEMPLATES

    @cached_property
    def here(self):
        """The groups of this study's items."""
        return Groups(self.study)

    @cached_property
    def real(self):
        """The groups that BBQ's items are about, in the small real model."""
        return Groups(records().study)

    # Readings: what the template says

    @property
    def lean(self):
        """The lean over all groups together, family by family, at the lowest precision shown."""
        low = self.here.shown[-1]
        return [
            {"name": name, "row": find(rows, "d_log_gap", low)}
            for name, rows in self.study.each(self.here.whole)
            if find(rows, "d_log_gap", low) is not None
        ]

    @property
    def real_whole(self):
        """The same of the real model, at each precision shown."""
        return [(p, find(self.real.whole, "d_log_gap", p)) for p in self.real.shown]

    # Figures and tables

    def figure_who_lean(self):
        """Change of the lean by group."""
        return self.here.figure("lean against the group, times that at BF16")

    def figure_who_real(self):
        """The same in the small real model."""
        return self.real.figure("lean against the group, times that at BF16")

    def table_who_groups(self):
        """A row a group."""
        frame, formats, keys = self.here.table()
        low = self.here.shown[-1]
        moves = self.here.moves[self.here.moves["measure"] == EXCESS].set_index([*BY])
        name = f"gained a stereotyped answer beyond the placebo, {low.upper()}"
        frame[name] = [moves.loc[key] for key in keys]
        return frame, {**formats, name: interval}

    def table_who_real_groups(self):
        """A row a group of BBQ's."""
        frame, formats, keys = self.real.table()
        low = self.real.shown[-1]
        rates = self.real.rates[self.real.rates["precision"] == low]
        names = {
            "became_biased": "gained a stereotyped answer",
            "became_anti": "an anti-stereotyped one",
        }
        for measure, words in names.items():
            part = rates[rates["measure"] == measure].set_index([*BY])
            name = f"{words}, {low.upper()}"
            frame[name] = [part.loc[key] for key in keys]
            formats[name] = interval
        return frame, formats

    def table_who_polarity(self):
        """The lean by what was asked, here and in the real model."""
        rows = []
        parts = [(self.real, self.real.study.items)]
        if not self.lacks("who_polarity"):
            parts.insert(0, (self.here, self.study.items))
        for found, items in parts:
            for row in found.polarities.itertuples():
                asked = (items["question_polarity"] == row.question_polarity) & (
                    items["context_condition"] == "ambig"
                )
                rows.append(
                    {
                        "study": row.model if found.models_apart else found.study.study,
                        "asked": POLARITIES[row.question_polarity],
                        "precision": row.precision.upper(),
                        "items": int(asked.sum()),
                        "odds at BF16": float(np.exp(row.lean)),
                        "times that": pd.Series(row._asdict()),
                        "is read as": row.reading,
                    }
                )
        frame = pd.DataFrame(rows)
        return frame, {"items": count, "odds at BF16": "{:.2f}".format, "times that": _factor}
