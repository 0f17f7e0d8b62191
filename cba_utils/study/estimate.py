"""What running a study would take on this machine."""

import os
import time

from cba_utils.answering.precisions import stored_bits
from cba_utils.answering.sources import PACKAGE, at_precision
from cba_utils.study.protocol import cells

# Models that `cba_utils.study.rounding.variants` makes of one, at most, and copies of the weights that it
# holds, in double precision.
_VARIANTS, _COPIES = 8, 4

def estimate(study):
    """What running a study would take on this machine; nothing is downloaded.

    Parameters
    ----------
    study : dict

    Returns
    -------
    dict
        ``cells``, ``prompts``, ``memory`` and ``disk`` in bytes, ``seconds``, ``rate`` (floating
        point operations a second that a matrix product reaches here, measured now).

    Notes
    -----
    Two operations a weight and token; prompts of 130 tokens, five sixths of which are run after
    shared beginnings are taken out. An order-of-magnitude figure, and named so.
    """
    from cba_utils.answering.prompts import ORDERS

    grid, items = cells(study), _item_count(study)
    prompts = {cell: items * len(ORDERS[cell.orders]) for cell in grid}
    text_tokens = study["perplexity"]["sequences"] * study["perplexity"]["sequence_length"]
    rate, bytes_each = _matmul_rate()
    weights = {model["name"]: _parameters(model) for model in study["models"]}
    apart = {cell.name for cell in grid if cell.base}
    operations = sum(2 * weights[cell.name] * (110 * prompts[cell] + text_tokens) for cell in grid)
    operations += sum(2 * weights[name] * _VARIANTS * (110 * items + text_tokens) for name in apart)
    largest = max(weights.values())
    copied = max((8 * _COPIES * weights[name] for name in apart), default=0)
    stored = {(cell.name, cell.precision) for cell in grid}
    return {
        "cells": len(grid),
        "prompts": sum(prompts.values()) + _VARIANTS * items * len(apart),
        "memory": int(largest * bytes_each * 1.25 + copied + 5e8),
        "disk": int(sum(weights[name] * stored_bits(p) / 8 for name, p in stored)
                    + sum(prompts.values()) * 60),
        "seconds": operations / rate + len(grid) + _VARIANTS * len(apart),
        "rate": rate,
    }


def describe(study):
    """Cells of a study, and what running it would take, in lines for people.

    Parameters
    ----------
    study : dict

    Returns
    -------
    list of str
    """
    needs, grid = estimate(study), cells(study)
    lines = [f"{study['name']}: {study['title']}"]
    for name in dict.fromkeys(cell.name for cell in grid):
        mine = [cell for cell in grid if cell.name == name]
        lines.append(f"  {name:24} {mine[0].model:48} {' '.join(cell.precision for cell in mine)}")
    return [
        *lines,
        f"cells    {needs['cells']}",
        f"prompts  {needs['prompts']:,}",
        f"memory   about {needs['memory'] / 1e9:.1f} GB at the highest precision",
        f"disk     about {needs['disk'] / 1e9:.1f} GB of weights and records",
        f"time     about {duration(needs['seconds'])} here, at {needs['rate'] / 1e9:,.0f} GFLOP/s "
        f"(rough: half of a matrix product's rate)",
        "nothing was downloaded",
    ]


def _item_count(study):
    items = study["items"]
    count = items.get("expected")
    if count is None:
        from cba_utils.answering.items import load_items

        count = len(load_items(items["source"], items.get("categories"), items["condition"]))
    return min(count, items.get("limit") or count)


def _parameters(model):
    """Weights of a model: as stated or known of its package, else read from the headers of its local files."""
    if "parameters" in model:
        return model["parameters"]
    if model["source"].startswith(PACKAGE):
        from cba_utils.answering.packages import PACKAGES

        return PACKAGES[model["source"].removeprefix(PACKAGE)].parameters
    from safetensors import safe_open

    from cba_utils.answering.sources import find_checkpoint

    total = 0
    for file in find_checkpoint(at_precision(model["source"], "bf16")).glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


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
