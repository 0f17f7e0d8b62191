"""How far "unknown" is ahead of the stereotyped person, and how that changed."""

from __future__ import annotations

import pandas as pd

from cba_utils.measures.controls import lean_table
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import UNBOUNDED, Measure, measure, ratio, register
from cba_utils.names import REFERENCE
from cba_utils.study.roles import study_columns

register(
    Measure(
        "d_unknown_margin",
        "Margin of “unknown” against the stereotyped person, change since BF16, nats",
        unit="log odds",
        bounds=UNBOUNDED,
        of=ratio("moved", "items"),
    ),
)


def margin_changes(answers: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Change of the log odds of "unknown" against the stereotyped person.

    Mean over ambiguous items, at temperature 1 and over an item's option orders: measure
    ``d_unknown_margin``.

    Examples
    --------
    >>> from cba_utils.instrument.respondents import simulate_respondents
    >>> answers = simulate_respondents("bias", templates=8, precisions=["bf16", "q3"])
    >>> round(float(margin_changes(answers)["estimate"].iloc[0]), 1)  # what the stereotype gained
    -1.0
    """
    table, _ = lean_table(answers, reference, "unknown", "stereotyped")
    table = table[table["precision"] != reference]
    table = table.assign(moved=table["gap"] - table["gap_ref"])
    keys = study_columns(table)
    change = measure("d_unknown_margin")
    return estimates(table, [change], ["moved", "items"], keys, method="jackknife")
