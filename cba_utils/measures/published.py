"""The published figures as a table, each with its source."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
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
        figure has none, ``low`` is missing where only an upper bound was published, and ``note`` where there
        is none.

    Examples
    --------
    >>> table = load_published()
    >>> int(table.set_index("quantity").loc["items", "high"])
    12148
    """
    source = files("cba_utils.measures").joinpath("published.csv") if path is None else path
    with source.open() if hasattr(source, "open") else open(source) as file:
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
        raise ValueError(f"published figures, line {line + 2}: {column} is "
                         f"{table[column].iloc[line]!r}, not a number")
    return numbers


def published_range(quantity: str, precision: str = "") -> tuple[float, float]:
    """Return (low, high) of a published quantity; low is NaN for an upper bound.

    Examples
    --------
    >>> published_range("items_became_biased", "q3")
    (6.0, 21.1)
    """
    table = load_published()
    known = table[table["quantity"] == quantity]
    if known.empty:
        raise KeyError(f"nothing is published as {quantity!r}; there is "
                       f"{sorted(set(table['quantity']))}")
    row = known[known["precision"] == precision]
    if row.empty:
        raise KeyError(f"{quantity} is not published for precision {precision!r}, only for "
                       f"{list(known['precision'])}")
    low, high = row.iloc[0][["low", "high"]]
    return float(low) if not np.isnan(low) else np.nan, float(high)
