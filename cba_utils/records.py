"""Records of a cell: written whole or not at all, resumed after a kill, reused only if identical.

A cell's folder holds ``answers.parquet``, ``samples.parquet``, ``perplexity.parquet`` and
``provenance.json``, the last written last: a cell without it is not finished. While a cell runs,
finished blocks of items wait in ``parts/``, under the identity of the run they belong to.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.items import HELD_OUT_TEXT, PROJECT, lines, load_items
from cba_utils.prompts import LETTERS, ORDERS
from cba_utils.study import RESULTS, cells

SCHEMA_VERSION = 1
TABLES = ("answers", "samples", "perplexity")
_PACKAGES = ("mlx", "mlx-lm", "transformers", "tokenizers", "numpy", "pandas", "pyarrow")
# The modules that decide an answer: a change in one of them makes a cell stale.
_DECIDING = ("items", "prompts", "precisions", "models", "cpu_kernels", "cores", "engine", "scoring",
             "perplexity")
_BITS_OF_JSONL = {"bf16": 16, "q8": 8, "q6": 6, "q4": 4, "q3": 3}


def evaluate(parameters, folder):
    """Evaluate one cell, or finish or reuse what is there.

    Parameters
    ----------
    parameters : dict
        The run notebook's parameters, see `cba_utils.study.Cell.parameters`.
    folder : str or Path
        Where the records go.

    Returns
    -------
    dict of str to DataFrame
        ``answers``, ``samples`` and ``perplexity``.

    Raises
    ------
    ValueError
        For bad parameters, or if an item is missing from or repeated in the records.
    OSError
        If a file cannot be written; finished blocks stay and the next run goes on from them.
    """
    from cba_utils.models import load_model

    folder = Path(folder)
    items = select_items(parameters)
    loaded = load_model(parameters["model"], parameters["precision"])
    identity = cell_identity(parameters, items, loaded)
    known = read_json(folder / "provenance.json")
    if known and known["identity"] == identity:
        return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    (folder / "provenance.json").unlink(missing_ok=True)
    started, clock = datetime.now(UTC), time.perf_counter()
    tables = _run(parameters, loaded, items, folder / "parts", identity)
    _check_complete(tables, items, parameters)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "counts": {name: len(table) for name, table in tables.items()},
        "undefined_targets": items.attrs["undefined_targets"],
        "system_folded": _folded(loaded),
        "parameters_of_model": loaded.parameters,
        **surroundings(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
    }
    write_text(json.dumps(provenance, indent=1) + "\n", folder / "provenance.json")
    shutil.rmtree(folder / "parts")
    return tables


def select_items(parameters):
    """Items of a cell; a limit takes an evenly mixed choice that is the same in every cell.

    Parameters
    ----------
    parameters : dict

    Returns
    -------
    DataFrame
    """
    items = load_items(parameters["items"], parameters["categories"], parameters["condition"])
    limit = parameters["limit"]
    if limit is not None and limit < len(items):
        names = items.attrs["undefined_targets"]
        chosen = np.sort(np.random.default_rng(0).permutation(len(items))[:limit])
        items = items.iloc[chosen].reset_index(drop=True)
        items.attrs["undefined_targets"] = names
    return items


def _run(parameters, loaded, items, parts, identity):
    """Answers, samples and perplexity, each block kept in `parts` as soon as it is done."""
    from cba_utils.perplexity import load_texts, perplexity, token_ids
    from cba_utils.scoring import ITEMS_AT_ONCE, stream

    if read_json(parts / "identity.json") != identity:
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(identity), parts / "identity.json")
    draws = {key: parameters[key] for key in ("seeds", "temperature", "max_tokens", "parser")}
    blocks = range(0, len(items), ITEMS_AT_ONCE)
    todo = [block for block in blocks
            if not all((parts / f"{name}-{block}.parquet").exists() for name in TABLES[:2])]
    if todo:
        left = items.iloc[todo[0]:]
        work = stream(loaded, left, parameters["orders"], parameters["temperature"], draws)
        for block, (answers, samples) in zip(blocks[blocks.index(todo[0]):], work, strict=True):
            write_table(answers, parts / f"answers-{block}.parquet")
            write_table(samples, parts / f"samples-{block}.parquet")
    if not (parts / "perplexity.parquet").exists():
        length = parameters["sequence_length"]
        needed = parameters["sequences"] * length
        texts = load_texts(parameters["text"], loaded, needed, parameters["text_seed"])
        # Sequences beyond those asked for are not run: tokens of a long text are cut first.
        ids = token_ids(texts, loaded, needed)
        write_table(perplexity(loaded, [ids], length), parts / "perplexity.parquet")
    tables = {
        name: pd.concat(
            [pd.read_parquet(parts / f"{name}-{block}.parquet") for block in blocks],
            ignore_index=True,
        )
        for name in TABLES[:2]
    }
    return {**tables, "perplexity": pd.read_parquet(parts / "perplexity.parquet")}


def _check_complete(tables, items, parameters):
    """Every item asked for is in the records exactly once an order and seed."""
    wanted = {
        "answers": len(ORDERS[parameters["orders"]]),
        "samples": len(parameters["seeds"]),
    }
    for name, times in wanted.items():
        counts = tables[name]["item_id"].value_counts().reindex(items["item_id"], fill_value=0)
        wrong = counts[counts != times]
        if len(wrong):
            raise ValueError(
                f"{name}: item {wrong.index[0]!r} has {wrong.iloc[0]} rows, not {times} "
                f"({len(wrong)} items in all)"
            )
        strangers = set(tables[name]["item_id"]) - set(items["item_id"])
        if strangers:
            raise ValueError(f"{name}: item {min(strangers)!r} was not asked for")


def cell_identity(parameters, items, loaded):
    """All that decides a cell's answers, as hashes and names.

    Parameters
    ----------
    parameters : dict
    items : DataFrame
    loaded : LoadedModel

    Returns
    -------
    dict
    """
    from cba_utils.models import tokenizer_hash, weights_hash

    template = loaded.hf_tokenizer.chat_template or ""
    return {
        "parameters": parameters,
        "compute": loaded.compute,
        "items_sha256": hashlib.sha256(items.to_json(orient="records").encode()).hexdigest(),
        "text_sha256": _text_hash(parameters["text"]),
        "weights_sha256": weights_hash(loaded.source_path),
        "tokenizer_sha256": tokenizer_hash(loaded.source_path),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "code_sha256": _code_hash(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _text_hash(source):
    """Hash of the text that perplexity is measured on; a hub data set is known by its id."""
    path = HELD_OUT_TEXT if source == "bundled" else Path(source)
    content = path.read_bytes() if path.is_file() else source.encode()
    return hashlib.sha256(content).hexdigest()


def _code_hash():
    digest = hashlib.sha256()
    for module in _DECIDING:
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    return digest.hexdigest()


def _folded(loaded):
    from cba_utils.prompts import chat_ids

    return chat_ids(loaded.hf_tokenizer, ["?"])[1]


def surroundings():
    """Code, machine and device of a run.

    Returns
    -------
    dict
    """
    import mlx.core as mx

    from cba_utils import BLAS

    return {
        **code_version(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": str(mx.default_device()),
        "blas": BLAS,
    }


def cell_line(folder):
    """Where the numbers of one cell come from, in a line for the foot of its page.

    Parameters
    ----------
    folder : str or Path
        The cell's records.

    Returns
    -------
    str
    """
    known = read_json(Path(folder) / "provenance.json")
    identity = known["identity"]
    asked = identity["parameters"]
    code = f"code of commit {known['git_commit'][:7]}" if known["git_commit"] else "code without commit"
    if known["git_dirty"]:
        code += " with local changes"
    return (
        f"{asked['model']} at {asked['precision'].upper()}, {code}, MLX {identity['packages']['mlx']}, "
        f"items {identity['items_sha256'][:12]}, weights {identity['weights_sha256'][:12]}, run "
        f"{known['started'][:10]} on {known['platform']}"
    )


def code_version():
    """Commit of the project's code, and whether it has changes that are in no commit.

    Returns
    -------
    dict
    """
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments):
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def read_json(path):
    """Content of a JSON file, None where there is none.

    Parameters
    ----------
    path : Path
    """
    return json.loads(path.read_text()) if path.exists() else None


def write_table(table, path):
    """Write a table as Parquet, whole or not at all.

    Parameters
    ----------
    table : DataFrame
    path : Path
    """
    _atomically(
        path, lambda scratch: table.to_parquet(scratch, index=False, compression="zstd")
    )


def write_text(text, path):
    """Write a text, whole or not at all.

    Parameters
    ----------
    text : str
    path : Path
    """
    _atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _atomically(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        scratch.unlink(missing_ok=True)


def cannot_write(path, error):
    """What to raise where a file cannot be written: which one, why, and what to do.

    Parameters
    ----------
    path : Path
    error : OSError

    Returns
    -------
    OSError
    """
    return OSError(
        error.errno,
        f"{path}: cannot be written ({error.strerror}); what was finished before is kept: "
        f"make room and run the same command again",
    )


def collect(study, results=RESULTS):
    """Join the records of all cells of a study into tables that reports read.

    Parameters
    ----------
    study : dict
        From `cba_utils.study.read_study`.
    results : Path
        Folder of all studies' results.

    Returns
    -------
    Path
        Folder of the tables.

    Raises
    ------
    FileNotFoundError
        If a cell is not finished.
    """
    base = Path(results) / study["name"]
    frames, provenance = {name: [] for name in TABLES}, []
    for cell in cells(study):
        folder = base / cell.folder
        known = read_json(folder / "provenance.json")
        if known is None:
            raise FileNotFoundError(f"{folder}: the cell is not finished; run the study again")
        labels = {"model": cell.name, "family": cell.family, "replicate": cell.replicate,
                  "depth": cell.depth, "precision": cell.precision}
        provenance.append({**labels, **known})
        for name in TABLES:
            frame = pd.read_parquet(folder / f"{name}.parquet")
            for position, (key, value) in enumerate(labels.items()):
                frame.insert(position, key, value)
            frames[name].append(frame)
    items = select_items(cells(study)[0].parameters())
    about = {key: study[key] for key in ("name", "title", "precisions")}
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return write_study(base, about, items, tables, provenance)


def write_study(base, about, items, tables, provenance):
    """Write the tables that reports read.

    Parameters
    ----------
    base : Path
        Folder of the study's results.
    about : dict
        The study's ``name``, ``title`` and ``precisions``.
    items : DataFrame
    tables : dict of str to DataFrame
        ``answers``, ``samples`` and ``perplexity`` of all cells.
    provenance : list of dict
        One entry a cell; written last, so that tables without it are not finished.

    Returns
    -------
    Path
        Folder of the tables.
    """
    target = base / "tables"
    write_table(items, target / "items.parquet")
    for name, table in tables.items():
        write_table(compact(table), target / f"{name}.parquet")
    write_text(
        json.dumps({"study": about, "cells": provenance}, indent=1) + "\n",
        target / "provenance.json",
    )
    return target


def compact(frame):
    """Texts that repeat become categories: the tables are committed and should stay small.

    Parameters
    ----------
    frame : DataFrame
        Is changed.
    """
    for column in frame.columns:
        if pd.api.types.is_string_dtype(frame[column]) or frame[column].dtype == object:
            frame[column] = frame[column].astype("category")
    return frame


def load_study(study, results=RESULTS):
    """Tables of a finished study.

    Parameters
    ----------
    study : str or Path
        A study's name (``"organisms"``) or the folder of its results.
    results : Path
        Folder of all studies' results.

    Returns
    -------
    dict of str to DataFrame
        ``items``, ``answers``, ``samples``, ``perplexity`` (each row labelled with model, family,
        replicate, depth and precision) and ``provenance`` (one row a cell). ``attrs["study"]`` of
        each holds the study's name, title and precisions.

    Raises
    ------
    FileNotFoundError
        If the study was not run.

    Examples
    --------
    >>> tables = load_study("organisms")
    >>> sorted(tables)
    ['answers', 'items', 'perplexity', 'provenance', 'samples']
    """
    # A name goes first: "organisms" is also a folder of the project.
    named = Path(results) / str(study) / "tables"
    folder = named if named.is_dir() else Path(study) / "tables"
    known = read_json(folder / "provenance.json")
    if known is None:
        raise FileNotFoundError(f"{folder}: no results; run 'make book STUDY={study}' first")
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("items", *TABLES)}
    for name in TABLES:
        for column in tables[name].select_dtypes("category").columns:
            tables[name][column] = tables[name][column].astype(object)
    tables["provenance"] = pd.json_normalize(known["cells"], sep=".", max_level=2)
    for table in tables.values():
        table.attrs["study"] = known["study"]
    return tables


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
    >>> import tempfile
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
