"""A study from raw results that are already there: ``python -m cba_utils.study.notebooks import``.

Whoever holds JSONL of the published study's code gets the tables that ``records.collect`` makes
from cells, and with them the same reports. No model is run.
"""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.answering.items import COLUMNS, load_items
from cba_utils.answering.precisions import most_bits_first
from cba_utils.answering.prompts import LETTERS
from cba_utils.names import ITEM, PROJECT, RESULTS, STUDY
from cba_utils.study.provenance import SCHEMA_VERSION, code_version, items_hash
from cba_utils.study.published_jsonl import (
    item_number,
    read_records,
    with_roles,
)
from cba_utils.study.roles import counted_from_the_end, template_ids
from cba_utils.study.tables import write_study

# Runs of consecutive items a category that stand in for templates; see `template_runs`.
RUNS = 10
_LOGP = [
    f"{name}{suffix}"
    for suffix in ("", "_t")
    for name in (*(f"logp_{x}" for x in LETTERS), "mass_other")
]


def import_raw(name, folder, source=None, results=RESULTS):
    """Make a study's tables from a folder of JSONL in the format of the published code.

    Parameters
    ----------
    name : str
        The study's name. It must not be that of a file in ``config/``: the results of such a
        study are those of models that were run here.
    folder : str or Path
        Every ``*.jsonl`` in it is read.
    source : str, optional
        The items that were asked, as in `cba_utils.load_items`. They give texts and templates;
        without them `template_runs` stand in for templates.
    results : Path
        Folder of all studies' results.

    Returns
    -------
    Path
        Folder of the tables, as `cba_utils.study.tables.collect` makes them; ``answers`` and
        ``perplexity`` have no rows. ``undefined.parquet`` is beside them, see `as_published`.

    Raises
    ------
    ValueError
        Naming file and line, see `cba_utils.study.published_jsonl.read_jsonl`, or the item that does not fit
        the source.
    FileNotFoundError
        If the folder holds no JSONL.
    """
    imported_study(name)
    paths = sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.jsonl in it; RAW is the folder of the records")
    rows, told = read_records(paths)
    samples, items = with_roles(rows, told)
    for model, precisions in samples.groupby("model")["precision"].unique().items():
        if "bf16" not in precisions or len(precisions) < 2:
            raise ValueError(
                f"{folder}: model {model!r} has records at {', '.join(precisions)} "
                f"alone; a comparison needs bf16 (quant 16) and at least one other"
            )
    if source is None:
        items["template_id"] = template_runs(items)
    else:
        items = _with_source(items, source)
    undefined = as_published(rows, told, items)
    # The right answer of an ambiguous question is the unknown one.
    items = items.assign(context_condition="ambig", label=items["unknown_index"])
    items = items.reindex(columns=[*COLUMNS, "template_id"])
    samples = samples.merge(
        items[ITEM].drop(columns=["category", "context_condition"]), on="item_id"
    )
    own = {"family": samples["model"], "base": samples["model"], "replicate": 1, "depth": "full"}
    samples = samples.assign(**own)
    samples = samples[[*STUDY, *ITEM, "seed", "raw_response", "parsed_answer", "role", "correct"]]
    tables = {
        "answers": _no_rows(
            [*STUDY, *ITEM, "order", *(f"role_{x}" for x in LETTERS), "correct"], _LOGP
        ),
        "samples": samples,
        "perplexity": _no_rows(STUDY, ["sequence", "tokens", "nll"]),
        "undefined": undefined,
    }
    about = {
        "name": name,
        "title": "Imported records",
        "precisions": most_bits_first(samples["precision"].unique()),
    }
    return write_study(
        Path(results) / name,
        about,
        items[COLUMNS],
        tables,
        _provenance(samples, items, paths, source, rows.attrs["mended"]),
    )


def imported_study(name):
    """A study that is made from records: a name, and no model to run.

    Parameters
    ----------
    name : str

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If a file in ``config/`` has the name, or it is none.

    Examples
    --------
    >>> imported_study("theirs")
    {'name': 'theirs', 'models': []}
    """
    if not re.fullmatch("[a-z][a-z0-9_-]*", name):
        raise ValueError(f"STUDY: {name!r} is no name; use lower-case letters, digits, - and _")
    if (PROJECT / "config" / f"{name}.yml").exists():
        raise ValueError(
            f"STUDY: {name!r} has a file in config/, so its results are those of "
            f"models that are run; give imported records a name of their own"
        )
    return {"name": name, "models": []}


def template_runs(items):
    """Runs of consecutive items that stand in for the templates that are not known.

    BBQ numbers the items of a template one after the other, so neighbours share a template and
    intervals over runs respect most of what they share; items taken as independent would make them
    far too narrow. With ten runs a category few templates lie across two runs: on BBQ's own Age and
    Religion items an interval over runs is never more than 7 % narrower than one over templates.

    Parameters
    ----------
    items : DataFrame
        With ``item_id`` and ``category``.

    Returns
    -------
    Series

    Examples
    --------
    >>> ids = [f"Age/{k}" for k in range(40)]
    >>> runs = template_runs(pd.DataFrame({"item_id": ids, "category": "Age"}))
    >>> runs.nunique(), runs.tolist()[3:5]
    (10, ['Age/run 1', 'Age/run 2'])
    """
    rank = (
        items.assign(number=item_number(items["item_id"]))
        .groupby("category")["number"]
        .rank("first")
        - 1
    )
    size = items.groupby("category")["item_id"].transform("size")
    run = (rank * np.minimum(RUNS, size) // size).astype(int) + 1
    return items["category"] + "/run " + run.astype(str)


def as_published(rows, told, items):
    """Answers to the items without a defined target, with the roles that the published code gave.

    It used the index -1 of an undefined target to count from the end: the last answer, letter C.
    These items are in no measure; they show how much that choice moves the headline number.

    Parameters
    ----------
    rows, told : DataFrame
        From `cba_utils.study.published_jsonl.read_records`.
    items : DataFrame
        The other items with ``template_id``; ``attrs["undefined_targets"]`` names these.

    Returns
    -------
    DataFrame
        One row an answer, with its response and the three indices of its item, each answer in one
        role. The template is that of the nearest item of the category.
    """
    names = items.attrs["undefined_targets"]
    indices = ["stereotyped_index", "unknown_index", "anti_stereotyped_index"]
    columns = [*STUDY, *ITEM, "seed", "raw_response", "parsed_answer", *indices]
    if not names:
        return _no_rows(columns, [])
    left = told[told["item_id"].isin(names)].drop(columns="place").reset_index(drop=True)
    left[indices] = counted_from_the_end(left)
    left = left.assign(
        context_condition="ambig", template_id=left["item_id"].map(_nearest_template(left, items))
    )
    rows = rows.merge(left, on="item_id")
    rows["parsed_answer"] = np.array([*LETTERS, None], object)[rows["answer"]]
    rows = rows.assign(family=rows["model"], base=rows["model"], replicate=1, depth="full")
    return rows.reindex(columns=columns)


def _nearest_template(rows, items):
    """Template of the item that is nearest by number in the category, for each item of ``rows``."""
    found = {}
    numbers = item_number(items["item_id"])
    for name, category, own in zip(
        rows["item_id"], rows["category"], item_number(rows["item_id"]), strict=True
    ):
        near = items["category"] == category
        found[name] = (
            items["template_id"][(numbers[near] - own).abs().idxmin()]
            if near.any()
            else f"{category}/undefined"
        )
    return found


def _with_source(items, source):
    """Texts and templates of the items that were asked; the roles stay those of the records."""
    known = load_items(source, condition="ambig")
    undefined = pd.DataFrame({"item_id": known.attrs["undefined_targets"]}, dtype=object)
    # load_items makes the ids of a category's name and the number.
    undefined["category"] = [name.rpartition("/")[0] for name in undefined["item_id"]]
    ours, theirs, left = (
        pd.MultiIndex.from_arrays(
            [frame["category"].astype(str).str.lower(), item_number(frame["item_id"])]
        )
        for frame in (items, known, undefined)
    )
    # A target that the source leaves undefined is no more defined for being in the records.
    dropped = ours.isin(left)
    names = sorted({*items.attrs["undefined_targets"], *items.loc[dropped, "item_id"]})
    items, ours = items[~dropped].reset_index(drop=True), ours[~dropped]
    at = theirs.get_indexer(ours)
    if (at < 0).any():
        lost = items[at < 0]
        raise ValueError(
            f"{lost['place'].iloc[0]}: item {lost['item_id'].iloc[0]!r} of the records "
            f"is no ambiguous item of {source} ({len(lost)} in all); an id must end in "
            f"the number that BBQ gives"
        )
    known = known.iloc[at].reset_index(drop=True)
    other = (known["unknown_index"] != items["unknown_index"]).to_numpy(bool)
    if other.any():
        first = items[other].iloc[0]
        raise ValueError(
            f"{first['place']}: item {first['item_id']!r}: its unknown answer has index "
            f"{first['unknown_index']} in the records and "
            f"{known['unknown_index'][other].iloc[0]} in {source} ({other.sum()} "
            f"items in all); the numbers must be those of the same data"
        )
    found = known.drop(columns=["item_id", "category", *items.filter(like="_index")])
    found = pd.concat([items, found], axis=1)
    found["template_id"] = template_ids(found)
    found.attrs["undefined_targets"] = names
    return found


def _no_rows(texts, numbers):
    return pd.DataFrame(
        {
            **{name: pd.Series(dtype=object) for name in texts},
            **{name: pd.Series(dtype=float) for name in numbers},
        }
    )


def _provenance(samples, items, paths, source, mended):
    """One entry a cell: what was read, with the hash of every file."""
    shared = {
        "schema_version": SCHEMA_VERSION,
        "undefined_targets": items.attrs["undefined_targets"],
        **code_version(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    identity = {
        "items_sha256": items_hash(items),
        "records_sha256": {path.name: _hash(path) for path in paths},
    }
    # A folder is named by its last part only: where it lies is nobody's business.
    asked = source if source is None or str(source).count("/") == 1 else Path(source).name
    cells = []
    for (model, precision), part in samples.groupby(["model", "precision"], sort=False):
        parameters = {
            "model": model,
            "precision": precision,
            "items": asked,
            "condition": "ambig",
            "orders": "original",
            "seeds": sorted(map(int, part["seed"].unique())),
        }
        cells.append(
            {
                "model": model,
                "family": model,
                "base": model,
                "replicate": 1,
                "depth": "full",
                "precision": precision,
                **shared,
                "identity": {"parameters": parameters, **identity},
                "counts": {"answers": 0, "samples": len(part), "perplexity": 0},
                "responses_mended": mended,
            }
        )
    return cells


def _hash(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
