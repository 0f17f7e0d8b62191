"""``python -m benchmarks.kernels OUT.csv``: what dense products change against MLX's own kernels.

The same quantized weights score the default study's items both ways; the difference is in the
rounding of activations alone. Nothing is timed, so other work may run beside it. Rows that OUT.csv
holds already are kept.
"""

import sys
from pathlib import Path

from cba_utils import load_model, score_letters
from cba_utils.answering.prompts import LETTERS
from cba_utils.study.cell import select_items
from cba_utils.study.protocol import PROJECT, cells, read_study

import numpy as np
import pandas as pd

import mlx.core as mx  # isort: skip  (cba_utils settles the BLAS first)

MODELS = ("toy-mistral/b1",)
PRECISIONS = ("bf16", "q8", "q4", "q3", "q2")
DEVICE = str(mx.device_info().get("device_name", mx.default_device()))


def difference(model, precision, items):
    """Largest and mean absolute difference of a letter's log-probability; answers that change."""
    dense, native = (
        score_letters(load_model(model, precision, compute=kind), items)
        for kind in ("dense", "native")
    )
    columns = [f"logp_{letter}" for letter in LETTERS]
    ours, theirs = (table[columns].to_numpy(float) for table in (dense, native))
    apart = np.abs(ours - theirs)
    likely = np.exp(theirs) >= 0.01
    return {
        "device": DEVICE,
        "model": model,
        "precision": precision,
        "items": len(items),
        "largest": apart.max(),
        "mean": apart.mean(),
        "largest_likely": apart[likely].max(),
        "largest_probability": np.abs(np.exp(ours) - np.exp(theirs)).max(),
        "changed": int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum()),
    }


def main(path):
    """Measure every model and precision on this device."""
    study = read_study(PROJECT / "config" / "organisms.yml")
    items = select_items(cells(study)[0].parameters())
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    for model in MODELS:
        for precision in PRECISIONS:
            if any(
                (r["device"], r["model"], r["precision"]) == (DEVICE, model, precision)
                for r in rows
            ):
                continue
            rows.append(difference(model, precision, items))
            print(rows[-1], file=sys.stderr, flush=True)
            pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
