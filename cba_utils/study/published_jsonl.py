"""Raw results in the JSONL of the published study's code: read and written."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.answering.items import lines
from cba_utils.answering.prompts import LETTERS
from cba_utils.names import RESULTS, kind
from cba_utils.study.files import write_whole

_BITS_OF_JSONL = {"bf16": 16, "q8": 8, "q6": 6, "q4": 4, "q3": 3}


def write_jsonl(samples, items, folder):
    """Write samples as the published study's code writes them.

    One file a model and precision, ``<model>_q<bits>.jsonl``, item by item and seed by seed. An
    ``item_id`` is BBQ's own number, which is unique only together with ``category``. The format is
    of ambiguous questions and has no field to say otherwise: samples of disambiguated ones are left
    out. What an answer took is not known here (``elapsed_s`` is null).

    Parameters
    ----------
    samples : DataFrame
        Samples of one or more cells with ``model`` and ``precision`` columns.
    items : DataFrame
        The items they answer.
    folder : Path

    Returns
    -------
    list of Path
        The files, in the order of the samples.

    Raises
    ------
    ValueError
        For a precision that the format has no number for, two models whose files would have one
        name, or two items that the format cannot tell apart.
    """
    unknown = set(samples["precision"]) - set(_BITS_OF_JSONL)
    if unknown:
        raise ValueError(f"precision: the JSONL format has no number for {min(unknown)!r}")
    about = items.assign(number=item_number(items["item_id"]), place=range(len(items)))
    twice = about.duplicated(["category", "number"])
    if twice.any():
        raise ValueError(
            f"item {about['item_id'][twice].iloc[0]!r}: another item of its category has "
            f"its number, and the JSONL format tells items by these two"
        )
    joined = samples[samples["context_condition"] == "ambig"].merge(
        about[
            [
                "item_id",
                "number",
                "place",
                "stereotyped_index",
                "anti_stereotyped_index",
                "unknown_index",
            ]
        ],
        on="item_id",
    )
    # Stable: the seeds of an item stay in the order in which they were drawn.
    joined = joined.sort_values("place", kind="stable")
    written = {}
    for (model, precision), part in joined.groupby(
        ["model", "precision"], sort=False, observed=True
    ):
        path = Path(folder) / f"{str(model).replace('/', '_')}_q{_BITS_OF_JSONL[precision]}.jsonl"
        if path in written:
            raise ValueError(
                f"models {written[path]!r} and {model!r} would both be written to "
                f"{path.name}; give one another name"
            )
        written[path] = model
        rows = pd.DataFrame(
            {
                "model": part["model"],
                "quant": _BITS_OF_JSONL[precision],
                "item_id": part["number"],
                "category": part["category"],
                "seed": part["seed"],
                "raw_response": part["raw_response"],
                "parsed_answer": part["parsed_answer"],
                "stereotype_target_index": part["stereotyped_index"],
                "anti_stereotype_target_index": part["anti_stereotyped_index"],
                "unknown_index": part["unknown_index"],
                "elapsed_s": np.nan,
            }
        )
        write_whole(
            path, lambda scratch, rows=rows: rows.to_json(scratch, orient="records", lines=True)
        )
    return list(written)


def item_number(names):
    """BBQ's own number of each item, with which its id ends.

    Parameters
    ----------
    names : Series of str

    Returns
    -------
    Series of int

    Examples
    --------
    >>> item_number(pd.Series(["Age/17", "Religion/4"])).tolist()
    [17, 4]
    """
    return names.astype(str).str.extract(r"(\d+)$", expand=False).astype(int)


# What a parsed answer may be, and the index it stands for; 3 is none.
_ANSWERS_OF_JSONL = {0: 0, 1: 1, 2: 2, None: 3}
_ANSWERS_OF_JSONL |= {x: k for k, letter in enumerate(LETTERS) for x in (letter, letter.lower())}


def _is_index(value):
    return value is None or (type(value) is int and -1 <= value <= 2)


def _is_text(value):
    return isinstance(value, str) and value.strip() and not _HALF.search(value)


def _is_id(value):
    if type(value) is int:
        return 0 <= value < 2**63
    return _is_text(value) and bool(re.search(r"(?<![0-9])[0-9]{1,18}$", value))


# Half of a character: a response that was cut inside an emoji.
_HALF = re.compile("[\ud800-\udfff]")
# What a field of a JSONL record must be, and how to tell. The published code writes more fields
# than are needed here, so others are passed over.
_JSONL_FIELDS = {
    "model": ("a text", _is_text),
    "quant": (
        f"one of {', '.join(map(str, _BITS_OF_JSONL.values()))}",
        lambda v: type(v) is int and v in _BITS_OF_JSONL.values(),
    ),
    "item_id": (
        "the item's number in its category, or a text that ends in it, such as 'Age/17'",
        _is_id,
    ),
    "category": ("a text", _is_text),
    "seed": ("a whole number of 64 bits", lambda v: type(v) is int and -(2**63) <= v < 2**63),
    "raw_response": ("a text", lambda v: isinstance(v, str)),
    "parsed_answer": (
        "A, B or C, an index from 0 to 2, or null",
        lambda v: type(v) in (type(None), str, int) and v in _ANSWERS_OF_JSONL,
    ),
    "stereotype_target_index": ("an index from 0 to 2, or -1 where undefined", _is_index),
    "anti_stereotype_target_index": ("an index from 0 to 2, or -1 where undefined", _is_index),
    "unknown_index": ("an index from 0 to 2", lambda v: type(v) is int and 0 <= v <= 2),
}


def read_jsonl(paths):
    """Samples and items of raw results in the JSONL of the published study's code.

    Parameters
    ----------
    paths : list of Path

    Returns
    -------
    samples : DataFrame
        Columns of samples with ``model`` and ``precision``; ``parsed_answer`` is a letter or
        missing, ``role`` follows from the indices.
    items : DataFrame
        One row an item: ``item_id`` (category and number), ``category``, the index of each role and
        ``place``, the file and line that told it first. ``attrs["undefined_targets"]`` names the
        items that were left out because an index of theirs is -1: the published code read that as
        the last answer.

    Raises
    ------
    ValueError
        As `read_records`.

    Examples
    --------
    >>> import tempfile
    >>> record = dict(model="m", quant=16, item_id=1, category="Age", seed=42,
    ...     raw_response="B", parsed_answer="B", stereotype_target_index=0,
    ...     anti_stereotype_target_index=1, unknown_index=2)
    >>> path = Path(tempfile.mkdtemp(), "raw.jsonl")
    >>> _ = path.write_text(json.dumps(record))
    >>> read_jsonl([path])[0][["item_id", "role"]].values.tolist()
    [['Age/1', 'anti_stereotyped']]
    """
    return with_roles(*read_records(paths))


def read_records(paths):
    """Every record, and what is said about each item.

    Parameters
    ----------
    paths : list of Path

    Returns
    -------
    rows : DataFrame
        One row a record: ``model``, ``precision``, ``item_id``, ``seed``, ``raw_response`` and
        ``answer``, the index of the letter that was parsed, 3 for none. ``attrs["mended"]`` counts
        the responses that held half of a character, which is U+FFFD now.
    items : DataFrame
        As `read_jsonl` gives them, with those that have an index of -1.

    Raises
    ------
    ValueError
        Naming file, line, what is wrong and what would be right: a line that is no record, a
        field that is missing or has a value it cannot have, an item described in two ways, a
        record that occurs twice, a grid with a hole.
    """
    known, frames, mended = {}, [], 0
    for number, path in enumerate(paths):
        rows = []
        for line, text in lines(path):
            *values, whole = _record(text, path, line, known)
            mended += not whole
            rows.append((*values, number, line))
        frames.append(
            pd.DataFrame(
                rows,
                columns=[
                    "model",
                    "quant",
                    "item_id",
                    "seed",
                    "raw_response",
                    "answer",
                    "file",
                    "line",
                ],
            )
        )
    rows = pd.concat(frames, ignore_index=True)
    if rows.empty:
        raise ValueError(f"{', '.join(map(str, paths))}: no record")
    _check_grid(rows, paths)
    items = pd.DataFrame(
        [(name, *known[name]) for name in known],
        columns=[
            "item_id",
            "category",
            "stereotyped_index",
            "anti_stereotyped_index",
            "unknown_index",
            "place",
        ],
    )
    names = {bits: name for name, bits in _BITS_OF_JSONL.items()}
    rows["precision"] = rows["quant"].map(names)
    rows = rows.drop(columns=["quant", "file", "line"])
    rows.attrs["mended"] = mended
    return rows, items


def with_roles(rows, items):
    """Records of the items that have a target, with the role of each answer.

    Parameters
    ----------
    rows, items : DataFrame
        From `read_records`.

    Returns
    -------
    samples, items : DataFrame
        As from `read_jsonl`.
    """
    defined = (items.filter(like="_index") >= 0).all(axis=1)
    undefined = sorted(items.loc[~defined, "item_id"])
    items = items[defined].reset_index(drop=True)
    rows = rows[rows["item_id"].isin(items["item_id"])]
    at = pd.Index(items["item_id"]).get_indexer(rows["item_id"])
    answer, role = rows["answer"].to_numpy(), np.full(len(rows), "unparsed", object)
    for name in ("stereotyped", "anti_stereotyped", "unknown"):
        role[answer == items[f"{name}_index"].to_numpy()[at]] = name
    samples = pd.DataFrame(
        {
            "model": rows["model"],
            "precision": rows["precision"],
            "item_id": rows["item_id"],
            "category": items["category"].to_numpy()[at],
            "context_condition": "ambig",
            "seed": rows["seed"],
            "raw_response": rows["raw_response"],
            "parsed_answer": np.array([*LETTERS, None], object)[answer],
            "role": role,
            "correct": role == "unknown",
        }
    ).reset_index(drop=True)
    items.attrs["undefined_targets"] = undefined
    return samples, items


def _record(text, path, line, known):
    """The values of one line that are kept, last whether its response was whole.

    ``known`` collects what is said about each item.
    """
    where = f"{path}:{line}"
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg}): {text[:60]!r}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a record ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: keys with values were due, not {kind(record)}")
    for field, (right, is_right) in _JSONL_FIELDS.items():
        if field not in record:
            raise ValueError(
                f"{where}: field {field!r} is missing; a record has {', '.join(_JSONL_FIELDS)}"
            )
        if not is_right(record[field]):
            raise ValueError(f"{where}: {field} is {record[field]!r:.80}; it must be {right}")
    item, category = record["item_id"], sys.intern(record["category"])
    # The published code counts anew in every category.
    if isinstance(item, int) or item.isdigit():
        item = f"{category}/{int(item)}"
    item = sys.intern(item)
    indices = [
        -1 if record[f"{role}_index"] is None else record[f"{role}_index"]
        for role in ("stereotype_target", "anti_stereotype_target", "unknown")
    ]
    said = (category, *indices)
    if item not in known:
        if min(indices) >= 0 and len(set(indices)) < 3:
            raise ValueError(
                f"{where}: the three indices of item {item!r} are {indices}; each "
                f"answer has one role, so they must be 0, 1 and 2 in some order"
            )
        known[item] = (*said, where)
    elif known[item][:4] != said:
        raise ValueError(
            f"{where}: item {item!r} has category and indices {said}, and "
            f"{known[item][:4]} at {known[item][4]}; an item is the same everywhere"
        )
    response = record["raw_response"]
    # Only an escape can bring half of a character into a text that is UTF-8.
    whole = "\\u" not in text or not _HALF.search(response)
    if not whole:
        response = _HALF.sub("\ufffd", response)
    return (
        sys.intern(record["model"]),
        record["quant"],
        item,
        record["seed"],
        sys.intern(response),
        _ANSWERS_OF_JSONL[record["parsed_answer"]],
        whole,
    )


def _check_grid(rows, paths):
    """Every cell that is there has every item once at each seed."""

    def place(row):
        return f"{paths[row['file']]}:{row['line']}"

    def told(row):
        return (
            f"model {row['model']!r} at quant {row['quant']}, item {row['item_id']!r}, "
            f"seed {row['seed']}"
        )

    keys = ["model", "quant", "item_id", "seed"]
    twice = rows.duplicated(keys)
    if twice.any():
        again = rows[twice].iloc[0]
        first = rows[(rows[keys] == again[keys]).all(axis=1)].iloc[0]
        raise ValueError(
            f"{place(again)}: {told(again)} is already at {place(first)}; a record occurs once"
        )
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
        raise ValueError(
            f"{place(cell.iloc[0])}: model {model!r} at quant {quant} has no record "
            f"of item {missing!r} with seed {seed}, and {place(there)} has the item; "
            f"every model needs every item at each of its precisions and seeds"
        )


def export(study):
    """Write the samples of a study that was run here, in the published code's form.

    Parameters
    ----------
    study : str
        Its name; the records go to ``results/<study>/raw``.

    Returns
    -------
    files : list of Path
    left_out : list of str
        Precisions that the format has no number for.
    """
    from cba_utils.study.tables import load_study

    tables = load_study(study)
    samples, items = tables["samples"], tables["items"]
    left = RESULTS / study / "tables" / "undefined.parquet"
    if left.is_file():
        more = pd.read_parquet(left)
        # The answer that was counted as stereotyped for want of a target has no other index.
        unknown = more["unknown_index"].where(more["unknown_index"] >= 0, 2)
        about = more.assign(stereotyped_index=-1, anti_stereotyped_index=-1, unknown_index=unknown)
        samples = pd.concat(
            [samples, more.drop(columns=more.filter(like="_index").columns.drop("question_index"))]
        )
        items = pd.concat([items, about.drop_duplicates("item_id")])
    known = samples["precision"].isin(list(_BITS_OF_JSONL))
    files = write_jsonl(samples[known], items, RESULTS / study / "raw")
    return files, sorted(samples.loc[~known, "precision"].astype(str).unique())


def main(arguments=None):
    """``python -m cba_utils.study.published_jsonl STUDY``: see `export`."""
    parser = argparse.ArgumentParser(
        prog="python -m cba_utils.study.published_jsonl",
        description="Write a study's samples in the published form.",
    )
    parser.add_argument("study", help="a study whose tables are in results/")
    try:
        files, left_out = export(parser.parse_args(arguments).study)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in files:
        print(path)
    if left_out:
        print(f"the format has no number for {', '.join(left_out)}: left out")


if __name__ == "__main__":
    main()
