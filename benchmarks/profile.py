"""Where the time of a layer goes on one core: ``python -m benchmarks.profile``.

Each part is timed alone on arrays of the sizes that a pass of the engine has; what the parts do not
explain is copies, transposes and waiting.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.__main__ import random_models
from cba_utils import load_model
from cba_utils.answering import cpu_kernels

import mlx.core as mx
import numpy as np
import pandas as pd

ROWS, LENGTH = 22, 46


def milliseconds(work, times=30):
    """Median milliseconds of some work on this core."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds[times // 5 :]))


def parts_of_a_layer(model):
    """Milliseconds of each part of the first layer, and of the layer whole."""
    loaded = load_model(model)
    layer, args = loaded.model.model.layers[0], loaded.model.args
    heads, width = args.num_attention_heads, args.hidden_size
    each = width // heads

    def normal(*shape):
        array = mx.random.normal(shape)
        mx.eval(array)
        return array

    x, inner = normal(ROWS, LENGTH, width), normal(ROWS, LENGTH, args.intermediate_size)
    q, scores = normal(ROWS, heads, LENGTH, each), normal(ROWS, heads, LENGTH, LENGTH)
    attention, mlp = layer.self_attn, layer.mlp
    products = [
        *((getattr(attention, f"{n}_proj"), x) for n in "qkvo"),
        (mlp.gate_proj, x),
        (mlp.up_proj, x),
        (mlp.down_proj, inner),
    ]
    bias = cpu_kernels._bias("causal", LENGTH, LENGTH)
    rotate = cpu_kernels.rotary(attention.rope)
    found = {
        "weight products": sum(milliseconds(lambda f=f, a=a: mx.eval(f(a))) for f, a in products),
        "scores and mixing": milliseconds(lambda: mx.eval(q @ q.swapaxes(-1, -2)))
        + milliseconds(lambda: mx.eval(scores @ q)),
        "softmax": milliseconds(lambda: cpu_kernels._exp_below_maximum(scores + 0, bias)),
        "SwiGLU": milliseconds(lambda: mx.eval(cpu_kernels._swiglu(inner, inner))),
        "rotary positions": 2 * milliseconds(lambda: mx.eval(rotate(q))),
        "norms and sums": 2 * milliseconds(lambda: mx.eval(layer.input_layernorm(x)))
        + 2 * milliseconds(lambda: mx.eval(x + x)),
    }
    with cpu_kernels.dense_kernels(loaded):
        whole = milliseconds(lambda: mx.eval(layer(x, "causal")))
    return found | {"copies and the rest": max(0.0, whole - sum(found.values()))}


def main():
    """Write ``benchmarks/profile.csv``."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, model in random_models(folder).items():
            found = parts_of_a_layer(model)
            whole = sum(found.values())
            rows += [
                {"size": size, "part": part, "milliseconds": ms, "share": ms / whole}
                for part, ms in found.items()
            ]
    path = Path(__file__).with_name("profile.csv")
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
