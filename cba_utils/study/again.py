"""Ask a slice of a study's items again, and compare the answers with the records.

Whoever has the records of a study but not the machine that made them can so see, in minutes, whether
they are what the code gives. On another device products are rounded otherwise, so the probabilities
differ a little; how much they did is what the tolerance is taken from.
"""

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS, ORIGINAL
from cba_utils.names import RESULTS
from cba_utils.study.cell import select_items
from cba_utils.study.protocol import cells
from cba_utils.study.tables import load_study

# What differs at most where only the arithmetic does. Measured on 200 items of the study smollm2, records of
# a GPU in bf16 against a CPU in fp32: at BF16 0.054, on average 0.014, and 88 % of the likeliest letters the
# same; at Q4 0.039, 0.007 and 94 %. BF16 products on the CPU differ by as much from either.
TOLERANCE = {"largest": 0.1, "mean": 0.02}
_COLUMNS = [f"logp_{x}{suffix}" for suffix in ("", "_t") for x in LETTERS]
_ROLES = [f"role_{x}" for x in LETTERS]


def again(study, limit=200, precisions=None, results=RESULTS):
    """Compare a slice of a study's records with the answers that are given now.

    Parameters
    ----------
    study : dict
        From `cba_utils.study.protocol.read_study`.
    limit : int
        Items that are asked, in one order of the options; the same choice every time.
    precisions : list of str, optional
        All of the study's by default.
    results : Path
        Folder of all studies' results.

    Returns
    -------
    DataFrame
        One row a model and precision: ``items``; ``same``, the share of items whose likeliest letter is
        the recorded one; ``largest`` and ``mean``, the differences of a letter's probability at
        temperature 1, and ``largest_t`` and ``mean_t`` at the study's.

    Raises
    ------
    ValueError
        If a precision is not in the study, or an item asked now is not in the records in the same roles.
    """
    from cba_utils.answering.checkpoints import load_model
    from cba_utils.answering.scoring import score_letters

    grid = cells(study)
    unknown = set(precisions or []) - {cell.precision for cell in grid}
    if unknown:
        known = ", ".join(dict.fromkeys(cell.precision for cell in grid))
        raise ValueError(f"study {study['name']!r} has no {min(unknown)!r}; it has {known}")
    recorded = load_study(study["name"], results)["answers"]
    recorded = recorded[recorded["order"] == ORIGINAL]
    rows = []
    for cell in grid:
        if precisions and cell.precision not in precisions:
            continue
        parameters = cell.parameters()
        whole = parameters["limit"] or np.inf
        items = select_items({**parameters, "limit": int(min(limit, whole))})
        before = recorded[
            (recorded["model"] == cell.name) & (recorded["precision"] == cell.precision)
        ]
        before = before.set_index("item_id").reindex(items["item_id"])
        loaded = load_model(cell.model, cell.precision, cell.compute, cell.adapter)
        now = score_letters(
            loaded, items, "original", cell.temperature, prompt=cell.prompt, date=cell.date
        ).set_index("item_id")
        other = (before[_ROLES].astype(object) != now[_ROLES].astype(object)).any(axis=1)
        if other.any():
            raise ValueError(
                f"item {other.idxmax()!r} is not in the records of study {study['name']!r} in these "
                f"roles ({other.sum()} of {len(items)}): the items are not those that were asked"
            )
        rows.append({"model": cell.name, "precision": cell.precision, **_compared(before, now)})
    return pd.DataFrame(rows)


def beyond(found):
    """Rows of `again` that differ by more than arithmetic explains, see `TOLERANCE`.

    Parameters
    ----------
    found : DataFrame

    Returns
    -------
    DataFrame
    """
    return found[(found[[*TOLERANCE]] > pd.Series(TOLERANCE)).any(axis=1)]


def _compared(before, now):
    p, q = (np.exp(frame[_COLUMNS].to_numpy(float)) for frame in (before, now))
    apart, count = np.abs(p - q), len(LETTERS)
    unit, study = apart[:, :count], apart[:, count:]
    return {
        "items": len(p),
        "same": (p[:, :count].argmax(axis=1) == q[:, :count].argmax(axis=1)).mean(),
        "largest": unit.max(),
        "mean": unit.mean(),
        "largest_t": study.max(),
        "mean_t": study.mean(),
    }
