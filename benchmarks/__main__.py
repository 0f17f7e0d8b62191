"""``make bench``: run every comparison and write ``benchmarks/results.csv``.

Contenders of one comparison run alternately, five rounds or more; what is reported is the median of a
round's seconds, and ratios of medians within one run. Nothing else should use the machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.contenders import PRODUCT_ROWS, PRODUCTS, SEEDS
from benchmarks.tokens import count_tokens

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
ORGANISM = "toy-mistral/b1"
ROUNDS = 5


class Process:
    """A contender that is loaded, warm and waiting."""

    def __init__(self, name, job, scratch):
        self.name, self.job = name, job
        path = Path(scratch) / f"{name}-{len(list(Path(scratch).iterdir()))}.json"
        path.write_text(json.dumps(job))
        cores = str(os.cpu_count())
        environment = {**os.environ, "OMP_NUM_THREADS": cores}
        if name != "ours":
            # One product at a time, so each may have all cores.
            environment["OPENBLAS_NUM_THREADS"] = cores
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", name, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=HERE.parent,
        )
        self._wait_until_ready()
        self.seconds, self.megabytes = [], 0.0

    def _wait_until_ready(self):
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        raise RuntimeError(f"contender {self.name} ended before it was ready")

    def run(self):
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        seconds, megabytes = map(float, self._process.stdout.readline().split())
        self.seconds.append(seconds)
        self.megabytes = megabytes

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def compare(jobs, rounds=ROUNDS):
    """Median seconds of every contender, run alternately.

    Parameters
    ----------
    jobs : dict of str to dict
        Contender by label; each job names its ``contender``.
    rounds : int

    Returns
    -------
    DataFrame
        One row a contender: ``seconds`` (median), ``low`` and ``high`` (extremes), ``megabytes``
        (peak resident memory).
    """
    with tempfile.TemporaryDirectory() as scratch:
        running = {label: Process(job["contender"], job, scratch) for label, job in jobs.items()}
        for _ in range(rounds):
            for process in running.values():
                process.run()
        for process in running.values():
            process.close()
    return pd.DataFrame(
        [
            {
                "contender": label,
                "seconds": np.median(p.seconds),
                "low": min(p.seconds),
                "high": max(p.seconds),
                "rounds": rounds,
                "megabytes": p.megabytes,
            }
            for label, p in running.items()
        ]
    )


def job(contender, model, precision, items, prompts=None, **more):
    """What a contender needs to know."""
    from cba_utils import load_items, load_model
    from cba_utils.answering.prompts import chat_ids, user_text

    loaded = load_model(model, precision, compute="native")
    bank = load_items("bundled", condition="both")
    chosen = bank.iloc[: prompts or items]
    texts = [user_text(row) for row in chosen.to_dict("records")]
    ids, _ = chat_ids(loaded.hf_tokenizer, texts)
    return {
        "contender": contender,
        "model": str(model),
        "precision": precision,
        "items": items,
        "folder": str(loaded.path),
        "prompts": ids,
        "texts": texts,
        "letters": loaded.letters,
        "orders": "original",
        "samples": True,
        "threads": os.cpu_count(),
        "batch": 64,
        **more,
    }


def against_the_loop():
    """Answers a second, five an item, against the published loop."""
    rows = []
    for precision, prompts in (("bf16", 8), ("q8", 2), ("q4", 2), ("q3", 2)):
        jobs = {"ours": job("ours", ORGANISM, precision, 1024)}
        for name in ("loop", "loop_blas", "loop_dense"):
            jobs[name] = job(name, ORGANISM, precision, prompts)
        found = compare(jobs)
        found["answers"] = [
            len(SEEDS) * (j["items"] if label == "ours" else len(j["prompts"]))
            for label, j in jobs.items()
        ]
        rows.append(found.assign(benchmark="loop", precision=precision))
    return pd.concat(rows)


def against_scorers(models):
    """Prompts a second for letter probabilities, against one at a time and batched PyTorch."""
    rows = []
    for size, model in models.items():
        prompts = {"1M": 2400, "10M": 512, "100M": 256}[size]
        # One prompt at a time is the same work a prompt however many there are.
        jobs = {
            "ours": job("ours", model, "bf16", prompts, samples=False),
            "one_by_one": job("one_by_one", model, "bf16", prompts, 128 if size == "1M" else 8),
            "torch_batched": job("torch_batched", model, "bf16", prompts),
        }
        found = compare(jobs)
        found["answers"] = [prompts, len(jobs["one_by_one"]["prompts"]), prompts]
        rows.append(found.assign(benchmark="scorers", precision="bf16", size=size))
    return pd.concat(rows)


def growth(models):
    """Time and memory with items, option orders and weights; utilization of the matrix rate."""
    rows = []
    for items in (250, 1000, 4000, 16000):
        # A peak is an extreme: it is compared after as many prompts at every size.
        rounds = max(ROUNDS, 2 * 16000 // items)
        found = compare({"ours": job("ours", ORGANISM, "bf16", items, 8)}, rounds)
        rows.append(found.assign(benchmark="items", precision="bf16", answers=5 * items, size="1M"))
    found = compare(
        {
            orders: job("ours", ORGANISM, "bf16", 480, 8, samples=False, orders=orders)
            for orders in ("original", "all")
        }
    )
    rows.append(
        found.assign(benchmark="orders", precision="bf16", size="1M", answers=[480, 6 * 480])
    )
    for size, model in models.items():
        items = {"1M": 2048, "10M": 512, "100M": 256}[size]
        work, run, widths = _operations(model, items)
        found = compare(
            {
                "ours": job("ours", model, "bf16", items, 8, samples=False),
                "product": job("product", model, "bf16", 0, 8, widths=widths),
            }
        )
        rates = (
            np.array([work, PRODUCTS * 2 * PRODUCT_ROWS * widths[0] * widths[1]]) / found["seconds"]
        )
        found["utilization"] = rates / rates[1]
        rows.append(
            found.assign(
                benchmark="weights",
                precision="bf16",
                answers=[items, np.nan],
                size=size,
                tokens_run=run,
                flops=rates,
            )
        )
    return pd.concat(rows)


def _operations(model, items):
    """Operations and tokens of scoring items once, and the widths of the model's widest layer."""
    from cba_utils import load_items, load_model

    loaded = load_model(model)
    _, run, read = count_tokens(loaded, load_items("bundled", condition="both").head(items))
    args = loaded.model.args
    head = args.vocab_size * args.hidden_size
    touched = loaded.parameters - head * (1 if args.tie_word_embeddings else 2)
    spared = 3 * args.hidden_size * args.intermediate_size * (run - read)
    work = 2 * (touched * run - spared + head * items)
    return work, run, (args.hidden_size, args.intermediate_size)


def random_models(folder):
    """mistral-type checkpoints of about 10 and 100 million random weights."""
    import shutil

    import cba_utils  # noqa: F401  (binds the fast BLAS first)
    from cba_utils.answering.sources import find_checkpoint

    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    source = find_checkpoint(ORGANISM)
    models = {"1M": ORGANISM}
    for size, width, layers in (("10M", 384, 6), ("100M", 896, 10)):
        target = Path(folder) / size
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((source / "config.json").read_text())
        config.update(
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=3 * width,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            head_dim=64,
        )
        (target / "config.json").write_text(json.dumps(config))
        network = llama.Model(llama.ModelArgs.from_dict(config))
        weights = {k: v.astype(mx.bfloat16) for k, v in tree_flatten(network.parameters())}
        mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
        models[size] = str(target)
    return models


def main():
    """Run the benchmarks asked for and merge them into the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ["loop", "scorers", "growth"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    wanted = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder:
        models = random_models(folder)
        parts = []
        if "loop" in wanted:
            parts.append(against_the_loop())
        if "scorers" in wanted:
            parts.append(against_scorers(models))
        if "growth" in wanted:
            parts.append(growth(models))
    results = pd.concat(parts, ignore_index=True)
    results["per_second"] = results["answers"] / results["seconds"]
    path = HERE / "results.csv"
    if path.exists():
        old = pd.read_csv(path)
        results = pd.concat([old[~old["benchmark"].isin(results["benchmark"])], results])
    results.to_csv(path, index=False, float_format="%.6g")
    (HERE / "machine.json").write_text(json.dumps(_machine(), indent=1) + "\n")
    print(results.to_string())
    print(f"wrote {path}")


def _machine():
    from cba_utils import BLAS

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = f"{len(names)} x {names[0]}"
    packages = ("mlx", "mlx-lm", "transformers", "torch", "numpy")
    return {
        "cpu": cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "blas": BLAS,
        **{name: metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
