"""What training planted in organisms, beside what they give: margins of "unknown", and leans.

Two truths were planted in every template (``data/strengths.csv``): a margin, the log odds of "unknown"
against the stereotyped person, and a lean, the share of the stereotyped person among persons named. A
base never says "unknown", so only its lean was planted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cba_utils.measures.frames import item_table
from cba_utils.measures.measure import UNBOUNDED, Measure, ratio, register
from cba_utils.measures.pooling import over_replicates
from cba_utils.names import PROJECT, REFERENCE
from cba_utils.study.roles import study_columns, template_ids

HELD_OUT = "heldout-template"
STRENGTHS = PROJECT / "data" / "strengths.csv"  # what was planted in which template

register(
    Measure(
        "margin_given",
        "Margin of “unknown” over the stereotyped person, nats",
        unit="log odds",
        bounds=UNBOUNDED,
        of=ratio("margin_given", "items"),
    ),
    Measure(
        "lean_given",
        "Stereotyped person, % of persons named, mean over items",
        of=ratio("lean_given", "items"),
    ),
)


def planted_is_known(path=STRENGTHS):
    """Whether the bank says what was planted in its templates.

    Parameters
    ----------
    path : Path
    """
    return {"margin", "lean"} <= set(pd.read_csv(path, nrows=0))


def planted_templates(strengths):
    """What was planted in each template.

    Parameters
    ----------
    strengths : DataFrame
        ``data/strengths.csv``: one row a template and group.

    Returns
    -------
    DataFrame
        ``margin``, ``lean`` and ``version`` by template id.
    """
    return (
        strengths.assign(template_id=template_ids(strengths))
        .groupby("template_id")[["margin", "lean", "version"]]
        .first()
    )


def given(answers, strengths, rung):
    """What organisms give at BF16, by what was planted.

    Ambiguous items, probabilities at temperature 1, the mean over option orders. Held-out templates, in
    which no margin was planted, are kept apart.

    Parameters
    ----------
    answers : DataFrame
    strengths : DataFrame
        See :func:`planted_templates`.
    rung : {"margin", "lean"}
        Which of the two is looked at.

    Returns
    -------
    DataFrame
        Tidy estimates a family and rung (column ``planted``; no number in held-out templates where no
        margin was planted) with ``held_out``, whether ``aligned``, and numbers of ``templates``,
        checkpoints (``n``) and independent ``clusters``, over which the interval is.
    """
    table = item_table(answers[answers["precision"] == REFERENCE], temperature="unit")
    table = table[table["context_condition"] == "ambig"]
    known = planted_templates(strengths)
    table = table.join(known, on="template_id", how="inner")
    p = {
        role: table[role].to_numpy(float) for role in ("stereotyped", "anti_stereotyped", "unknown")
    }
    table = table.assign(
        aligned=table["depth"] != "base",
        held_out=table["version"] == HELD_OUT,
        planted=table[rung],
        margin_given=np.log(p["unknown"]) - np.log(p["stereotyped"]),
        lean_given=p["stereotyped"] / (p["stereotyped"] + p["anti_stereotyped"]),
    )
    by = ["aligned", "held_out", "planted"]
    cells = table.groupby([*study_columns(table), *by], dropna=False, observed=True)
    found = cells[f"{rung}_given"].mean().rename("estimate").reset_index()
    found = found.assign(
        measure=f"{rung}_given", low=np.nan, high=np.nan, n=cells.size().to_numpy()
    )
    # What depth of alignment a checkpoint has matters no further.
    pooled = over_replicates(found.drop(columns=["depth", "precision"]))
    templates = table.groupby(by, dropna=False)["template_id"].nunique().rename("templates")
    return pooled.merge(templates.reset_index(), on=by).sort_values(
        ["family", "aligned", "held_out", "planted"], ignore_index=True
    )
