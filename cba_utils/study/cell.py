"""Records of a cell: written whole or not at all, resumed after a kill, reused only if identical.

A cell's folder holds ``answers.parquet``, ``samples.parquet``, ``perplexity.parquet`` and
``provenance.json``, the last written last: a cell without it is not finished. While a cell runs,
finished blocks of items wait in ``parts/``, under the identity of the run they belong to.
"""

import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.answering.items import load_items
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import ORDERS
from cba_utils.names import REFERENCE
from cba_utils.study.files import read_json, write_table, write_text
from cba_utils.study.protocol import check_parameters
from cba_utils.study.provenance import SCHEMA_VERSION, _folded, cell_identity, surroundings
from cba_utils.study.roles import counted_from_the_end
from cba_utils.study.states import States, free

TABLES = ("answers", "samples", "perplexity")
# Answers to items without a target, of a cell that has such items: no measure holds them.
UNDEFINED = "undefined"


def evaluate(parameters, folder):
    """Evaluate one cell, or finish or reuse what is there.

    Parameters
    ----------
    parameters : dict
        The run notebook's parameters, see `cba_utils.study.protocol.Cell.parameters`.
    folder : str or Path
        Where the records go.

    Returns
    -------
    dict of str to DataFrame
        ``answers``, ``samples`` and ``perplexity``. Beside them the folder may have
        ``undefined.parquet``, see `undefined_items`.

    Raises
    ------
    ValueError
        For bad parameters, or if an item is missing from or repeated in the records.
    OSError
        If a file cannot be written; finished blocks stay and the next run goes on from them.
    """
    check_parameters(parameters)
    folder = Path(folder)
    items = select_items(parameters)
    loaded = _load(parameters)
    left = undefined_items(parameters, items)
    asked = pd.concat([items, left], ignore_index=True) if len(left) else items
    identity = cell_identity(parameters, asked, loaded)
    known = read_json(folder / "provenance.json")
    if known and known["identity"] == identity:
        return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    _check_apart(parameters, loaded)
    (folder / "provenance.json").unlink(missing_ok=True)
    started, clock = datetime.now(UTC), time.perf_counter()
    states = States(identity) if parameters["drift"] else None
    notes = []
    if states and states.left_out:
        notes, states = [f"not compared over the vocabulary: {states.left_out}"], None
    if states and not states.own and not (states.ready and states.whole(_starts(items))):
        del loaded  # one model at a time
        free()
        _make_ready(parameters, items, states)
        loaded = _load(parameters)
    tables = _run(parameters, loaded, items, left, folder / "parts", identity, states)
    if states and states.own:
        states.remember(loaded)
    _check_complete(tables, items, parameters)
    (folder / f"{UNDEFINED}.parquet").unlink(missing_ok=True)
    if (folder / "parts" / f"{UNDEFINED}.parquet").exists():
        (folder / "parts" / f"{UNDEFINED}.parquet").replace(folder / f"{UNDEFINED}.parquet")
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "counts": {name: len(table) for name, table in tables.items()},
        "undefined_targets": items.attrs["undefined_targets"],
        "system_folded": _folded(loaded, parameters),
        "notes": [*loaded.notes, *notes],
        "parameters_of_model": loaded.parameters,
        "weights_bytes": loaded.weights_bytes,
        **surroundings(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
    }
    write_text(json.dumps(provenance, indent=1) + "\n", folder / "provenance.json")
    shutil.rmtree(folder / "parts")
    return tables


def _load(parameters, precision=None):
    from cba_utils.answering.checkpoints import load_model

    return load_model(
        parameters["model"],
        precision or parameters["precision"],
        parameters["compute"],
        parameters["adapter"],
    )


def _check_apart(parameters, loaded):
    """What a rounding was fitted to is not what it is judged by."""
    from cba_utils.answering.calibration import kept_apart
    from cba_utils.answering.likelihood import load_texts, token_ids

    kept = kept_apart(parse_precision(loaded.precision).calibration, parameters["text"])
    if kept is None:
        return
    needed = parameters["sequences"] * parameters["sequence_length"]
    texts = load_texts(parameters["text"], loaded, needed)[:kept]
    if len(token_ids(texts, loaded, needed)) < needed:
        raise ValueError(
            f"sequences: {parameters['sequences']} of {parameters['sequence_length']} tokens reach into "
            f"the part of {parameters['text']!r} that {loaded.precision!r} was fitted to; ask for fewer"
        )


def _starts(items):
    from cba_utils.answering.scoring import ITEMS_AT_ONCE

    return range(0, len(items), ITEMS_AT_ONCE)


def _make_ready(parameters, items, states):
    """Load the reference's head, and compute those of its states that are not in the cache."""
    from cba_utils.answering.scoring import stream

    reference = _load(parameters, REFERENCE)
    states.remember(reference)
    if not states.whole(_starts(items)):
        # All orders, though one is kept: the last digits depend on the prompts that share a pass.
        for _ in stream(
            reference,
            items,
            parameters["orders"],
            prompt=parameters["prompt"],
            date=parameters["date"],
            beside=states.beside("answers", keep=True),
        ):
            pass
        _text_losses(parameters, reference, states, keep=True)
    del reference
    free()


def _text_losses(parameters, loaded, states, keep=None):
    """Losses on the held-out text, a row a sequence."""
    from cba_utils.answering.likelihood import (
        load_texts,
        perplexity,
        published_losses,
        token_ids,
    )

    length = parameters["sequence_length"]
    needed = parameters["sequences"] * length
    texts = load_texts(
        parameters["text"], loaded, needed, parameters["text_seed"], parameters["date"]
    )
    # Sequences beyond those asked for are not run: tokens of a long text are cut first.
    ids = token_ids(texts, loaded, needed)
    found = perplexity(loaded, [ids], length, states and states.beside("text", keep=keep))
    if states and (keep or states.own):
        states.text_done()
    if parameters["perplexity_method"] == "published" and not keep:
        found = found.join(published_losses(loaded, [ids], length))
    return found


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


def undefined_items(parameters, items):
    """Items that the published study asked although they have no target.

    They are asked too, so that the records are as many as the published ones; no measure holds them.
    A page shows what counting them as the published code did (-1 is its last answer, C) would change.

    Parameters
    ----------
    parameters : dict
    items : DataFrame
        From `select_items`.

    Returns
    -------
    DataFrame
        The ambiguous ones, none if a limit makes the items a choice.
    """
    names = items.attrs["undefined_targets"]
    if not names or parameters["limit"] is not None or parameters["condition"] == "disambig":
        return items.iloc[:0]
    return load_items(parameters["items"], parameters["categories"], "ambig", targets="undefined")


def _ask_undefined(parameters, loaded, left, draws):
    """Sampled answers to items without a target, with the roles that the published code gave."""
    from cba_utils.answering.scoring import stream

    # The engine's frames want a role for each answer; these are not kept.
    shown = left.assign(
        stereotyped_index=(left["unknown_index"] + 1) % 3,
        anti_stereotyped_index=(left["unknown_index"] + 2) % 3,
    )
    work = stream(
        loaded,
        shown,
        "original",
        parameters["temperature"],
        draws,
        prompt=parameters["prompt"],
        date=parameters["date"],
    )
    samples = pd.concat([part for _, part in work], ignore_index=True)
    roles = counted_from_the_end(
        left[["unknown_index"]].assign(stereotyped_index=-1, anti_stereotyped_index=-1).astype(int)
    )
    return samples.drop(columns=["role", "correct"]).merge(
        roles.assign(item_id=left["item_id"]), on="item_id"
    )


def _run(parameters, loaded, items, left, parts, identity, states):
    """Answers, samples and perplexity, each block kept in `parts` as soon as it is done."""
    from cba_utils.answering.scoring import stream

    if read_json(parts / "identity.json") != identity:
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(identity), parts / "identity.json")
    draws = {key: parameters[key] for key in ("seeds", "temperature", "max_tokens", "parser")}
    blocks = _starts(items)
    todo = [
        block
        for block in blocks
        if not all((parts / f"{name}-{block}.parquet").exists() for name in TABLES[:2])
    ]
    if todo:
        work = stream(
            loaded,
            items.iloc[todo[0] :],
            parameters["orders"],
            parameters["temperature"],
            draws,
            prompt=parameters["prompt"],
            date=parameters["date"],
            beside=states and states.beside("answers", todo[0]),
        )
        for block, (answers, samples) in zip(blocks[blocks.index(todo[0]) :], work, strict=True):
            write_table(answers, parts / f"answers-{block}.parquet")
            write_table(samples, parts / f"samples-{block}.parquet")
    if len(left) and not (parts / f"{UNDEFINED}.parquet").exists():
        write_table(_ask_undefined(parameters, loaded, left, draws), parts / f"{UNDEFINED}.parquet")
    if not (parts / "perplexity.parquet").exists():
        found = _text_losses(parameters, loaded, states)
        write_table(found, parts / "perplexity.parquet")
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
