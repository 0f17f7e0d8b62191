"""Phrases for what differs from family to family: one function a kind of phrase, used as filters."""

import numpy as np

from cba_utils.telling.numbers import in_hundredths, in_points, percent

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def number(count):
    """A small count in words.

    Examples
    --------
    >>> number(3), number(12)
    ('three', '12')
    """
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"


def listed(names, last="and"):
    """Names as a sentence lists them.

    Examples
    --------
    >>> listed(["a"]), listed("ab"), listed("abc", "or")
    ('a', 'a and b', 'a, b or c')
    """
    names = list(map(str, names))
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def among(names, everyone, negated=False):
    """Where something holds: in all families, in some that are named, or in none.

    Parameters
    ----------
    names, everyone : iterable of str
    negated : bool
        Whether the sentence says that something does not hold there.

    Examples
    --------
    >>> among("ab", "ab", True), among("ac", "abc", True)
    ('in either family', 'in a or c')
    >>> among(["a"], ["a"]), among("ab", "ab"), among("abc", "abc"), among("ac", "abc"), among("", "ab")
    ('in a', 'in both families', 'in all three families', 'in a and c', 'in no family')
    """
    names, everyone = list(names), list(everyone)
    if not names:
        return "in no family"
    if len(names) == len(everyone) > 1:
        if negated:
            return "in either family" if len(names) == 2 else "in any family"
        return "in both families" if len(names) == 2 else f"in all {number(len(names))} families"
    return f"in {listed(names, 'or' if negated else 'and')}"


def places(readings, which="above", negated=False):
    """At which precisions something holds, and in which families; nothing where it holds nowhere.

    Parameters
    ----------
    readings : dict of str to Readings
        By precision.
    which : {"above", "below", "rest"}
    negated : bool
        Whether the sentence says that something does not hold there.

    Examples
    --------
    >>> from cba_utils.telling.study import Readings, Told
    >>> one, two = (Readings(Told(n, None, r) for n, r in zip("ab", rs)) for rs in (
    ...     ("above", "not told apart"), ("above", "above")))
    >>> places({"q4": one, "q3": two})
    'at Q4 in a and at Q3 in both families'
    >>> places({"q4": two, "q3": two}), places({"q4": one}, "below")
    ('at Q4 and Q3 in both families', '')
    """
    groups: dict[str, list[str]] = {}
    for precision, found in readings.items():
        if getattr(found, which):
            where = among(getattr(found, which), found.names, negated)
            groups.setdefault(where, []).append(precision.upper())
    last = "or" if negated else "and"
    return listed([f"at {listed(at, last)} {where}" for where, at in groups.items()], last)


_TEXTS = {
    "percent": percent,
    "points": in_hundredths,
    "scores": in_points,
    "odds": lambda value: f"{np.exp(value):.2f}",
}


def across(readings, kind="percent"):
    r"""Estimates from the least to the greatest, each with its family's name.

    Parameters
    ----------
    readings : Readings
    kind : {"percent", "points", "scores", "odds"}
        What the estimates are: fractions, differences of fractions, scores, logarithms of odds.

    Examples
    --------
    >>> from cba_utils.telling.study import Readings, Told
    >>> found = Readings(Told(n, {"estimate": e}, "") for n, e in (("a", 0.2), ("b", 0.1)))
    >>> across(found).replace("\u00a0", " "), across(found[:1], "odds")
    ('10.0 % (b) to 20.0 % (a)', '1.22')
    """
    text = _TEXTS[kind]
    known = [(one.row["estimate"], one.name) for one in readings]
    known = sorted((value, name) for value, name in known if not np.isnan(value))
    if not known:
        return "not defined"
    (low, least), (high, most) = known[0], known[-1]
    if text(low) == text(high):
        return text(low) + (" in each family" if len(known) > 1 else "")
    return f"{text(low)} ({least}) to {text(high)} ({most})"


# What templates can write behind a bar.
FILTERS = {f.__name__: f for f in (number, listed, among, places, across)}
