"""Parts of mlx-lm's models done faster on a CPU, in the same fp32 formulas.

On a CPU, MLX computes ``exp``, ``cos`` and ``sin`` one element at a time: attention weights, SiLU
and rotary positions then take most of a small model's forward pass. NumPy's are vectorised, ten
times as fast, and can work in place on MLX's own memory. Differences are those of a rounding.

Of the last layer only a prompt's last position is read, so its attention and its MLP are computed
there alone; keys and values, which later tokens need, at every position.
"""

import sys
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

# Far below any score, and finite: a row is never masked whole.
MASKED = -1e9

# Position of each row that will be read; each thread has its own.
_read = ContextVar("read", default=None)


@contextmanager
def dense_kernels(loaded):
    """Let a model that computes in fp32 use these functions while the block runs.

    mlx-lm's model modules (llama, qwen2, phi3 and most others) call the activation and attention by
    name. Rotary positions of other kinds than the plain one stay MLX's.

    Parameters
    ----------
    loaded : LoadedModel
        One that does not compute in fp32 is left as it is.
    """
    with ExitStack() as changed:
        if loaded.in_fp32:
            module = sys.modules[type(loaded.model).__module__]
            for name, ours in (("swiglu", _swiglu), ("scaled_dot_product_attention", _attention)):
                if hasattr(module, name):
                    changed.enter_context(_instead(module, name, ours))
            for part in loaded.model.modules():
                if type(part.get("rope")) is nn.RoPE and not part.rope.traditional:
                    changed.enter_context(_instead(part, "rope", rotary(part.rope)))
            last = loaded.model.layers[-1]
            if "mlp" in last:
                changed.enter_context(_instead(last, "mlp", _at_read_positions(last.mlp)))
        yield


@contextmanager
def _instead(holder, name, function):
    theirs = getattr(holder, name)
    setattr(holder, name, function)
    try:
        yield
    finally:
        setattr(holder, name, theirs)


@contextmanager
def read_only(positions):
    """Say which position of each row will be read, while the block runs a model.

    Parameters
    ----------
    positions : numpy array of int, one a row
    """
    token = _read.set(positions)
    try:
        yield
    finally:
        _read.reset(token)


def _at_read_positions(function):
    def at_read(x):
        positions = _read.get()
        if positions is None or x.shape[1] == 1:
            return function(x)
        rows = mx.arange(len(positions))
        return _spread(function(x[rows, mx.array(positions)][:, None]), x.shape[1])

    return at_read


def _spread(x, n):
    """Rows of one position at their read position among `n`, zero elsewhere."""
    here = (np.arange(n) == _read.get()[:, None]).astype(np.float32)
    return mx.array(here.reshape(len(here), *[1] * (x.ndim - 3), n, 1)) * x


def _exp(x):
    """Exponential of an array nobody else holds, in its own memory."""
    mx.eval(x)
    view = np.array(x, copy=False)
    np.exp(view, out=view)
    return x


def rotary(rope):
    """The function of a plain rotary module, each angle computed once for all heads.

    Parameters
    ----------
    rope : mlx.nn.RoPE
        Not a traditional one, which turns neighbours instead of halves.

    Returns
    -------
    callable
        Takes ``x``, shape (rows, heads, n, width), and ``offset``, the position of its first
        column, an int or an array of one a row.

    Examples
    --------
    >>> rope, x = nn.RoPE(4), mx.ones((2, 1, 3, 4))
    >>> bool(mx.allclose(rotary(rope)(x, mx.array([0, 7])), rope(x, offset=mx.array([0, 7])), atol=1e-6))
    True
    """
    half = rope.dims // 2
    frequency = np.float32(rope.base) ** (-np.arange(half, dtype=np.float32) / half)

    def rotate(x, offset=0):
        positions = np.array(offset).reshape(-1, 1) + np.arange(x.shape[2])
        angle = (positions * np.float32(rope.scale))[:, :, None, None] * frequency
        cos, sin = mx.array(np.cos(angle)), mx.array(np.sin(angle))
        # In the order in which the product that made x wrote it, neighbours lie side by side.
        first, second, rest = mx.split(x.transpose(0, 2, 1, 3), [half, 2 * half], axis=-1)
        turned = [first * cos - second * sin, first * sin + second * cos, rest]
        return mx.concatenate(turned, axis=-1).transpose(0, 2, 1, 3)

    return rotate


def _bias(mask, n, length):
    """What to add to scores, so that hidden positions get no weight."""
    if isinstance(mask, str):
        return np.triu(np.full((n, length), MASKED, np.float32), length - n + 1)
    if mask is None:
        return np.float32(0)
    mask = np.array(mask, copy=False)
    return np.where(mask, np.float32(0), np.float32(MASKED)) if mask.dtype == bool else mask


def _exp_below_maximum(x, bias, sinks):
    """As `_exp`, less the largest of each row; MLX's ``max`` and ``where`` are slow as well.

    Returns also the sum of each row, to which a sink adds without standing for a position.
    """
    mx.eval(x)
    view = np.array(x, copy=False)
    view += bias
    largest = view.max(axis=-1, keepdims=True)
    if sinks is not None:
        sinks = np.array(sinks.astype(mx.float32)).reshape(-1, 1, 1)
        largest = np.maximum(largest, sinks)
    view -= largest
    np.exp(view, out=view)
    total = x.sum(axis=-1, keepdims=True)
    return x, total if sinks is None else total + mx.array(np.exp(sinks - largest))


def _swiglu(gate, x):
    # exp overflows to infinity for a gate below -88, and the quotient is then 0, as it should be.
    with np.errstate(over="ignore"):
        return gate * x / (1 + _exp(-gate))


def _attention(queries, keys, values, cache, scale, mask, sinks=None):
    batch, _, n, _ = queries.shape
    length = keys.shape[2]
    known = cache.bias(mask) if hasattr(cache, "bias") else None
    bias, read = _bias(mask, n, length) if known is None else known, _read.get()
    if getattr(cache, "last_layer", False) and read is not None and n > 1:
        rows = np.arange(batch)
        # Masks may differ from head to head.
        heads = bias.shape[1] if bias.ndim == 4 else 1
        each = np.broadcast_to(bias, (batch, heads, n, length))
        bias = each[rows, :, read][:, :, None]
        queries = queries[mx.array(rows), :, mx.array(read)][:, :, None]
        return _spread(_mix(queries, keys, values, scale, bias, sinks), n)
    return _mix(queries, keys, values, scale, bias, sinks)


def _mix(queries, keys, values, scale, bias, sinks):
    batch, heads, n, width = queries.shape
    groups, length = keys.shape[1], keys.shape[2]
    # Query heads that share a key head are stacked, so that one product serves them.
    stacked = (queries * scale).reshape(batch, groups, -1, width)
    scores = (stacked @ keys.swapaxes(-1, -2)).reshape(batch, heads, n, length)
    weights, total = _exp_below_maximum(scores, bias, sinks)
    mixed = weights.reshape(batch, groups, -1, length) @ values
    return mixed.reshape(batch, heads, n, values.shape[-1]) / total
