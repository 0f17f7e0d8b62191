"""Two functions of mlx-lm's models with the exponentials computed by NumPy, and a shorter last layer.

On a CPU, MLX computes ``exp`` one element at a time: attention weights and SiLU then take three
quarters of a small model's forward pass. NumPy's ``exp`` is vectorised, ten times as fast, and can
work in place on MLX's own memory. Same formulas, fp32, differences of a rounding.

Of the last layer only a prompt's last position is read, so its attention and its MLP are computed
there alone; keys and values, which later tokens need, at every position.
"""

import sys
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import numpy as np

# Far below any score, and finite: a row is never masked whole.
_MASKED = -1e9


# Position of each row that will be read; each thread has its own.
_read = ContextVar("read", default=None)


@contextmanager
def dense_kernels(loaded):
    """Let a model that computes in fp32 use these functions while the block runs.

    mlx-lm's model modules (llama, qwen2, phi3 and most others) call both by name.

    Parameters
    ----------
    loaded : LoadedModel
        One that does not compute in fp32 is left as it is.
    """
    module = sys.modules[type(loaded.model).__module__]
    ours = {"swiglu": _swiglu, "scaled_dot_product_attention": _attention}
    theirs = {name: getattr(module, name) for name in ours if hasattr(module, name)}
    if not loaded.in_fp32:
        theirs = {}
    for name in theirs:
        setattr(module, name, ours[name])
    last = loaded.model.layers[-1]
    mlp = last.mlp if theirs and "mlp" in last else None
    if mlp is not None:
        last.mlp = lambda x: _at_read_positions(mlp, x)
    try:
        yield
    finally:
        if mlp is not None:
            last.mlp = mlp
        for name, function in theirs.items():
            setattr(module, name, function)


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


def _at_read_positions(function, x):
    positions = _read.get()
    if positions is None or x.shape[1] == 1:
        return function(x)
    return _spread(function(x[mx.arange(len(positions)), mx.array(positions)][:, None]), x.shape[1])


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


def _bias(mask, n, length):
    """What to add to scores, so that hidden positions get no weight."""
    if isinstance(mask, str):
        return np.triu(np.full((n, length), _MASKED, np.float32), length - n + 1)
    return np.float32(0) if mask is None else np.where(np.array(mask), np.float32(0), np.float32(_MASKED))


def _exp_below_maximum(x, bias):
    """As `_exp`, less the largest of each row; MLX's ``max`` and ``where`` are slow as well."""
    mx.eval(x)
    view = np.array(x, copy=False)
    view += bias
    view -= view.max(axis=-1, keepdims=True)
    np.exp(view, out=view)
    return x


def _swiglu(gate, x):
    # exp overflows to infinity for a gate below -88, and the quotient is then 0, as it should be.
    with np.errstate(over="ignore"):
        return gate * x / (1 + _exp(-gate))


def _attention(queries, keys, values, cache, scale, mask, sinks=None):
    if sinks is not None:
        raise ValueError("attention sinks are not computed densely; use compute='native'")
    batch, _, n, _ = queries.shape
    length = keys.shape[2]
    bias, read = _bias(mask, n, length), _read.get()
    if getattr(cache, "last_layer", False) and read is not None and n > 1:
        rows = np.arange(batch)
        bias = (bias[read] if bias.ndim == 2 else bias[rows, 0, read])[:, None, None]
        queries = queries[mx.array(rows), :, mx.array(read)][:, :, None]
        return _spread(_mix(queries, keys, values, scale, bias), n)
    return _mix(queries, keys, values, scale, bias)


def _mix(queries, keys, values, scale, bias):
    batch, heads, n, width = queries.shape
    groups, length = keys.shape[1], keys.shape[2]
    # Query heads that share a key head are stacked, so that one product serves them.
    stacked = (queries * scale).reshape(batch, groups, -1, width)
    scores = (stacked @ keys.swapaxes(-1, -2)).reshape(batch, heads, n, length)
    weights = _exp_below_maximum(scores, bias)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = weights.reshape(batch, groups, -1, length) @ values
    return mixed.reshape(batch, heads, n, values.shape[-1]) / total
