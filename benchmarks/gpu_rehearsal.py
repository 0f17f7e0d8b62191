"""Cells of a model of Mistral-7B's shape with random weights, whole through papermill, on one GPU.

``python -m benchmarks.gpu_rehearsal OUT.csv`` makes the checkpoint once (29 GB with its quantized
copies), then runs the run notebook for each precision in a process of its own and writes what each
took. Rows that OUT.csv holds already are kept, so that it can be called again. ``BBQ_DIR`` names the
folder of BBQ's files; without one the project's own items are asked. Answers of random weights mean
nothing; speed does not depend on what the weights are.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from cba_utils.names import PROJECT, RESULTS
from cba_utils.study.protocol import cells, read_study

import pandas as pd
import yaml

NAME = "gpu-rehearsal"
# The ends of the grid and the usual precision first, in case time is short.
PRECISIONS = ("bf16", "q4", "q3", "q8", "q6")
BASE = "mistralai/Mistral-7B-Instruct-v0.3"


def make_checkpoint(folder, layers, parts, packaged):
    """The base model's repository with random weights, unless it is there.

    Parameters
    ----------
    folder : Path
    layers, parts : int
        See `cba_utils.study.rehearsal.repositories.shrunk`; 32 and 1 are the published shape.
    packaged : bool
        Whether Mistral's own tokenizer is there, or a stand-in is to be made.

    Returns
    -------
    Path
    """
    from cba_utils.study.rehearsal.repositories import BASES, build_base, remove

    made = folder / "models" / BASE
    if not (made / "model.safetensors.index.json").exists():
        remove(folder / "models")
        (base,) = [base for base in BASES if base.source == BASE]
        print(build_base(base, folder, (layers, parts), packaged), file=sys.stderr)
    return made


def study_of(checkpoint, items, precisions):
    """A study of the checkpoint, asked as published; its perplexity is that of the project's text.

    Returns
    -------
    Path
        The study's file.
    """
    bbq = os.environ.get("BBQ_DIR")
    source = (
        {"source": bbq, "condition": "ambig"} if bbq else {"source": "bundled", "condition": "both"}
    )
    study = {
        "schema_version": 1,
        "name": NAME,
        "title": "Random weights in the shape of Mistral-7B",
        "models": [{"name": "random-7b", "source": str(checkpoint), "family": "mistral"}],
        "precisions": list(precisions),
        "items": source | {"limit": items},
        "prompt": "published",
        "orders": "original",
        "samples": {
            "seeds": [42, 123, 456, 789, 1024],
            "temperature": 0.3,
            "max_tokens": 5,
            "parser": "published",
        },
        "perplexity": {"text": "bundled", "sequences": 64, "sequence_length": 512},
    }
    path = RESULTS / NAME / "study.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def run_cell(path, precision):
    """Execute the run notebook of one cell here; returns what it took, as a row of the table."""
    from cba_utils.answering import likelihood, scoring
    from cba_utils.study import notebooks

    import mlx.core as mx

    spent = {}
    scoring.stream = _timed_steps(scoring.stream, "seconds_asking", spent)
    likelihood.perplexity = _timed(likelihood.perplexity, "seconds_perplexity", spent)
    (cell,) = [cell for cell in cells(read_study(path)) if cell.precision == precision]
    folder = RESULTS / NAME / cell.folder
    started = time.perf_counter()
    notebooks.execute(
        notebooks.RUN_NOTEBOOK,
        folder / notebooks.RUN_NOTEBOOK.name,
        {**cell.parameters(), "output": str(folder.relative_to(PROJECT))},
        engine="in-process",
    )
    seconds = time.perf_counter() - started
    known = json.loads((folder / "provenance.json").read_text())
    prompts = known["counts"]["answers"]
    return {
        "precision": precision,
        "device": mx.device_info().get("device_name", str(mx.default_device())),
        "mlx": mx.__version__,
        "weights": known["parameters_of_model"],
        "prompts": prompts,
        "answers": known["counts"]["samples"],
        "seconds": seconds,
        **spent,
        "seconds_loading": seconds - sum(spent.values()),
        "prompts_per_second": prompts / spent["seconds_asking"],
        "peak_gigabytes": mx.get_peak_memory() / 1e9,
        "failure": "",
    }


def _timed(function, name, spent):
    def timed(*arguments, **options):
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    return timed


def _timed_steps(generator, name, spent):
    """A generator's own time, without that of whoever takes its values."""

    def timed(*arguments, **options):
        values = generator(*arguments, **options)
        following = _timed(lambda: next(values, None), name, spent)
        while (value := following()) is not None:
            yield value

    return timed


def main(arguments=None):
    """Measure every precision, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_rehearsal", description=__doc__)
    parser.add_argument("table", type=Path, help="CSV of what was measured")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/gpu-rehearsal"), help="for weights"
    )
    parser.add_argument("--items", type=int, default=12148)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--parts", type=int, default=1, help="divide the widths by this")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no cell after so long"
    )
    parser.add_argument(
        "--stand-in", action="store_true", help="a stand-in for Mistral's tokenizer"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["CBA_CACHE"] = str(options.folder / "made")
    if options.cell:
        print(json.dumps(run_cell(options.table, options.cell)))
        return
    started = time.monotonic()
    checkpoint = make_checkpoint(
        options.folder, options.layers, options.parts, not options.stand_in
    )
    print(f"checkpoint in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    path = study_of(checkpoint, options.items, PRECISIONS)
    rows = pd.read_csv(options.table).to_dict("records") if options.table.exists() else []
    # What failed is tried again.
    rows = [row for row in rows if not isinstance(row.get("failure"), str)]
    for precision in PRECISIONS:
        if precision in [row["precision"] for row in rows]:
            continue
        if time.monotonic() - started > options.seconds:
            print(f"{precision}: not started, time is up", file=sys.stderr)
            break
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.gpu_rehearsal",
                str(path),
                "--cell",
                precision,
                "--folder",
                str(options.folder),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        row = {"precision": precision, "failure": f"ended with {done.returncode}"}
        if done.returncode == 0:
            row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        pd.DataFrame(rows).to_csv(options.table, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
