"""The engine on a GPU: a model of the shape of Mistral-7B with random weights.

``python -m benchmarks.gpu OUT.csv`` needs MLX with CUDA or Metal and about 30 GB of its memory. Rows
that OUT.csv holds already are kept. Answers of random weights mean nothing; speed does not depend on
what the weights are.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.tokens import count_tokens  # isort: skip  (settles the BLAS before MLX)

from cba_utils.answering.checkpoints import LoadedModel, to_dense
from cba_utils.answering.items import load_items
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import chat_ids, user_text
from cba_utils.answering.scoring import PAPER_SEEDS, stream
from cba_utils.answering.sources import find_checkpoint

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pandas as pd
from mlx.utils import tree_map
from mlx_lm.models import llama
from mlx_lm.sample_utils import make_sampler

SHAPE = dict(
    model_type="mistral",
    hidden_size=4096,
    num_hidden_layers=32,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
    vocab_size=32768,
    rope_theta=1e6,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
)
ITEMS, LOOP_ITEMS, ROUNDS = 512, 2, 5
# A slow kernel gets fewer rounds, so that the other precisions get their turn.
MOST_SECONDS = 30
# Each case runs in a process of its own, which is ended after this time. MLX's CUDA backend compiles
# its quantized kernels when they are first needed, half a minute each.
LIMIT = 240
CASES = [
    ("bf16", "native"),
    ("q8", "dense"),
    ("q4", "dense"),
    ("q3", "dense"),
    ("q4", "native"),
    ("q8", "native"),
    ("q3", "native"),
]


def random_model(precision, compute):
    """A loaded model with random weights at a precision."""
    path = find_checkpoint("toy-mistral/b1")
    tokenizer = mlx_lm.tokenizer_utils.load(path)
    network = llama.Model(llama.ModelArgs.from_dict(SHAPE))
    network.update(tree_map(lambda v: v.astype(mx.bfloat16), network.parameters()))
    mx.eval(network.parameters())
    asked = parse_precision(precision)
    if asked.method:
        nn.quantize(network, asked.group, asked.bits, mode=asked.mode)
        mx.eval(network.parameters())
    if compute == "dense":
        network = to_dense(network)
    return LoadedModel("random-7b", precision, network, tokenizer, compute, path, path, 32768)


def product_rate(layer, rows):
    """Operations a second of a layer's product with a number of rows."""
    x = mx.random.normal((rows, SHAPE["hidden_size"])).astype(mx.bfloat16)
    mx.eval(layer(x))
    start = time.perf_counter()
    for _ in range(10):
        mx.eval(layer(x))
    seconds = (time.perf_counter() - start) / 10
    return 2 * rows * SHAPE["hidden_size"] * SHAPE["intermediate_size"] / seconds


def median_seconds(work):
    """Median of repeated runs, after one that does not count, and how many they were."""
    work()
    seconds = []
    while len(seconds) < ROUNDS and sum(seconds) < MOST_SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), len(seconds)


def measure(precision, compute):
    """Yield what is known of a case, as soon as it is known."""
    items = load_items("bundled", condition="both").head(ITEMS)
    reference = nn.Linear(SHAPE["hidden_size"], SHAPE["intermediate_size"], bias=False)
    reference.update(tree_map(lambda v: v.astype(mx.bfloat16), reference.parameters()))
    rate = product_rate(reference, 4096)
    yield {
        "device": mx.device_info().get("device_name", str(mx.default_device())),
        "mlx": mx.__version__,
        "matmul_teraflops": rate / 1e12,
    }
    loaded = random_model(precision, compute)
    wide = product_rate(loaded.model.layers[0].mlp.up_proj, 4096)
    yield {"product_teraflops": wide / 1e12}
    tokens, run, _ = count_tokens(loaded, items)
    seconds, rounds = median_seconds(lambda: list(stream(loaded, items, "original", 0.3)))
    weights = 7.25e9 - 2 * 32768 * 4096
    yield {
        "items": len(items),
        "rounds": rounds,
        "prompt_tokens_per_second": tokens / seconds,
        "prompts_per_second": len(items) / seconds,
        "utilization": 2 * weights * run / seconds / rate,
        "peak_gigabytes": mx.get_peak_memory() / 1e9,
    }
    draws = dict(seeds=PAPER_SEEDS, temperature=0.3, max_tokens=5, parser="strict")
    seconds, _ = median_seconds(lambda: list(stream(loaded, items, "original", 0.3, draws)))
    yield {"answers_per_second": 5 * len(items) / seconds}
    if compute == "native":
        yield {"loop_answers_per_second": 5 * LOOP_ITEMS / median_seconds(_loop(loaded, items))[0]}


def _loop(loaded, items):
    """The published way of asking: one prompt, one seed, one answer at a time."""
    ids, _ = chat_ids(
        loaded.hf_tokenizer, [user_text(item) for item in items.head(LOOP_ITEMS).to_dict("records")]
    )
    sampler = make_sampler(temp=0.3)

    def loop():
        for prompt in ids:
            for seed in PAPER_SEEDS:
                mx.random.seed(seed)
                mlx_lm.generate(
                    loaded.model, loaded.tokenizer, prompt, max_tokens=5, sampler=sampler
                )

    return loop


def run_case(precision, compute):
    """A row of the table; a case that fails or takes too long is a row too."""
    row = {"precision": precision, "compute": compute, "failure": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", precision, compute]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT)
        output = done.stdout
        if done.returncode:
            row["failure"] = done.stderr.decode().strip().splitlines()[-1]
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        row["failure"] = f"stopped after {LIMIT} seconds"
    for line in output.decode().splitlines():
        row |= json.loads(line)
    return row


def main(arguments):
    """Measure every case, or in a process of its own one of them."""
    if len(arguments) == 2:
        for known in measure(*arguments):
            print(json.dumps(known), flush=True)
        return
    path = Path(arguments[0])
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    for case in CASES:
        if case not in [(row["precision"], row["compute"]) for row in rows]:
            rows.append(run_case(*case))
            print(rows[-1], file=sys.stderr, flush=True)
            pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(sys.argv[1:])
