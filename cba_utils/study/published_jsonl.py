"""Raw results in the JSONL of the published study's code: read and written."""

import json
import sys

import numpy as np
import pandas as pd

from cba_utils.answering.items import lines
from cba_utils.answering.prompts import LETTERS
from cba_utils.study.files import _atomically

_BITS_OF_JSONL = {"bf16": 16, "q8": 8, "q6": 6, "q4": 4, "q3": 3}


def write_jsonl(samples, items, path):
    """Write samples in the JSONL of the published study's code.

    Its records are of ambiguous questions and have no field to say otherwise: samples of
    disambiguated ones are left out.

    Parameters
    ----------
    samples : DataFrame
        Samples of one or more cells with ``model`` and ``precision`` columns.
    items : DataFrame
        The items they answer.
    path : Path

    Raises
    ------
    ValueError
        For a precision that the format has no number for.
    """
    unknown = set(samples["precision"]) - set(_BITS_OF_JSONL)
    if unknown:
        raise ValueError(f"precision: the JSONL format has no number for {min(unknown)!r}")
    joined = samples[samples["context_condition"] == "ambig"].merge(
        items[["item_id", "stereotyped_index", "anti_stereotyped_index", "unknown_index"]],
        on="item_id",
    )
    rows = pd.DataFrame(
        {
            "model": joined["model"],
            "quant": joined["precision"].map(_BITS_OF_JSONL),
            "item_id": joined["item_id"],
            "category": joined["category"],
            "seed": joined["seed"],
            "raw_response": joined["raw_response"],
            "parsed_answer": joined["parsed_answer"],
            "stereotype_target_index": joined["stereotyped_index"],
            "anti_stereotype_target_index": joined["anti_stereotyped_index"],
            "unknown_index": joined["unknown_index"],
            "elapsed_s": np.nan,
        }
    )
    _atomically(path, lambda scratch: rows.to_json(scratch, orient="records", lines=True))


# What a parsed answer may be, and the index it stands for; 3 is none.
_ANSWERS_OF_JSONL = {0: 0, 1: 1, 2: 2, None: 3}
_ANSWERS_OF_JSONL |= {x: k for k, letter in enumerate(LETTERS) for x in (letter, letter.lower())}


def _is_index(value):
    return value is None or (type(value) is int and -1 <= value <= 2)


# What a field of a JSONL record must be, and how to tell. The published code writes more fields
# than are needed here, so others are passed over.
_JSONL_FIELDS = {
    "model": ("a text", lambda v: isinstance(v, str) and v.strip()),
    "quant": (f"one of {', '.join(map(str, _BITS_OF_JSONL.values()))}",
              lambda v: type(v) is int and v in _BITS_OF_JSONL.values()),
    "item_id": ("a text that ends in a number, such as 'Age/17'",
                lambda v: isinstance(v, str) and v[-1:].isdigit()),
    "category": ("a text", lambda v: isinstance(v, str) and v.strip()),
    "seed": ("a whole number", lambda v: type(v) is int),
    "raw_response": ("a text", lambda v: isinstance(v, str)),
    "parsed_answer": ("A, B or C, an index from 0 to 2, or null", lambda v: type(v) in (
        type(None), str, int) and v in _ANSWERS_OF_JSONL),
    "stereotype_target_index": ("an index from 0 to 2, or -1 where undefined", _is_index),
    "anti_stereotype_target_index": ("an index from 0 to 2, or -1 where undefined", _is_index),
    "unknown_index": ("an index from 0 to 2", lambda v: type(v) is int and 0 <= v <= 2),
}


def read_jsonl(paths):
    """Read raw results in the JSONL of the published study's code.

    Parameters
    ----------
    paths : list of Path

    Returns
    -------
    samples : DataFrame
        Columns of samples with ``model`` and ``precision``; ``parsed_answer`` is a letter or
        missing, ``role`` follows from the indices.
    items : DataFrame
        One row an item: ``item_id``, ``category`` and the index of each role.
        ``attrs["undefined_targets"]`` names the items that were left out because an index of
        theirs is -1: the published code read that as the last answer.

    Raises
    ------
    ValueError
        Naming file, line, what is wrong and what would be right: a line that is no record, a
        field that is missing or has a value it cannot have, an item described in two ways, a
        record that occurs twice, a grid with a hole.

    Examples
    --------
    >>> import tempfile; from pathlib import Path
    >>> record = dict(model="m", quant=16, item_id="Age/1", category="Age", seed=42,
    ...     raw_response="B", parsed_answer="B", stereotype_target_index=0,
    ...     anti_stereotype_target_index=1, unknown_index=2)
    >>> path = Path(tempfile.mkdtemp(), "raw.jsonl")
    >>> _ = path.write_text(json.dumps(record))
    >>> read_jsonl([path])[0]["role"].tolist()
    ['anti_stereotyped']
    """
    known, frames = {}, []
    for number, path in enumerate(paths):
        rows = []
        for line, text in lines(path):
            rows.append((*_record(text, f"{path}:{line}", known), number, line))
        frames.append(pd.DataFrame(rows, columns=["model", "quant", "item_id", "seed",
                                                  "raw_response", "answer", "file", "line"]))
    rows = pd.concat(frames, ignore_index=True)
    if rows.empty:
        raise ValueError(f"{', '.join(map(str, paths))}: no record")
    _check_grid(rows, paths)
    items = pd.DataFrame([(name, *known[name][:4]) for name in known], columns=[
        "item_id", "category", "stereotyped_index", "anti_stereotyped_index", "unknown_index"])
    defined = (items.filter(like="_index") >= 0).all(axis=1)
    undefined = sorted(items.loc[~defined, "item_id"])
    items = items[defined].reset_index(drop=True)
    rows = rows[rows["item_id"].isin(items["item_id"])]
    at = pd.Index(items["item_id"]).get_indexer(rows["item_id"])
    answer, role = rows["answer"].to_numpy(), np.full(len(rows), "unparsed", object)
    for name in ("stereotyped", "anti_stereotyped", "unknown"):
        role[answer == items[f"{name}_index"].to_numpy()[at]] = name
    samples = pd.DataFrame({
        "model": rows["model"],
        "precision": rows["quant"].map({bits: name for name, bits in _BITS_OF_JSONL.items()}),
        "item_id": rows["item_id"],
        "category": items["category"].to_numpy()[at],
        "context_condition": "ambig",
        "seed": rows["seed"],
        "raw_response": rows["raw_response"],
        "parsed_answer": np.array([*LETTERS, None], object)[answer],
        "role": role,
        "correct": role == "unknown",
    }).reset_index(drop=True)
    items.attrs["undefined_targets"] = undefined
    return samples, items


def _record(text, where, known):
    """The values of one line that are kept; ``known`` collects what is said about each item."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg}): {text[:60]!r}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object was due, not {type(record).__name__}")
    for field, (right, is_right) in _JSONL_FIELDS.items():
        if field not in record:
            raise ValueError(f"{where}: field {field!r} is missing; a record has "
                             f"{', '.join(_JSONL_FIELDS)}")
        if not is_right(record[field]):
            raise ValueError(f"{where}: {field} is {record[field]!r}; it must be {right}")
    item = sys.intern(record["item_id"])
    indices = [-1 if record[f"{role}_index"] is None else record[f"{role}_index"]
               for role in ("stereotype_target", "anti_stereotype_target", "unknown")]
    said = (sys.intern(record["category"]), *indices)
    if item not in known:
        if min(indices) >= 0 and len(set(indices)) < 3:
            raise ValueError(f"{where}: the three indices of item {item!r} are {indices}; each "
                             f"answer has one role, so they must be 0, 1 and 2 in some order")
        known[item] = (*said, where)
    elif known[item][:4] != said:
        raise ValueError(f"{where}: item {item!r} has category and indices {said}, and "
                         f"{known[item][:4]} at {known[item][4]}; an item is the same everywhere")
    return (sys.intern(record["model"]), record["quant"], item, record["seed"],
            sys.intern(record["raw_response"]), _ANSWERS_OF_JSONL[record["parsed_answer"]])


def _check_grid(rows, paths):
    """Every cell that is there has every item once at each seed."""
    def place(row):
        return f"{paths[row['file']]}:{row['line']}"

    def told(row):
        return (f"model {row['model']!r} at quant {row['quant']}, item {row['item_id']!r}, "
                f"seed {row['seed']}")

    keys = ["model", "quant", "item_id", "seed"]
    twice = rows.duplicated(keys)
    if twice.any():
        again = rows[twice].iloc[0]
        first = rows[(rows[keys] == again[keys]).all(axis=1)].iloc[0]
        raise ValueError(f"{place(again)}: {told(again)} is already at {place(first)}; a record "
                         f"occurs once")
    cells = rows[["model", "quant"]].drop_duplicates()
    whole = cells.merge(rows[["seed"]].drop_duplicates(), how="cross")
    sizes = rows.groupby(["model", "quant", "seed"]).size()
    items = pd.Index(rows["item_id"].unique())
    for model, quant, seed in whole.itertuples(index=False):
        if sizes.get((model, quant, seed), 0) == len(items):
            continue
        cell = rows[(rows["model"] == model) & (rows["quant"] == quant)]
        missing = items.difference(cell.loc[cell["seed"] == seed, "item_id"], sort=False)[0]
        there = rows[rows["item_id"] == missing].iloc[0]
        raise ValueError(f"{place(cell.iloc[0])}: model {model!r} at quant {quant} has no record "
                         f"of item {missing!r} with seed {seed}, and {place(there)} has the item; "
                         f"every model needs every item at each of its precisions and seeds")
