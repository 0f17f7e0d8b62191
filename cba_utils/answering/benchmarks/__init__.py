"""Benchmarks in BBQ's shape: what a row of theirs says, and the role of every answer.

A module in this folder that holds a ``BENCHMARK`` is one more benchmark; nothing else names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules


@dataclass(frozen=True)
class Benchmark:
    """How rows of one benchmark are read.

    Attributes
    ----------
    name : str
    claims : callable
        Whether a raw row (a dict) is one of this benchmark.
    adapt : callable
        A raw row in BBQ's fields: ``example_id``, ``category``, ``question_index``,
        ``question_polarity``, ``context_condition``, ``context``, ``question``, ``ans0`` to
        ``ans2``, ``answer_info``, ``additional_metadata``, ``label`` and, where the data say it
        themselves, ``target_label`` (the stereotyped answer, -1 where there is none).
    roles : callable
        For all adapted rows of a file, the indices of the stereotyped, the anti-stereotyped and
        the unknown answer of each; the first two are None where the rule defines no target.
    group : callable
        For an adapted row and an answer's name (``"ans0"``), the group of the person that this
        answer names, as measures by group and pages call it; None where the data leave it open.
    released : dict of str to int
        Rows of each category's file, None where the number is not held: a file that was cut shows.
    """

    name: str
    claims: Callable[[dict], bool]
    adapt: Callable[[dict], dict]
    roles: Callable[[list], list]
    group: Callable[[dict, str], str | None]
    released: dict

    def category(self, written):
        """A category as the benchmark's files are named, however a copy spells it.

        Examples
        --------
        >>> benchmark_of({"answer_info": {}, "additional_metadata": {}}).category("race_x_ses")
        'Race_x_SES'
        """
        return {name.lower(): name for name in self.released}.get(written.lower(), written)


@cache
def benchmarks():
    """All benchmarks, by the names of their modules.

    Returns
    -------
    tuple of Benchmark
    """
    modules = sorted(module.name for module in iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}").BENCHMARK for name in modules)


def benchmark_of(raw):
    """The benchmark that a row belongs to, None if there is none.

    Parameters
    ----------
    raw : dict
        A row as the file has it.

    Returns
    -------
    Benchmark or None
    """
    return next((known for known in benchmarks() if known.claims(raw)), None)
