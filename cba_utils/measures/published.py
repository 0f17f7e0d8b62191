"""The published figures as a table, each with its source."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

COLUMNS = ["quantity", "precision", "low", "high", "unit", "source", "note"]


def load_published(path=None) -> pd.DataFrame:
    """Load the published figures.

    Parameters
    ----------
    path : path or file, optional
        Another table in the same columns; by default the one that the package carries.

    Returns
    -------
    DataFrame
        ``quantity, precision, low, high, unit, source, note``; ``precision`` is empty where a
        figure has none, ``low`` is missing where only an upper bound was published, and ``note``
        where there is none.

    Examples
    --------
    >>> table = load_published()
    >>> int(table.set_index("quantity").loc["items", "high"])
    12148
    """
    shipped = files("cba_utils.measures").joinpath("published.csv")
    with shipped.open() if path is None else open(path) as file:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if list(table) != COLUMNS:
        raise ValueError(f"published figures: the columns are {list(table)}, wanted {COLUMNS}")
    for column in ("low", "high"):
        table[column] = _numbers(table, column)
    checks = {
        "quantity is empty": table["quantity"] == "",
        "unit is empty": table["unit"] == "",
        "source is empty: every figure names where it was read": table["source"] == "",
        "high is missing": table["high"].isna(),
        "low is above high": table["low"] > table["high"],
        "quantity and precision repeat an earlier row": table.duplicated(["quantity", "precision"]),
    }
    for what, wrong in checks.items():
        if wrong.any():
            raise ValueError(f"published figures, line {wrong.to_numpy().argmax() + 2}: {what}")
    return table.assign(note=table["note"].replace("", None))


def _numbers(table, column):
    numbers = pd.to_numeric(table[column].replace("", None), errors="coerce")
    wrong = numbers.isna() & (table[column] != "")
    if wrong.any():
        line = wrong.to_numpy().argmax()
        raise ValueError(
            f"published figures, line {line + 2}: {column} is "
            f"{table[column].iloc[line]!r}, not a number"
        )
    return numbers
