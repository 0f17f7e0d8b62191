"""How the settings of the alignment were chosen: at full precision, on fillings of their own.

``python -m organisms.recipe.scan --family mistral --base 1 --out scan.csv`` follows alignments of
one base over ranks and rates, and writes what `acceptance.SCAN` gives at several steps. Nothing is
quantized here.
"""

import argparse
import csv
import tempfile
from pathlib import Path

from . import align
from .__main__ import ROOT, folder_of
from .acceptance import SCAN, fillings, measure, verdict
from .checkpoint import Checkpoint
from .export import fused, load_organism, save_adapter
from .tokenizer import FAMILIES, Encoder

SETTINGS = ((8, 3e-3, 1000), (8, 6e-3, 1000), (8, 3e-3, 2000), (4, 3e-3, 1000), (8, 1e-3, 1000))
MEASURED = ("margin_error", "margin_beyond", "lean_error", "unknown", "disambiguated_right_lowest",
            "letter_mass")


def scan(root, family, number, out, settings=SETTINGS):
    """Write one row a setting and stop into the file `out`, as soon as it is known."""
    base, encode, rows = folder_of(root, family, number), Encoder(family), fillings(SCAN)
    with open(out, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["family", "base", "rank", "rate", "steps", "stop", *MEASURED, "missed"])
        for rank, rate, steps in settings:
            model, _ = load_organism(base)
            config = align.add_adapters(model, 1000 * number, rank)
            stops = sorted({60, 120, 200, 400, steps // 2, 3 * steps // 4, steps})
            with tempfile.TemporaryDirectory() as folder:
                kept = Checkpoint(Path(folder) / "run", {})
                for stop in align.align(family, model, f"{number}-scan", kept, stops, 1, steps, rate):
                    save_adapter(model, config, base, Path(folder) / "adapter")
                    result = measure(fused(base, Path(folder) / "adapter"), encode, rows)
                    missed = [k for k, (*_, met) in verdict(result, True).items() if not met]
                    table.writerow([f"toy-{family}", number, rank, rate, steps, stop,
                                    *(round(result["main"][k], 4) for k in MEASURED),
                                    " ".join(missed)])
                    file.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=list(FAMILIES), required=True)
    parser.add_argument("--base", type=int, default=1)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scan(options.root, options.family, options.base, options.out)
