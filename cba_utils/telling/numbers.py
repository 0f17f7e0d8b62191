"""Numbers as they are printed: one function a kind of number, and what an interval lets one say.

Templates of chapters use these as filters (``{{ row | interval }}``), tables as formats. Nothing here
knows a measure's name: a function takes a number, or a row with ``estimate``, ``low`` and ``high``.
"""

import numpy as np
import pandas as pd

ABSENT = "not measured in this study"
UNDEFINED = "not defined"
ABOVE, BELOW, NOT_TOLD_APART = "above", "below", "not told apart"


def percent(value, digits=1):
    r"""A fraction as a percentage, with a proper minus sign.

    Examples
    --------
    >>> percent(0.0312)
    '3.1\xa0%'
    >>> percent(-0.2), percent(-0.0001)
    ('−20.0\xa0%', '0.0\xa0%')
    """
    if np.isnan(value):
        return UNDEFINED
    text = f"{100 * value:.{digits}f}"
    # what rounds to zero has no sign
    text = text if float(text) else text.removeprefix("-")
    return f"{text}\u00a0%".replace("-", "−")


def interval(row, digits=1):
    r"""A rate with its interval, from a row with estimate, low and high.

    Examples
    --------
    >>> import pandas as pd
    >>> interval(pd.Series({"estimate": 0.031, "low": 0.02, "high": 0.05}))
    '3.1\xa0% (2.0 to 5.0)'
    >>> interval({"estimate": 0.5, "low": np.nan, "high": np.nan})  # one unit shows no spread
    '50.0\xa0% (no interval)'
    """
    if np.isnan(row["estimate"]):
        return UNDEFINED
    if np.isnan(row["low"]):
        return f"{percent(row['estimate'], digits)} (no interval)"
    low, high = (percent(row[k], digits).removesuffix("\u00a0%") for k in ("low", "high"))
    return f"{percent(row['estimate'], digits)} ({low} to {high})"


def measured(row, text=interval):
    """An estimate with its interval, or that there is none: ``row`` may be None.

    Examples
    --------
    >>> measured(None)
    'not measured in this study'
    """
    return ABSENT if row is None else text(row)


def defined(text):
    """A format for numbers of which some may not be defined.

    Examples
    --------
    >>> list(map(defined("{:.1f}".format), (0.25, np.nan)))
    ['0.2', 'not defined']
    """
    return lambda value: UNDEFINED if np.isnan(value) else text(value)


def in_points(value, digits=1):
    """A number of points; what rounds to zero has no sign.

    Examples
    --------
    >>> in_points(-1.25), in_points(-0.01)
    ('−1.2', '0.0')
    """
    if np.isnan(value):
        return UNDEFINED
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def in_hundredths(value, digits=1):
    """A fraction or difference of fractions, in points.

    Examples
    --------
    >>> in_hundredths(-0.0125)
    '−1.2'
    """
    return in_points(100 * value, digits)


def scores(row, digits=1):
    """A bias score with its interval, in points.

    Examples
    --------
    >>> scores({"estimate": -1.0, "low": -2.0, "high": 3.25})
    '−1.0 (−2.0 to 3.2)'
    """
    return _with_ends(row, lambda value: in_points(value, digits))


def _with_ends(row, text):
    """An estimate with the ends of its interval, as far as it has them."""
    if np.isnan(row["estimate"]):
        return UNDEFINED
    if np.isnan(row["low"]):
        return f"{text(row['estimate'])} (no interval)"
    if np.isinf(row["high"]):
        return f"{text(row['estimate'])} ({text(row['low'])} or more)"
    return f"{text(row['estimate'])} ({text(row['low'])} to {text(row['high'])})"


def points(row, digits=1):
    """A change of a rate with its interval, in points.

    Examples
    --------
    >>> points({"estimate": -0.01, "low": -0.02, "high": 0.0325})
    '−1.0 (−2.0 to 3.2)'
    """
    return scores({name: 100 * row[name] for name in ("estimate", "low", "high")}, digits)


def factor(row, digits=2):
    """A mean of logarithms with its interval, as the factor it stands for.

    Examples
    --------
    >>> factor({"estimate": 0.0, "low": np.log(0.5), "high": np.log(2)})
    '1.00 (0.50 to 2.00)'
    """
    low, high = np.exp(row["low"]), np.exp(row["high"])
    return f"{np.exp(row['estimate']):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def odds_text(row, digits=2):
    """An odds ratio with its interval.

    Examples
    --------
    >>> odds_text({"estimate": 2.0, "low": 1.5, "high": 3.0})
    '2.00 (1.50 to 3.00)'
    """
    if np.isnan(row["estimate"]):
        return "not defined (too few stereotyped answers)"
    return f"{row['estimate']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def times(row, digits=1):
    """A ratio with its interval.

    Examples
    --------
    >>> times({"estimate": 2.0, "low": 1.5, "high": 3.0})
    '2.0 (1.5 to 3.0)'
    """
    return _with_ends(row, f"{{:.{digits}f}}".format)


def p_text(p):
    """A p-value.

    Examples
    --------
    >>> p_text(0.00002), p_text(0.0312)
    ('< 0.001', '0.031')
    """
    if np.isnan(p):
        return "none"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def span(ends, digits=1, text=None):
    """From the least to the greatest of those numbers that are; one number where both print alike.

    Examples
    --------
    >>> span([2.45, 0.864, 1.0], 2), span((0.5, 0.501))
    ('0.86 to 2.45', '0.5')
    """
    text = text or (lambda value: in_points(value, digits))
    ends = [value for value in ends if not np.isnan(value)] or [np.nan]
    return " to ".join(dict.fromkeys([text(min(ends)), text(max(ends))]))


def percents(values, digits=1):
    r"""The same of rates.

    Examples
    --------
    >>> percents([0.05, 0.02]).replace("\u00a0", " ")
    '2.0 % to 5.0 %'
    """
    return span(values, text=lambda value: percent(value, digits))


def timing(value):
    """Two or three digits, no more than a repeated timing carries.

    Examples
    --------
    >>> timing(1234.5), timing(12.34), timing(0.5678)
    ('1,230', '12.3', '0.57')
    """
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(value, digits=0):
    """A number far from one.

    Examples
    --------
    >>> power_of_ten(1e-5), power_of_ten(1.23e-6, 1), power_of_ten(2e-6)
    ('10⁻⁵', '1.2·10⁻⁶', '2·10⁻⁶')
    """
    if np.isnan(value):
        return UNDEFINED
    front, _, power = f"{value:.{digits}e}".partition("e")
    return f"{'' if front == '1' else f'{front}·'}10{str(int(power)).translate(_RAISED)}"


def count(value):
    """A whole number with commas.

    Examples
    --------
    >>> count(12148.0)
    '12,148'
    """
    return f"{value:,.0f}"


def large(value):
    """A positive number of any size, with commas.

    Examples
    --------
    >>> large(12.345), large(2480.4)
    ('12.3', '2,480')
    """
    return f"{value:,.{0 if value >= 100 else 1}f}"


def published(table, quantity, precision=None):
    r"""A published figure, see `measures.published.load_published`.

    Examples
    --------
    >>> row = {"quantity": "items", "precision": None, "low": 5.0, "high": 8.0, "unit": "percent"}
    >>> published(pd.DataFrame([row]), "items")
    '5 to 8\xa0%'
    """
    row = _published_row(table, quantity, precision)
    unit = "\u00a0%" if row["unit"].startswith("percent") else ""
    if np.isnan(row["low"]):
        return f"at most {row['high']:g}{unit}"
    if row["low"] == row["high"]:
        return f"{row['high']:,g}{unit}"
    return f"{row['low']:g} to {row['high']:g}{unit}"


def source(table, quantity, precision=None):
    """Where a published figure stands."""
    row = _published_row(table, quantity, precision)
    return row["source"] if pd.isna(row["note"]) else f"{row['source']}; {row['note']}"


def _published_row(table, quantity, precision):
    rows = table[table["quantity"] == quantity]
    rows = rows if precision is None else rows[rows["precision"] == precision]
    if len(rows) != 1:
        raise ValueError(
            f"{len(rows)} published figures are {quantity!r} at {precision!r}, not one"
        )
    return rows.iloc[0]


def spoken(row, text=interval, end=percent):
    r"""An estimate with its interval; a mean over models names those at both ends.

    Examples
    --------
    >>> row = {"estimate": 0.2, "low": 0.1, "high": 0.3, "least": 0.0, "least_model": "m",
    ...        "most": 0.4, "most_model": "p"}
    >>> spoken(row).replace("\u00a0", " ")
    '20.0 % (10.0 to 30.0), from 0.0 % (m) to 40.0 % (p)'
    """
    lone = pd.isna(row.get("most_model")) or row["least_model"] == row["most_model"]
    if lone:
        return text(row)
    return (
        f"{text(row)}, from {end(row['least'])} ({row['least_model']}) to "
        f"{end(row['most'])} ({row['most_model']})"
    )


def spoken_scores(row):
    """A bias score as `spoken` says a rate.

    Examples
    --------
    >>> spoken_scores({"estimate": 2.0, "low": 1.0, "high": 3.0, "most_model": None})
    '2.0 (1.0 to 3.0)'
    """
    return spoken(row, scores, in_points)


def reading(row, null=0.0, digits=None):
    """What an interval lets one say about an estimate beside ``null``.

    Parameters
    ----------
    row : mapping
        With ``low`` and ``high``.
    null : float
        The value that stands for no effect.
    digits : int, optional
        Decimals that are printed: an effect that these would not show is none.

    Returns
    -------
    {"above", "below", "not told apart"}
        An estimate without an interval is told apart from nothing, and neither is one whose interval has no
        width: replicates that came out equal, such as shares at 0 or 1, do not say how sure they are.

    Examples
    --------
    >>> reading({"low": 0.01, "high": 0.2}), reading({"low": 0.1, "high": 0.4}, null=0.5)
    ('above', 'below')
    >>> reading({"low": 0.0001, "high": 0.0002}, digits=3), reading({"low": np.nan, "high": np.nan})
    ('not told apart', 'not told apart')
    >>> reading({"low": 0.0, "high": 0.0}, null=0.5)
    'not told apart'
    """
    low, high = row["low"], row["high"]
    if low == high:
        return NOT_TOLD_APART
    if digits is not None:
        low, high = round(low, digits), round(high, digits)
    if low > null:
        return ABOVE
    return BELOW if high < null else NOT_TOLD_APART


# What templates can write behind a bar.
FILTERS = {
    f.__name__: f
    for f in (
        percent,
        interval,
        measured,
        in_points,
        in_hundredths,
        scores,
        points,
        factor,
        odds_text,
        times,
        p_text,
        span,
        percents,
        count,
        timing,
        large,
        spoken,
        spoken_scores,
        published,
        source,
    )
}
