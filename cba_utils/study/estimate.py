"""What running a study would take on this machine, and what it would fetch; nothing is downloaded."""

import fnmatch
import json
import math
import os
import time

from cba_utils.answering.items import files_of_categories
from cba_utils.answering.precisions import stored_bits
from cba_utils.answering.sources import PACKAGE, at_precision, hub_files, hub_sizes, local_folder
from cba_utils.study.protocol import cells

# Models that `cba_utils.study.rounding.variants` makes of one, at most, and copies of the weights that it
# holds, in double precision.
_VARIANTS, _COPIES = 8, 4
# Tokens of a prompt that are run: most have 130, and shared beginnings are run once.
PROMPT_TOKENS = 110


def estimate(study, hub=None):
    """What running a study would take on this machine; nothing is downloaded.

    Parameters
    ----------
    study : dict
    hub : dict, optional
        From `taken_from_hub`: says the size of models whose ``parameters`` the study does not state.

    Returns
    -------
    dict
        ``cells``, ``prompts``, ``memory`` and ``disk`` in bytes, ``seconds``, ``rate`` (floating
        point operations a second that a matrix product reaches here, measured now), and ``unknown``:
        what would have to be stated. Of what depends on it, the value is None.

    Notes
    -----
    Two operations a weight and token; prompts of 130 tokens, five sixths of which are run after
    shared beginnings are taken out. An order-of-magnitude figure, and named so.
    """
    from cba_utils.answering.prompts import ORDERS

    grid, items = cells(study), _item_count(study)
    weights = {model["name"]: _parameters(model, grid, hub or {}) for model in study["models"]}
    unknown = [
        f"parameters of {name} (in the study file: parameters: <number of its weights>)"
        for name, count in weights.items()
        if count is None
    ]
    if items is None:
        unknown.append(
            "the number of items (in the study file: items.expected: <number>, or a limit)"
        )
    rate, bytes_each = _matmul_rate()
    found = {
        "cells": len(grid),
        "prompts": None,
        "memory": None,
        "disk": None,
        "seconds": None,
        "rate": rate,
        "unknown": unknown,
    }
    if unknown:
        return found
    prompts = {cell: items * len(ORDERS[cell.orders]) for cell in grid}
    text_tokens = study["perplexity"]["sequences"] * study["perplexity"]["sequence_length"]
    apart = {cell.name for cell in grid if cell.base}
    operations = sum(
        2 * weights[cell.name] * (PROMPT_TOKENS * prompts[cell] + text_tokens) for cell in grid
    )
    operations += sum(
        2 * weights[name] * _VARIANTS * (PROMPT_TOKENS * items + text_tokens) for name in apart
    )
    largest = max(weights.values(), default=0)
    copied = max((8 * _COPIES * weights[name] for name in apart), default=0)
    stored = {(cell.name, cell.precision) for cell in grid}
    return found | {
        "prompts": sum(prompts.values()) + _VARIANTS * items * len(apart),
        "memory": int(largest * bytes_each * 1.25 + copied + 5e8),
        "disk": int(
            sum(weights[name] * stored_bits(p) / 8 for name, p in stored)
            + sum(prompts.values()) * 60
        ),
        "seconds": operations / rate + len(grid) + _VARIANTS * len(apart),
    }


def describe(study):
    """Cells of a study, and what running it would take and fetch, in lines for people.

    Parameters
    ----------
    study : dict

    Returns
    -------
    list of str
    """
    hub = taken_from_hub(study)
    needs, grid = estimate(study, hub), cells(study)
    lines = [f"{study['name']}: {study['title']}"]
    for name in dict.fromkeys(cell.name for cell in grid):
        mine = [cell for cell in grid if cell.name == name]
        lines.append(f"  {name:24} {mine[0].model:48} {' '.join(cell.precision for cell in mine)}")
    lines.append(f"cells    {needs['cells']}")
    if needs["unknown"]:
        lines += [f"unknown  {what}" for what in needs["unknown"]]
        lines.append("so prompts, memory, disk and time are unknown")
    else:
        lines += [
            f"prompts  {needs['prompts']:,}",
            f"memory   about {needs['memory'] / 1e9:.1f} GB at the highest precision",
            f"disk     about {needs['disk'] / 1e9:.1f} GB of weights and records",
            f"time     about {duration(needs['seconds'])} here, at {needs['rate'] / 1e9:,.0f} GFLOP/s "
            f"(rough: half of a matrix product's rate)",
        ]
    for source, files in hub.items():
        if isinstance(files, str):
            lines.append(f"hub      {source}: size unknown ({files})")
        else:
            named = ", ".join(sorted(files))
            lines.append(
                f"hub      {source}: {sum(files.values()) / 1e9:.2f} GB in {len(files)} files: {named}"
            )
    known = [files for files in hub.values() if not isinstance(files, str)]
    if len(known) > 1:
        lines.append(
            f"hub      in all {sum(sum(files.values()) for files in known) / 1e9:.1f} GB"
            + (", without what is unknown" if len(known) < len(hub) else "")
        )
    return [*lines, "nothing was downloaded"]


def taken_from_hub(study):
    """Files that a study reads from the hub, by the hub's own lists; none of them is fetched.

    Parameters
    ----------
    study : dict

    Returns
    -------
    dict of str to dict of str to int, or str
        Bytes by file by repository (data sets begin with ``datasets/``); for a repository whose list
        could not be had, why.
    """
    wanted = [(at_precision(cell.model, cell.precision), hub_files) for cell in cells(study)]
    items, text = study["items"], study["perplexity"]["text"]
    wanted += [
        (
            items["source"],
            lambda name: _data_files(
                name, lambda files: files_of_categories(files, items.get("categories"))
            ),
        ),
        (
            text,
            lambda name: _data_files(
                name, lambda files: fnmatch.filter(files, "data/train*.parquet")
            ),
        ),
    ]
    found, reachable = {}, True
    for source, ask in wanted:
        name = source if ask is hub_files else f"datasets/{source}"
        if name in found or not is_hub_id(source):
            continue
        try:
            found[name] = ask(source) if reachable else "not asked, since the hub did not answer"
        except (OSError, ValueError) as error:
            found[name] = str(error)
            # A hub that says no is asked on; one that cannot be reached would be waited for each time.
            reachable = getattr(error.__cause__ or error, "response", None) is not None
    return found


def _data_files(source, choose):
    sizes = hub_sizes(source, "dataset")
    return {name: sizes[name] for name in choose(sizes)}


def is_hub_id(source):
    """Whether a source is written as a hub id and nothing of this machine.

    Examples
    --------
    >>> is_hub_id("Elfsong/BBQ"), is_hub_id("toy-mistral/b1"), is_hub_id("bundled")
    (True, False, False)
    """
    return source.count("/") == 1 and not os.path.exists(source) and local_folder(source) is None


def _item_count(study):
    items = study["items"]
    count, limit = items.get("expected"), items.get("limit")
    if count is None and not is_hub_id(items["source"]):
        from cba_utils.answering.items import load_items

        count = len(load_items(items["source"], items.get("categories"), items["condition"]))
    known = [number for number in (count, limit) if number is not None]
    return min(known, default=None)


def _parameters(model, grid, hub):
    """Weights of a model: as stated, of its package or local files, or by the size of a hub's."""
    if model.get("parameters"):
        return model["parameters"]
    if model["source"].startswith(PACKAGE):
        from cba_utils.answering.packages import PACKAGES

        return PACKAGES[model["source"].removeprefix(PACKAGE)].parameters
    for cell in grid:
        if cell.name != model["name"]:
            continue
        source = at_precision(cell.model, cell.precision)
        folder, files = local_folder(source), hub.get(source)
        if folder:
            return _stored_weights(folder)
        if isinstance(files, dict):
            stored = sum(size for name, size in files.items() if name.endswith(".safetensors"))
            # A repository for all precisions holds the weights in bf16.
            precision = cell.precision if "{precision}" in cell.model else "bf16"
            return int(8 * stored / stored_bits(precision))
    return None


def _stored_weights(folder):
    """Number of weights by the headers of a checkpoint's files; packed ones are counted one by one."""
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bits = (config.get("quantization") or {}).get("bits", 32)
    total = 0
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                stored = tensors.get_slice(name)
                packed = stored.get_dtype() == "U32"
                if not name.endswith((".scales", ".biases")):
                    total += math.prod(stored.get_shape()) * (32 / bits if packed else 1)
    return int(total)


def _matmul_rate():
    """Operations a second of a product like the models', and bytes a weight takes there."""
    import mlx.core as mx

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    kind = mx.float32 if on_cpu else mx.bfloat16
    a, b = (mx.random.normal(shape).astype(kind) for shape in ((2048, 1024), (1024, 2048)))
    mx.eval(a @ b)
    start = time.perf_counter()
    for _ in range(4):
        mx.eval(a @ b)
    rate = 4 * 2 * 2048 * 1024 * 2048 / (time.perf_counter() - start)
    # Half the peak is what whole forward passes reach; on a CPU every core makes its own product.
    return rate / 2 * (os.cpu_count() if on_cpu else 1), 4 if on_cpu else 2


def duration(seconds):
    """A length of time for people.

    Examples
    --------
    >>> duration(90), duration(900), duration(9000)
    ('90 seconds', '15 minutes', '2 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours"
