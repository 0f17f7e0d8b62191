"""Who is hit: the lean and its change group by group, with a correction for many groups.

A mean over groups can be flat while the lean against one group grows and that against another
falls. So each group that a stereotype is about (the column ``target_group`` of items) is asked
alone. With many groups some would seem to move by luck: the p-values of all groups and precisions
that are looked at together are corrected by Holm's procedure, which bounds the chance of one false
finding among all of them by 5 %, however the groups hang together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats as sps

from cba_utils.measures.controls import LEAST_TEMPLATES, LEVEL, lean, lean_table
from cba_utils.measures.frames import several_checkpoints
from cba_utils.measures.intervals import ESTIMATE_COLUMNS
from cba_utils.measures.measure import measure
from cba_utils.measures.pooling import over_replicates
from cba_utils.measures.tests import adjust, change_tests
from cba_utils.names import REFERENCE
from cba_utils.study.roles import study_columns, template_ids

# A group is known by its category too: BBQ asks about one group in two of them.
BY = ("category", "target_group")
READINGS = ("grew", "turned", "shrank", "not told apart", "too few templates")


def group_sizes(items: pd.DataFrame, by: Sequence[str] = BY) -> pd.DataFrame:
    """Ambiguous items of every group, and the question templates that they come from.

    Examples
    --------
    >>> items = pd.DataFrame({"category": "Clan", "target_group": ["zorb", "zorb", "velk"],
    ...     "question_index": [1, 2, 1], "context_condition": "ambig", "item_id": list("abc")})
    >>> group_sizes(items)[["target_group", "items", "templates"]].to_numpy().tolist()
    [['velk', 1, 1], ['zorb', 2, 2]]
    """
    asked = items[items["context_condition"] == "ambig"]
    template = template_ids(asked)
    grouped = asked.assign(_template=template).groupby([*by], observed=True)
    sizes = grouped.agg(items=("item_id", "nunique"), templates=("_template", "nunique"))
    return sizes.reset_index()


def group_leans(
    answers: pd.DataFrame,
    precisions: Sequence[str],
    by: Sequence[str] = BY,
    reference: str = REFERENCE,
) -> pd.DataFrame:
    """Did the lean against any single group change, and how?

    The lean is that of :func:`cba_utils.measures.controls.lean`. Over checkpoints where every family
    has several (their bases are the units), else for each model over the templates of the group. A
    group with fewer than six templates is shown and not tested: a spread over so few tells nothing.

    Parameters
    ----------
    answers : DataFrame
        Exact answers with the columns ``by``.
    precisions : sequence of str
        Those that are looked at together, and corrected for together.
    by : sequence of str
        What a group is known by.

    Returns
    -------
    DataFrame
        ``[model or nothing, *by], precision, lean`` (log odds at the reference), ``estimate, low,
        high`` of the change, ``n`` (what the interval is over: checkpoints, or items), ``templates,
        p, p_holm, p_bh`` and ``reading``, one of

        - ``"grew"``: the lean to the stereotyped person rose, by more than makes a contrary lean flat
          (:func:`cba_utils.measures.controls.grew`);
        - ``"turned"``: the same towards the other person;
        - ``"shrank"``: it came nearer to none, which flatter answers alone do as well;
        - ``"not told apart"`` from no change, after Holm's correction;
        - ``"too few templates"`` to be tested.
    """
    table, columns = lean_table(answers, reference)
    by = [*by]
    asked = [precision for precision in precisions if precision in set(table["precision"])]
    cells = lean(answers, by, reference)
    if several_checkpoints(answers):
        found = over_replicates(cells, ["family"])
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (found["estimate"] / found["error"]).abs()
        found["p"] = 2 * sps.t.sf(t, found["df"])
        keys: list[str] = []
    else:
        keys = [c for c in study_columns(table) if c != "precision"]
        tests = change_tests(table, [measure("d_log_gap")], columns, [*keys, "precision", *by])
        on = [*keys, "precision", *by, "measure"]
        found = cells.merge(tests[[*on, "p"]], on=on, how="left")
    templates = table.groupby(by, observed=True)["template_id"].nunique().rename("templates")
    before = found[(found["measure"] == "log_gap") & (found["precision"] == reference)]
    before = before[[*keys, *by, "estimate"]].rename(columns={"estimate": "lean"})
    found = found[(found["measure"] == "d_log_gap") & found["precision"].isin(asked)]
    found = found.merge(before, on=[*keys, *by]).merge(templates.reset_index(), on=by)
    enough = found["templates"] >= LEAST_TEMPLATES
    if keys:  # over checkpoints, the spread is not that of a few templates
        found["p"] = found["p"].where(enough)
    parts = (
        [adjust(part) for _, part in found.groupby(keys, sort=False)] if keys else [adjust(found)]
    )
    found = pd.concat(parts, ignore_index=True)
    found["reading"] = _read(found)
    found = found.sort_values("precision", key=lambda p: p.map(asked.index), kind="stable")
    names = ["lean", *ESTIMATE_COLUMNS[1:], "templates", "p", "p_holm", "p_bh", "reading"]
    return found[[*keys, *by, "precision", *names]].reset_index(drop=True)


def _read(found):
    lies = found["p_holm"] < LEVEL
    grew = lies & (found["low"] > np.maximum(0, -found["lean"]))
    turned = lies & (found["high"] < np.minimum(0, -found["lean"]))
    few = found["p"].isna()
    return np.select([few, grew, turned, lies], [READINGS[4], *READINGS[:3]], READINGS[3])
