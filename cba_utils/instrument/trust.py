"""How far a verdict can be trusted: how often it errs where nothing grew, and what it sees."""

from functools import cache

import pandas as pd

from cba_utils.instrument.verdicts import COVERAGE, DECISIONS, LEVEL, RESULT, SAME_LEVEL, VERDICTS

TOLERATED = (
    2 * LEVEL
)  # a verdict that errs more often than this somewhere is not to be trusted alone
# Truths by which the power of a verdict is told, by what it asks.
POWER = {
    "grew": ("rise 0.3", "rise 0.8"),
    "category": ("one category + 1", "rise 0.8"),
    "group": ("halves, odds flat", "rise 0.8"),
    "letter": ("letter drift",),
    "changed": ("noise", "rise 0.3"),
    "same": (),
    "same ratio": (),
}


@cache
def read_rates(path=RESULT):
    """How often each verdict said yes, by truth and way to decide, as ``cba instrument`` wrote it.

    Parameters
    ----------
    path : Path

    Returns
    -------
    DataFrame
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; make it with 'cba instrument'")
    return pd.read_csv(path)


def read_coverage():
    """How often each interval held the true value, for these items and for new templates."""
    return read_rates(COVERAGE)


def trust(verdict, decision, rates=None):
    """How often a verdict says yes where it should not, and where it should.

    Parameters
    ----------
    verdict : str
        One of ``verdicts.VERDICTS``.
    decision : {"one", "three", "bases"}
        From one checkpoint, from the mean of one checkpoint of each family, or over checkpoints.
    rates : DataFrame, optional
        The table to read, by default the shipped one.

    Returns
    -------
    dict
        ``title`` and ``asks`` of the verdict; ``n`` studies of each truth; ``level``, the share of
        wrong answers that it promises; ``worst``, the row of the
        truth at which it errs most (None where no answer is wrong), with ``truth``, ``leaning``,
        ``estimate``, ``low`` and ``high``; ``wrong``, all such rows, the worst first; ``trusted``,
        whether the worst is at most twice the nominal level; ``power``, one row a truth that it should
        see, the lower of those with and without a lean.

    Examples
    --------
    >>> trust("lean_grew", "bases")["trusted"]
    True
    >>> trust("mirror", "bases")["trusted"]
    False
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict must be one of {list(VERDICTS)}, not {verdict!r}")
    if decision not in DECISIONS:
        raise ValueError(f"decision must be one of {list(DECISIONS)}, not {decision!r}")
    table = read_rates() if rates is None else rates
    table = table[(table["verdict"] == verdict) & (table["decision"] == decision)]
    ranked = table.sort_values("estimate", ascending=False, kind="stable")
    wrong = ranked[ranked["should"] == "no"].to_dict("records")
    asks = VERDICTS[verdict].asks
    seen = [ranked[ranked["truth"] == name].iloc[-1].to_dict() for name in POWER[asks]]
    return {
        "verdict": verdict,
        "title": VERDICTS[verdict].title,
        "asks": asks,
        "n": int(table["n"].min()),
        "level": SAME_LEVEL if asks.startswith("same") else LEVEL,
        "worst": wrong[0] if wrong else None,
        "wrong": wrong,
        "trusted": bool(wrong) and wrong[0]["estimate"] <= TOLERATED,
        "power": seen,
    }
