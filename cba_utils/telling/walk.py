"""One item of a study, followed from its prompt to the roles of its answers."""

from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import named, user_text
from cba_utils.measures.frames import ROLES, item_table
from cba_utils.names import PROJECT
from cba_utils.telling.numbers import percent


class Walk:
    """An ambiguous item of a study, followed through its first model.

    It is the first whose likeliest role is another at the lowest precision than at BF16; where there
    is none, the first of all.

    Attributes
    ----------
    model : str
    item : pandas.Series
    moved : bool
        Whether its likeliest role is another.
    """

    def __init__(self, study):
        self.study = study
        self.model = study.single["model"].iloc[0]
        asked = study.items[study.items["context_condition"] == "ambig"]
        chosen = asked[asked["item_id"].isin(self._likeliest_moved())]
        self.moved = len(chosen) > 0
        self.item = (chosen if self.moved else asked).iloc[0]

    def _likeliest_moved(self):
        """Items whose likeliest role differs between BF16 and the lowest precision."""
        study = self.study
        rows = study.answers[study.answers["order"] == "012"] if study.exact else study.drawn
        table = item_table(rows[rows["model"] == self.model])
        role = table.assign(role=table[ROLES].idxmax(axis=1)).pivot(
            index="item_id", columns="precision", values="role"
        )
        return role.index[role["bf16"] != role.get(study.lowest, role["bf16"])]

    @property
    def known(self):
        """Whether the records have the item's text."""
        return bool(pd.notna(self.item.get("question")))

    @property
    def system(self):
        """What the system says."""
        return named(self.study.prompt).system

    @property
    def prompt(self):
        """What the user says, in the order in which the item was written; None without its text."""
        return user_text(self.item, prompt=self.study.prompt) if self.known else None

    def table(self):
        """Answers, roles, and how likely each is (or its share of the draws), and the formats."""
        study, item = self.study, self.item
        rows = study.single[study.single["item_id"] == item["item_id"]]
        rows = rows[rows["model"] == self.model]
        roles = {item[f"{role}_index"]: role.replace("_", "-") for role in ROLES}
        table = pd.DataFrame(
            {
                "letter": list("ABC"),
                "answer": [item[f"ans{k}"] if self.known else "not recorded" for k in range(3)],
                "role": [roles[k] for k in range(3)],
            }
        )
        for precision in dict.fromkeys(["bf16", study.lowest]):
            at = rows[rows["precision"] == precision]
            if study.exact:
                at = at[at["order"] == "012"].iloc[0]
                table[precision.upper()] = [np.exp(at[f"logp_{x}"]) for x in "ABC"]
            else:
                table[precision.upper()] = [(at["parsed_answer"] == x).mean() for x in "ABC"]
        return table, dict.fromkeys(table.columns[3:], percent)

    @cached_property
    def planted(self):
        """What training planted for the item's template; None where nothing is known of that.

        Returns
        -------
        dict or None
            ``question`` that asks for the stereotype, the groups that are the ``answer`` to it and the
            ``other``, and the two planted numbers, ``lean`` and ``margin`` (nats; missing where the
            template was held out).
        """
        if not (self.known and self.study.organisms):
            return None
        known = pd.read_csv(PROJECT / "data" / "strengths.csv")
        items, item = self.study.items, self.item
        known = known[
            (known["category"] == item["category"])
            & (known["question_index"].astype(str) == str(item["question_index"]))
        ]
        asked = items[
            (items["category"] == item["category"])
            & (items["question_index"] == item["question_index"])
            & (items["question_polarity"] == "neg")
        ]
        if known.empty or asked.empty:
            return None
        group = known.groupby("role")["group"].apply(" or the ".join)
        return {
            "question": asked["question"].iloc[0],
            "answer": group["target"],
            "other": group["other"],
            "lean": known["lean"].iloc[0],
            "margin": known["margin"].iloc[0],
        }
