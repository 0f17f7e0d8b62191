"""What is known of a measure besides its number: one object a measure, and the register of all.

A frame of estimates names its measures in the column ``measure``. That name is a key: what the
measure is called on a figure, in which unit it is, where its scale ends, how it is pooled over
checkpoints and what it derives from is read from here, and never from the name itself.

A new measure is registered once, beside the function that computes it, in a module of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np


class Totals(Protocol):
    """Sums over items by column: numbers, or arrays of one number a resample."""

    def __getitem__(self, name: str, /) -> Any:
        """Return the total of a column."""


Statistic = Callable[[Totals], Any]

Unit = Literal["share", "score", "log odds", "bits", "relative", "ratio"]
Pooling = Literal["mean", "sums"]
Kind = Literal["observed", "expected", "placebo", "predicted", "excess", "change", "net", "beyond"]
UNBOUNDED = (-np.inf, np.inf)
SHARE = (0.0, 1.0)
SCORE = (-100.0, 100.0)


@dataclass(frozen=True)
class Measure:
    """A measure: how it is computed from totals, and everything else that is known of it.

    Parameters
    ----------
    name : str
        As it stands in the column ``measure`` of a frame of estimates.
    title : str, optional
        The title of a panel that shows it, with its unit; the name where none is given.
    label : str, optional
        The name of its series where several measures share a panel.
    unit : {"share", "score", "log odds", "bits", "relative", "ratio"}
        A share is a fraction and shown in percent, as is a relative change; a score has BBQ's
        scale of -100 to 100.
    bounds : tuple of float
        Where its scale ends. An interval is cut there.
    pool : {"mean", "sums"}
        How it is pooled over checkpoints: as the mean of their estimates, or as sums over sums. The
        second is for shares of few items or answers, of very unlike numbers in the cells of a
        study, so that a share of one answer weighs as one answer.
    counts : str
        What ``n`` counts, in words.
    of : callable, optional
        Returns it from totals over items. None in the register where a function computes it from
        totals of its own, see :meth:`computed`.
    per : str, optional
        The total that ``n`` gives, such as a denominator that is small in some cells; without it
        ``n`` is the number of items.
    group : str
        Measures of one group are computed together, and so are their changes since a reference:
        ``"rates"`` by :func:`cba_utils.measures.rates.role_rates`, ``"ambiguous scores"`` and
        ``"disambiguated scores"`` by :func:`cba_utils.measures.rates.bias_scores`.
    kind : str
        What it is to its ``base``: what fresh draws let expect of it (``"expected"``), what they
        would give at the reference itself (``"placebo"``), what a model predicts (``"predicted"``),
        its ``"excess"`` over one of these, its ``"change"`` since the reference, gains less losses
        (``"net"``), or how far it goes ``"beyond"`` its mirror image. One that derives from nothing
        is ``"observed"``.
    base : str, optional
        The name of the measure that it derives from.
    mirror : str, optional
        The name of the same measure of anti-stereotyped answers.

    Examples
    --------
    >>> flips = Measure("flips", "First choice changed, % of items", of=ratio("flip", "items"))
    >>> flips.of({"flip": 3, "items": 4}), flips.bounds
    (0.75, (0.0, 1.0))
    """

    name: str
    title: str = ""
    label: str = ""
    unit: Unit = "share"
    bounds: tuple[float, float] = SHARE
    pool: Pooling = "mean"
    counts: str = "items"
    of: Statistic | None = None
    per: str | None = None
    group: str = ""
    kind: Kind = "observed"
    base: str | None = None
    mirror: str | None = None

    def __post_init__(self):
        if (self.kind == "observed") != (self.base is None):
            raise ValueError(
                f"measure {self.name!r}: kind is {self.kind!r} and base is {self.base!r}; "
                f"a measure that derives from another has both, any other neither"
            )
        if not self.title:
            object.__setattr__(self, "title", self.name)

    def computed(self, of: Statistic, per: str | None = None, bounds=None) -> Measure:
        """Return it with the function of totals that gives it, and the total that ``n`` is."""
        return replace(self, of=of, per=per, bounds=bounds or self.bounds)

    def statistic(self) -> Statistic:
        """Return the function of totals that gives it; an error says if there is none."""
        if self.of is None:
            raise ValueError(
                f"measure {self.name!r} is no function of totals by itself; "
                f"give it one with .computed(of)"
            )
        return self.of

    def change(self) -> Measure:
        """Return its change since a reference, whose totals have the suffix ``_ref``."""
        now = self.statistic()
        return Measure(
            f"d_{self.name}",
            f"{self.title}: change since BF16",
            unit=self.unit,
            bounds=difference(self.bounds),
            of=minus(now, suffixed(now, "_ref")),
            kind="change",
            base=self.name,
        )


def ratio(numerator: str, denominator: str) -> Statistic:
    """Return the ratio of two totals, as a function of totals.

    Examples
    --------
    >>> ratio("hits", "tries")({"hits": 3.0, "tries": 4.0})
    0.75
    """
    return lambda total: total[numerator] / total[denominator]


def minus(one: Statistic, other: Statistic) -> Statistic:
    """Return the difference of two functions of the same totals."""
    return lambda total: one(total) - other(total)


def suffixed(of: Statistic, suffix: str) -> Statistic:
    """Return the same function of the totals whose names end in ``suffix``.

    Examples
    --------
    >>> suffixed(ratio("hits", "tries"), "_ref")({"hits_ref": 1.0, "tries_ref": 2.0})
    0.5
    """
    return lambda total: of(_Suffixed(total, suffix))


class _Suffixed:
    def __init__(self, total: Totals, suffix: str):
        self.total, self.suffix = total, suffix

    def __getitem__(self, name):
        return self.total[f"{name}{self.suffix}"]


def difference(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return where the scale of a difference of two measures ends.

    Examples
    --------
    >>> difference(SHARE)
    (-1.0, 1.0)
    """
    return bounds[0] - bounds[1], bounds[1] - bounds[0]


_KNOWN: dict[str, Measure] = {}


def register(*measures: Measure) -> tuple[Measure, ...]:
    """Add measures to the register, and return them; those of a group, with their changes.

    Raises
    ------
    ValueError
        If a measure has the name of another one.
    """
    for one in measures:
        if _KNOWN.setdefault(one.name, one) != one:
            raise ValueError(f"two measures are named {one.name!r}; give one another name")
        if one.group:
            _KNOWN[f"d_{one.name}"] = one.change()
    return measures


def members(group: str) -> list[Measure]:
    """Return the measures of a group, in the order in which they were registered.

    Examples
    --------
    >>> from cba_utils.measures import rates
    >>> [one.name for one in members("rates")]
    ['srs', 'usr', 'anti_rate', 'unparsed_rate']
    """
    return [one for one in _KNOWN.values() if one.group == group]


def measure(name: str) -> Measure:
    """Return what is known of the measure of this name.

    Raises
    ------
    KeyError
        If no module of this folder registers it.

    Examples
    --------
    >>> measure("lost_bias").pool
    'sums'
    """
    if name not in _KNOWN:
        _load_all()
    if name not in _KNOWN:
        raise KeyError(
            f"no measure is named {name!r}; register it with cba_utils.measures.measure.register, "
            f"beside the function that computes it"
        )
    return _KNOWN[name]


@cache
def _load_all():
    """Import every module of this folder: a name may come from a file, and not from a function."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        import_module(f"{__package__}.{path.stem}")


def known() -> list[Measure]:
    """Return all measures that the package registers."""
    _load_all()
    return list(_KNOWN.values())


def titles(*names: str) -> dict[str, str]:
    """Titles of measures by name, in the order given."""
    return {name: measure(name).title for name in names}


def labels(*names: str) -> dict[str, str]:
    """Names of series by measure, in the order given."""
    return {name: measure(name).label for name in names}


def derived(name: str, kind: Kind) -> Measure:
    """Return the measure of a kind that derives from another, or from that one's own base.

    Examples
    --------
    >>> derived("became_biased", "expected").name
    'became_biased_expected'
    >>> derived("became_biased_expected", "placebo").name
    'became_biased_placebo'
    """
    measure(name)
    base: str | None = name
    while base is not None:
        for one in _KNOWN.values():
            if one.base == base and one.kind == kind:
                return one
        base = measure(base).base
    raise KeyError(f"no {kind} is registered for the measure {name!r}")
