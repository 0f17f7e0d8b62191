"""Probability of each role from the probabilities of the letters, and columns of such tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS, ORIGINAL
from cba_utils.names import ITEM, ROLES, STUDY

NEEDED = ["item_id", "category", "context_condition", "template_id"]


def study_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of ``frame`` that name a cell of a study."""
    return [c for c in STUDY if c in frame]


def item_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of ``frame`` that describe an item."""
    return [c for c in ITEM if c in frame]


def template_ids(items: pd.DataFrame) -> pd.Series:
    """Return the template of each item, which is what intervals over items are clustered by.

    Examples
    --------
    >>> template_ids(pd.DataFrame({"category": ["Clan"], "question_index": [3]})).tolist()
    ['Clan/3']
    """
    return items["category"].astype(str) + "/" + items["question_index"].astype(str)


def need(frame: pd.DataFrame, columns: list[str], what: str) -> None:
    """Raise an error that names the columns that ``what`` lacks."""
    missing = [c for c in columns if c not in frame]
    if missing:
        raise ValueError(f"{what} needs the columns {missing}; the frame has {list(frame)}")


def role_of_letters(answers: pd.DataFrame, temperature: str = "unit") -> pd.DataFrame:
    """Probability of each role for every item and option order, without averaging.

    Parameters
    ----------
    temperature : {"unit", "study"}
        Temperature 1, or the temperature of the study (0.3 in the paper).

    Returns
    -------
    DataFrame
        The study's columns, the item's, ``order``, and ``p_stereotyped, p_anti_stereotyped,
        p_unknown, p_other, p_correct, p_A, p_B, p_C``.
    """
    if temperature not in ("unit", "study"):
        raise ValueError(f"temperature must be 'unit' or 'study', not {temperature!r}")
    suffix = "_t" if temperature == "study" else ""
    logp = [f"logp_{x}{suffix}" for x in LETTERS]
    need(answers, [*NEEDED, "order", "correct", *logp, f"mass_other{suffix}"], "an answers frame")
    p = np.exp(answers[logp].to_numpy(float))
    result = answers[[*study_columns(answers), *item_columns(answers), "order"]].copy()
    roles = [answers[f"role_{x}"].to_numpy() for x in LETTERS]
    for role in ROLES:
        result[f"p_{role}"] = sum(p[:, k] * (roles[k] == role) for k in range(3))
    result["p_other"] = answers[f"mass_other{suffix}"].to_numpy(float)
    correct = answers["correct"].to_numpy()
    result["p_correct"] = sum(p[:, k] * (correct == x) for k, x in enumerate(LETTERS))
    for k, letter in enumerate(LETTERS):
        result[f"p_{letter}"] = p[:, k]
    return result


def role_probabilities(answers: pd.DataFrame, temperature: str = "unit", orders: str = "all"):
    """Probability of each role for every item, averaged over its option orders.

    Parameters
    ----------
    temperature : {"unit", "study"}
    orders : {"all", "original"}
        ``"original"`` keeps only the order in which the item was written, which is the one the
        five seeds of the paper saw.
    """
    if orders not in ("all", "original"):
        raise ValueError(f"orders must be 'all' or 'original', not {orders!r}")
    if orders == "original":
        answers = answers[answers["order"] == ORIGINAL]
    each = role_of_letters(answers, temperature)
    columns = [*(f"p_{r}" for r in ROLES), "p_other", "p_correct"]
    keys = [*study_columns(each), *item_columns(each)]
    grouped = each.groupby(keys, observed=True, dropna=False, sort=False)
    return grouped[columns].mean().reset_index()


def counted_from_the_end(indices):
    """The roles that the published code gave where a target is -1: Python's last answer, letter C.

    Parameters
    ----------
    indices : DataFrame
        ``stereotyped_index``, ``unknown_index`` and ``anti_stereotyped_index`` of items, some of
        them -1.

    Returns
    -------
    DataFrame
        Each answer in one role: what was counted as stereotyped was so before it was anything else,
        and -1 is left where a role has no answer.

    Examples
    --------
    >>> indices = pd.DataFrame(
    ...     [[-1, 2, 1], [0, 2, -1]],
    ...     columns=["stereotyped_index", "unknown_index", "anti_stereotyped_index"],
    ... )
    >>> counted_from_the_end(indices).to_numpy().tolist()
    [[2, -1, 1], [0, 2, -1]]
    """
    names = ["stereotyped_index", "unknown_index", "anti_stereotyped_index"]
    roles = indices[names] % 3
    for k, name in enumerate(names[1:], 1):
        taken = roles[names[:k]].eq(roles[name], axis=0).any(axis=1)
        roles[name] = roles[name].mask(taken, -1)
    return roles
