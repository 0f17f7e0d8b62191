"""Two functions of mlx-lm's models with the exponentials computed by NumPy.

On a CPU, MLX computes ``exp`` one element at a time: attention weights and SiLU then take three
quarters of a small model's forward pass. NumPy's ``exp`` is vectorised, ten times as fast, and can
work in place on MLX's own memory. Same formulas, fp32, differences of a rounding.
"""

import sys
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

# Far below any score, and finite: a row is never masked whole.
_MASKED = -1e9


@contextmanager
def fast_exponentials(loaded):
    """Let a densely computed model use these functions while the block runs.

    mlx-lm's model modules (llama, qwen2, phi3 and most others) call both by name.

    Parameters
    ----------
    loaded : LoadedModel
        One with ``compute == "native"`` is left as it is.
    """
    module = sys.modules[type(loaded.model).__module__]
    ours = {"swiglu": _swiglu, "scaled_dot_product_attention": _attention}
    theirs = {name: getattr(module, name) for name in ours if hasattr(module, name)}
    if loaded.compute != "dense":
        theirs = {}
    for name in theirs:
        setattr(module, name, ours[name])
    try:
        yield
    finally:
        for name, function in theirs.items():
            setattr(module, name, function)


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
    return 0 if mask is None else np.where(np.array(mask), np.float32(0), np.float32(_MASKED))


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
    batch, heads, n, width = queries.shape
    groups, length = keys.shape[1], keys.shape[2]
    # Query heads that share a key head are stacked, so that one product serves them.
    stacked = (queries * scale).reshape(batch, groups, -1, width)
    scores = (stacked @ keys.swapaxes(-1, -2)).reshape(batch, heads, n, length)
    weights = _exp_below_maximum(scores, _bias(mask, n, length))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = weights.reshape(batch, groups, -1, length) @ values
    return mixed.reshape(batch, heads, n, values.shape[-1]) / total
