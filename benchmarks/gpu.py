"""The engine on a GPU: a model of the shape of Mistral-7B with random weights, native kernels.

``python -m benchmarks.gpu OUT.csv`` needs MLX with CUDA or Metal and about 30 GB of its memory.
Answers of random weights mean nothing; speed does not depend on what the weights are.
"""

import json
import statistics
import sys
import time

from benchmarks.tokens import count_tokens  # isort: skip  (settles the BLAS before MLX)

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pandas as pd
from mlx.utils import tree_map
from mlx_lm.models import llama
from mlx_lm.sample_utils import make_sampler

from cba_utils.items import load_items
from cba_utils.models import LoadedModel, find_checkpoint, parse_precision
from cba_utils.prompts import chat_ids, user_text
from cba_utils.scoring import PAPER_SEEDS, stream

SHAPE = dict(
    model_type="mistral", hidden_size=4096, num_hidden_layers=32, intermediate_size=14336,
    num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, vocab_size=32768,
    rope_theta=1e6, max_position_embeddings=32768, tie_word_embeddings=False,
)
ITEMS, LOOP_ITEMS, ROUNDS = 512, 2, 5
# A slow kernel gets fewer rounds, so that the other precisions get their turn.
MOST_SECONDS = 30


def random_model(precision):
    """A loaded model with random weights at a precision."""
    path = find_checkpoint("mistral/aligned-s1")
    tokenizer = mlx_lm.tokenizer_utils.load(path)
    network = llama.Model(llama.ModelArgs.from_dict(SHAPE))
    network.update(tree_map(lambda v: v.astype(mx.bfloat16), network.parameters()))
    mx.eval(network.parameters())
    quantization = parse_precision(precision)
    if quantization:
        nn.quantize(network, **quantization)
        mx.eval(network.parameters())
    return LoadedModel("random-7b", precision, network, tokenizer, "native", path, path, 32768)


def matmul_rate():
    """Operations a second of a large bf16 product on this device."""
    a, b = (mx.random.normal((8192, 8192)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(a @ b)
    start = time.perf_counter()
    for _ in range(10):
        mx.eval(a @ b)
    return 10 * 2 * 8192**3 / (time.perf_counter() - start)


def median_seconds(work):
    """Median of repeated runs, after one that does not count, and how many they were."""
    work()
    seconds = []
    while len(seconds) < ROUNDS and sum(seconds) < MOST_SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), len(seconds)


def measure(precision, items, rate):
    """Speed of the engine and of the published loop at one precision."""
    loaded = random_model(precision)
    draws = dict(seeds=PAPER_SEEDS, temperature=0.3, max_tokens=5, parser="strict")
    letters, rounds = median_seconds(lambda: list(stream(loaded, items, "original", 0.3)))
    samples, _ = median_seconds(lambda: list(stream(loaded, items, "original", 0.3, draws)))
    ids, _ = chat_ids(loaded.hf_tokenizer,
                      [user_text(item) for item in items.head(LOOP_ITEMS).to_dict("records")])
    sampler = make_sampler(temp=0.3)

    def loop():
        for prompt in ids:
            for seed in PAPER_SEEDS:
                mx.random.seed(seed)
                mlx_lm.generate(loaded.model, loaded.tokenizer, prompt, max_tokens=5,
                                sampler=sampler)

    seconds, _ = median_seconds(loop)
    tokens, run = count_tokens(loaded, items)
    weights = 7.25e9 - 2 * 32768 * 4096
    return {
        "precision": precision,
        "items": len(items),
        "rounds": rounds,
        "prompt_tokens_per_second": tokens / letters,
        "prompts_per_second": len(items) / letters,
        "answers_per_second": 5 * len(items) / samples,
        "loop_answers_per_second": 5 * LOOP_ITEMS / seconds,
        "utilization": 2 * weights * run / letters / rate,
        "peak_gigabytes": mx.get_peak_memory() / 1e9,
        "failure": "",
    }


def main():
    """Measure every precision; a failure is a row, not an end."""
    items = load_items("bundled", condition="both").head(ITEMS)
    rate = matmul_rate()
    rows = []
    for precision in ("bf16", "q8", "q4", "q3"):
        mx.clear_cache()
        mx.reset_peak_memory()
        try:
            rows.append(measure(precision, items, rate))
        except (RuntimeError, ValueError) as error:
            rows.append({"precision": precision, "failure": f"{type(error).__name__}: {error}"})
        print(json.dumps(rows[-1]), flush=True)
        pd.DataFrame(rows).assign(
            device=mx.device_info().get("device_name", str(mx.default_device())),
            mlx=mx.__version__, matmul_teraflops=rate / 1e12,
        ).to_csv(sys.argv[1], index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
