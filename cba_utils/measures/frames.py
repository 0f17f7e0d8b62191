"""Item tables: one row an item, from which every measure is computed.

Sampled answers give counts of each role; exact answers give expected counts (probabilities), so
the same measures serve both.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cba_utils.names import REFERENCE, ROLES
from cba_utils.study.roles import NEEDED, item_columns, need, role_probabilities, study_columns

COUNTS = [*ROLES, "unparsed", "parsed", "correct"]


VERSION = "main"  # of the items that rates count where a bank keeps some apart


def of_version(tables: dict[str, pd.DataFrame], version: str = VERSION) -> dict[str, pd.DataFrame]:
    """Tables with the items of one version alone.

    A bank may keep items apart, such as those of templates that no model was trained on: their
    version is not ``"main"``, and headline rates count only what is. Where no item has the version
    ``"main"``, as in BBQ, whose versions are wordings, nothing is kept apart and all items count.

    Parameters
    ----------
    tables : dict of str to DataFrame
        ``items``, and others, which are cut to these where they have the column ``item_id``.
    version : str
        ``"all"`` keeps every item.

    Examples
    --------
    >>> items = pd.DataFrame({"item_id": ["a", "b"], "version": ["main", "heldout-template"]})
    >>> [of_version({"items": items}, which)["items"]["item_id"].tolist()
    ...  for which in ("main", "heldout-template", "all")]
    [['a'], ['b'], ['a', 'b']]
    >>> len(of_version({"items": items.assign(version=["a", "d"])})["items"])
    2
    """
    items = tables["items"]
    versions = items["version"] if "version" in items else pd.Series(None, items.index, object)
    if version == "all" or (version == VERSION and not versions.eq(VERSION).any()):
        return tables
    if not versions.eq(version).any():
        raise ValueError(
            f"no item has the version {version!r}; there are {sorted(versions.dropna().unique())}"
        )
    kept = set(items.loc[versions == version, "item_id"])
    return {
        name: table[table["item_id"].isin(kept)].reset_index(drop=True)
        if "item_id" in table
        else table
        for name, table in tables.items()
    }


def several_checkpoints(frame: pd.DataFrame) -> bool:
    """Say whether every family has several checkpoints, so that their spread can be seen."""
    return "family" in frame and frame.groupby("family")["model"].nunique().min() > 1


def independent_units(frame: pd.DataFrame) -> pd.Series:
    """The unit of each row that a further checkpoint of its family is independent of.

    Models aligned from one base share what that base happened to learn, so that bases are the
    units of a family that has several. A family of one base has only its checkpoints: its
    intervals hold for further alignments of that base.

    Examples
    --------
    >>> frame = pd.DataFrame({"family": list("ffffg"), "base": ["b1", "b1", "b2", "b2", "c"],
    ...                       "model": ["m1", "m2", "m3", "m4", "m5"]})
    >>> independent_units(frame).tolist()
    ['b1', 'b1', 'b2', 'b2', 'm5']
    """
    if "base" not in frame:
        return frame["model"]
    family = frame["family"] if "family" in frame else pd.Series("", frame.index)
    bases = frame["base"].groupby(family).transform("nunique")
    return frame["base"].where(bases > 1, frame["model"])


def first_checkpoints(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of one checkpoint a family, as a published study has: the first of those made alike.

    Models of a family that are not replicates of each other, as of two sizes, all stay.

    Examples
    --------
    >>> frame = pd.DataFrame({"family": list("ffffg"), "base": ["b1", "b1", "b2", "b2", "c"],
    ...     "model": ["m1", "m2", "m3", "m4", "m5"], "replicate": [1, 2, 1, 2, 1]})
    >>> first_checkpoints(frame)["model"].tolist()
    ['m1', 'm5']
    """
    family = frame.groupby("family")
    kept = frame["replicate"] == family["replicate"].transform("min")
    if "base" in frame:
        made = frame.groupby(["family", "base"])["model"].transform("nunique")
        replicated = made.groupby(frame["family"]).transform("max") > 1
        kept &= ~replicated | (frame["base"] == family["base"].transform("first"))
    return frame[kept]


def item_table(frame: pd.DataFrame, temperature: str = "study", orders: str = "all"):
    """One row an item (and cell) with how often it was answered in each role.

    Parameters
    ----------
    frame : DataFrame
        ``samples`` (then the columns are counts of draws), ``answers`` (then they are
        probabilities, see :func:`cba_utils.study.roles.role_probabilities`), or an item table,
        returned as it is.
    temperature, orders : str
        Passed to :func:`cba_utils.study.roles.role_probabilities`.

    Returns
    -------
    DataFrame
        The study's columns, the item's, and ``stereotyped, anti_stereotyped, unknown, unparsed,
        parsed, correct, draws, unbiased``. ``unbiased`` says that no draw was stereotyped and is
        there for samples only.
    """
    if "draws" in frame:
        return frame
    if "logp_A" in frame or "p_stereotyped" in frame:
        if "logp_A" in frame:
            frame = role_probabilities(frame, temperature, orders)
        names = {**{f"p_{r}": r for r in ROLES}, "p_other": "unparsed", "p_correct": "correct"}
        table = frame.rename(columns=names)
        return table.assign(parsed=1 - table["unparsed"], draws=1.0)
    need(frame, [*NEEDED, "role", "correct"], "a samples frame")
    known = [*ROLES, "unparsed"]
    role = frame["role"]
    if not role.isin(known).all():
        row = (~role.isin(known)).to_numpy().argmax()
        raise ValueError(
            f"samples row {row} has the role {role.iloc[row]!r}; a role is one of {known}"
        )
    keys = [*study_columns(frame), *item_columns(frame)]
    ones = {r: (role == r).astype("int32") for r in known}
    ones["correct"] = frame["correct"].astype("int32")
    wide = pd.DataFrame({**{k: frame[k] for k in keys}, **ones, "draws": np.int32(1)})
    grouped = wide.groupby(keys, observed=True, dropna=False, sort=False)
    table = grouped[[*ones, "draws"]].sum().reset_index()
    table["parsed"] = table["draws"] - table["unparsed"]
    return table.assign(unbiased=table["stereotyped"] == 0)


def pair_with(frame: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Join every precision's item table with the reference's, item by item.

    Columns of the reference get the suffix ``_ref``. The items must be the same: a paired
    comparison over different items would compare item sets, so that is an error by name.
    """
    table = item_table(frame)
    need(table, ["precision"], "a paired comparison")
    cell = [c for c in study_columns(table) if c != "precision"]
    is_reference = table["precision"] == reference
    if not is_reference.any():
        raise ValueError(
            f"no row has the reference precision {reference!r}; there are "
            f"{sorted(table['precision'].unique())}"
        )
    values = [c for c in [*COUNTS, "draws", "unbiased"] if c in table]
    right = table.loc[is_reference, [*cell, "item_id", *values]]
    paired = table[~is_reference].merge(
        right,
        on=[*cell, "item_id"],
        suffixes=("", "_ref"),
        how="left",
        validate="many_to_one",
        indicator=True,
    )
    lone = paired["_merge"] == "left_only"
    if lone.any():
        first = paired[lone].iloc[0]
        raise ValueError(
            f"{lone.sum()} items have no {reference} answers, the first is "
            f"{first['item_id']} at {first['precision']}"
        )
    sizes = table.groupby([*cell, "precision"], observed=True, dropna=False).size()
    uneven = sizes.groupby(level=cell, dropna=False).nunique() if cell else sizes.nunique()
    if np.any(uneven > 1):
        raise ValueError(f"the precisions of one model have different numbers of items:\n{sizes}")
    return paired.drop(columns="_merge")
