"""The tables of a study, joined from its cells, that reports read."""

import json
from pathlib import Path

import pandas as pd

from cba_utils.names import RESULTS
from cba_utils.study.cell import TABLES, UNDEFINED, select_items
from cba_utils.study.files import compact, read_json, write_table, write_text
from cba_utils.study.protocol import cells


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
    about = {key: study[key] for key in ("name", "title", "note", "precisions") if key in study}
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items() if parts}
    return write_study(base, about, items, tables, provenance)


def write_study(base, about, items, tables, provenance):
    """Write the tables that reports read.

    Parameters
    ----------
    base : Path
        Folder of the study's results.
    about : dict
        The study's ``name``, ``title``, ``precisions`` and, if it has one, ``note``.
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
        replicate, depth and precision) and ``provenance`` (one row a cell). ``attrs["study"]`` of
        each holds the study's name, title, precisions and, if it has one, note.

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
