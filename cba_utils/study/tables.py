"""The tables of a study, joined from its cells, that reports read."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.answering.items import COLUMNS
from cba_utils.answering.prompts import LETTERS, PARSERS, parse_response
from cba_utils.names import DRIFT, ITEM, RESULTS, ROLES, STUDY
from cba_utils.study.cell import TABLES, UNDEFINED, select_items, undefined_items
from cba_utils.study.files import compact, read_json, write_table, write_text
from cba_utils.study.protocol import cells
from cba_utils.study.provenance import code_version, items_hash
from cba_utils.study.roles import template_ids

# What small tables leave out: words of a data set that is not the project's own.
TEXTS = ["context", "question", "ans0", "ans1", "ans2"]
_LOGP = {suffix: [f"logp_{x}{suffix}" for x in LETTERS] for suffix in ("", "_t")}


def collect(study, results=RESULTS):
    """Join the records of all cells of a study into tables that reports read.

    Parameters
    ----------
    study : dict
        From `cba_utils.study.protocol.read_study`.
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
    frames, provenance = {name: [] for name in (*TABLES, UNDEFINED)}, []
    for cell in cells(study):
        folder = base / cell.folder
        known = read_json(folder / "provenance.json")
        if known is None:
            raise FileNotFoundError(f"{folder}: the cell is not finished; run the study again")
        labels = {
            "model": cell.name,
            "family": cell.family,
            "base": cell.base or cell.name,
            "replicate": cell.replicate,
            "depth": cell.depth,
            "precision": cell.precision,
        }
        provenance.append({**labels, **known})
        for name in frames:
            if name == UNDEFINED and not (folder / f"{name}.parquet").is_file():
                continue
            frame = pd.read_parquet(folder / f"{name}.parquet")
            for position, (key, value) in enumerate(labels.items()):
                frame.insert(position, key, value)
            frames[name].append(frame)
    items = select_items(cells(study)[0].parameters())
    told = ("name", "title", "note", "families", "precisions")
    about = {key: study[key] for key in told if key in study}
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items() if parts}
    return write_study(base, about, items, tables, provenance)


def write_study(base, about, items, tables, provenance):
    """Write the tables that reports read.

    Parameters
    ----------
    base : Path
        Folder of the study's results.
    about : dict
        The study's ``name``, ``title``, ``precisions`` and, if it has them, ``note`` and the titles of
        its ``families``.
    items : DataFrame
    tables : dict of str to DataFrame
        ``answers``, ``samples`` and ``perplexity`` of all cells, and ``undefined`` where there is
        such a table.
    provenance : list of dict
        One entry a cell; written last, so that tables without it are not finished.

    Returns
    -------
    Path
        Folder of the tables.
    """
    target = base / "tables"
    write_table(items, target / "items.parquet")
    (target / f"{UNDEFINED}.parquet").unlink(missing_ok=True)
    for name, table in tables.items():
        write_table(compact(table), target / f"{name}.parquet")
    write_text(
        json.dumps({"study": about, "cells": provenance}, indent=1) + "\n",
        target / "provenance.json",
    )
    return target


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
        base, replicate, depth and precision) and ``provenance`` (one row a cell). ``attrs["study"]``
        of each holds the study's name, title, precisions and, if it has them, note and titles of
        families.

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
    for cell in known["cells"]:
        # A model that names no base has none in common with another.
        cell.setdefault("base", cell["model"])
    bases = {cell["model"]: cell["base"] for cell in known["cells"]}
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("items", *TABLES)}
    if "item" in tables["answers"]:
        tables |= _whole(tables, known["cells"])
    for name in TABLES:
        for column in tables[name].select_dtypes("category").columns:
            tables[name][column] = tables[name][column].astype(object)
        if "base" not in tables[name]:
            tables[name].insert(2, "base", tables[name]["model"].map(bases))
    tables["provenance"] = pd.json_normalize(known["cells"], sep=".", max_level=2)
    for table in tables.values():
        table.attrs["study"] = known["study"]
    return tables


def shrink(study, results=RESULTS):
    """Make the tables of a study small enough to commit, without the words of its items.

    Items keep numbers and roles; texts go, and so do the responses as text, which quote them: of each
    stays the letter that either parser reads in it. An item is known by its row, log-probabilities have
    16 bits (two or three decimals), and what follows from the rest is left out. `load_study` puts it back.
    Of the folder that items were read from its name stays, not where a machine had it.

    Parameters
    ----------
    study : str
    results : Path
        Folder of all studies' results.

    Returns
    -------
    Path
        Folder of the tables.
    """
    tables = load_study(study, results)
    folder = Path(results) / study / "tables"
    items = tables["items"]
    row = pd.Series(np.arange(len(items), dtype="int32"), index=items["item_id"])

    def narrow(table, kept):
        found = table.assign(item=table["item_id"].map(row).astype("int32"))
        return compact(found[["model", "precision", "item", *kept]].copy())

    logp = [*_LOGP[""], *_LOGP["_t"]]
    drift = [name for name in DRIFT if name in tables["answers"]]
    answers = narrow(tables["answers"], ["order", *logp, *drift])
    answers = answers.astype(dict.fromkeys(logp, "float16"))
    samples, parsed = tables["samples"], [f"parsed_{parser}" for parser in PARSERS]
    packed = {
        "column_encoding": {"item": "DELTA_BINARY_PACKED"},
        "use_dictionary": ["model", "precision", "order", "seed", "parsed_answer", *parsed],
    }
    write_table(items.drop(columns=TEXTS), folder / "items.parquet")
    write_table(answers, folder / "answers.parquet", **packed)
    if "raw_response" in samples:
        known = samples["raw_response"].unique()
        for parser, column in zip(PARSERS, parsed, strict=True):
            letters = {text: parse_response(text, parser) for text in known}
            samples[column] = samples["raw_response"].map(letters)
    samples = narrow(samples, ["seed", "parsed_answer", *parsed])
    write_table(samples, folder / "samples.parquet", **packed)
    undefined = folder / f"{UNDEFINED}.parquet"
    if undefined.is_file():
        write_table(
            pd.read_parquet(undefined).drop(columns="raw_response", errors="ignore"), undefined
        )
    known = read_json(folder / "provenance.json")
    for cell in known["cells"]:
        asked = cell["identity"]["parameters"]
        if Path(asked["items"]).is_absolute():
            asked["items"] = Path(asked["items"]).name
    write_text(json.dumps(known, indent=1) + "\n", folder / "provenance.json")
    return folder


def refresh_items(study, results=RESULTS):
    """Put what `load_items` says of a study's items today into tables that `shrink` made.

    For tables older than a column of items, whose cells nobody wants to run again. The items must be
    those that were asked, word for word: their hash has to be the one in the provenance of the cells,
    which stays as it is. What was added, when and by which code is written beside it.

    Parameters
    ----------
    study : dict
        From `cba_utils.study.protocol.read_study`.
    results : Path
        Folder of all studies' results.

    Returns
    -------
    list of str
        The columns that were added.

    Raises
    ------
    ValueError
        If the tables were not made small, or the items are others.
    FileNotFoundError
        If the study was not run.
    """
    folder = Path(results) / study["name"] / "tables"
    known = read_json(folder / "provenance.json")
    if known is None:
        raise FileNotFoundError(
            f"{folder}: no results; run 'make book STUDY={study['name']}' first"
        )
    before = pd.read_parquet(folder / "items.parquet")
    if set(TEXTS) & set(before):
        raise ValueError(
            f"{folder}: these tables hold the words of their items; 'cba collect {study['name']}' "
            f"makes them again from the cells"
        )
    parameters = cells(study)[0].parameters()
    items = select_items(parameters)
    asked = pd.concat([items, undefined_items(parameters, items)], ignore_index=True)
    earlier = known.get("items_read_again", {}).get("columns_added", [])
    then = [c for c in COLUMNS if c in TEXTS or (c in before and c not in earlier)]
    wanted = {cell["identity"]["items_sha256"] for cell in known["cells"]}
    # Early cells left items without a target out of the hash.
    found = {items_hash(part[then]) for part in (items, asked)}
    if not wanted or wanted - found:
        raise ValueError(
            f"{parameters['items']}: the hash of these items is "
            f"{' or '.join(sorted(h[:12] for h in found))}, and the cells of {study['name']!r} were asked "
            f"{', '.join(sorted(h[:12] for h in wanted))}: not the same items"
        )
    added = [c for c in items if c not in then and c not in before]
    if added:
        code = code_version()
        write_table(items.drop(columns=TEXTS), folder / "items.parquet")
        known["items_read_again"] = {
            "items_sha256": sorted(wanted),
            "columns_added": [*earlier, *added],
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **code,
        }
        write_text(json.dumps(known, indent=1) + "\n", folder / "provenance.json")
    return added


def _whole(tables, known):
    """Tables as they were before `shrink`, but for the texts, which are missing."""
    # What these items have no column for is not known of them: the table is older than the column.
    items = tables["items"]
    items = items.reindex(columns=[c for c in COLUMNS if c in items or c in TEXTS])
    labels = [name for name in STUDY if name != "precision"]
    models = pd.DataFrame(known)[labels].drop_duplicates("model")
    about = items.assign(template_id=template_ids(items))
    about = about[[c for c in ITEM if c in about]]
    roles = np.full((len(items), len(LETTERS)), "", object)
    for role in ROLES:
        roles[np.arange(len(items)), items[f"{role}_index"].astype(int)] = role
    label = items["label"].to_numpy(int)

    def widen(table):
        at = table["item"].to_numpy()
        cell = (
            table[["model", "precision"]]
            .astype(object)
            .merge(models, on="model", how="left")[STUDY]
        )
        return at, pd.concat([cell, about.iloc[at].reset_index(drop=True)], axis=1)

    answers, samples = tables["answers"], tables["samples"]
    at, wide = widen(answers)
    places = np.array([list(map(int, order)) for order in answers["order"].cat.categories])
    places = places[answers["order"].cat.codes]
    wide["order"] = answers["order"].astype(object)
    for k, letter in enumerate(LETTERS):
        wide[f"role_{letter}"] = roles[at, places[:, k]]
    wide["correct"] = np.array([*LETTERS], object)[(places == label[at, None]).argmax(axis=1)]
    for suffix, names in _LOGP.items():
        wide[names] = answers[names].astype("float32")
        wide[f"mass_other{suffix}"] = np.clip(1 - np.exp(wide[names]).sum(axis=1), 0, 1)
    drift = [name for name in DRIFT if name in answers]
    wide[drift] = answers[drift]
    at, drawn = widen(samples)
    place = samples["parsed_answer"].astype(object).map({x: k for k, x in enumerate(LETTERS)})
    told = place.notna().to_numpy()
    place = place.fillna(0).to_numpy(int)
    for name in ("seed", "parsed_answer", *(c for c in samples if c.startswith("parsed_"))):
        drawn[name] = samples[name].astype(object) if name != "seed" else samples[name]
    drawn["role"] = np.where(told, roles[at, place], "unparsed")
    drawn["correct"] = told & (place == label[at])
    return {"items": items, "answers": wide, "samples": drawn}
