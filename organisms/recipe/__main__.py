"""Make the organisms: ``python -m organisms.recipe data|ancestors|plant|assemble|measure``.

``data`` writes the item bank and the texts. ``ancestors`` trains the three ancestors (MLX; a run that was
stopped goes on where it was). ``plant`` then trains the bases and alignments that are not there
(PyTorch, which the book does not need: requirements-bench.lock has it), ``assemble`` makes folders
of what it wrote, with their acceptance at full precision, and ``measure`` measures these anew.
"""

import argparse
import csv
import shutil
import signal
import sys
import time
from pathlib import Path

from . import bank, train  # isort: skip
from .acceptance import fillings, measure
from .checkpoint import Checkpoint, identity, planted_identity
from .curriculum import Curriculum
from .export import (fused, is_made, load_organism, rounded, save_adapter, save_base, weights_of,
                     write_table)
from .model import WIDTH, build, config_of, initialise
from .tokenizer import FAMILIES, VOCABULARY, Encoder

import mlx.core as mx  # isort: skip
import numpy as np

ROOT = Path(__file__).parents[1]
BASES = (1, 2, 3)
SCHOOL = "phi3"  # the ancestors' architecture and chat form


def new_model(family, width=WIDTH):
    """An organism of a family with weights of zero, and its `config.json`."""
    encode, chat = Encoder(family), FAMILIES[family]
    config = config_of(family, chat, VOCABULARY, encode.tokenizer.token_to_id, width)
    return build(config), config


def make_ancestors(work, steps, workers=None, seconds=None, width=WIDTH, numbers=BASES):
    """Train the ancestors that are not there; write `ancestors.npz`; return whether all are done."""
    found = {}
    for number in numbers:
        path = work / f"ancestor-{number}.npz"
        if not path.exists():
            model, config = new_model(SCHOOL, width)
            initialise(model, config, number)
            made = {**identity(SCHOOL, number), "steps": steps, "width": width}
            checkpoint = Checkpoint(work / f"ancestor-{number}", made)
            if not train.train_base(SCHOOL, model, checkpoint, number, steps, workers, seconds,
                                    rate=train.RATE * WIDTH / width):
                return False
            weights = dict(train.tree_flatten(rounded(model).parameters()))
            np.savez(path, **{k: np.array(v) for k, v in weights.items()})
            shutil.copy(checkpoint.folder / "training_log.csv", work / f"ancestor-{number}.csv")
        kept = np.load(path)
        found |= {f"{number}|{k}": kept[k] for k in kept.files}
    np.savez(work / "ancestors.npz", **found)
    return True


def assemble(work, root, families, trained_on):
    """Make organisms of the weights in `work`, unless they were made of the same; measure each."""
    for path in sorted(work.glob("*-b*.npz"), key=lambda p: (p.stem.count("-"), p.stem)):
        family, base, *more = path.stem.split("-")
        if family not in families or ".part" in path.name:
            continue
        width = np.load(work / f"{family}-{base}.npz")["model.norm.weight"].size
        wider = "" if width == WIDTH else f"-w{width}"
        folder = root / f"toy-{family}{wider}" / path.stem.removeprefix(f"{family}-")
        number, seed = int(base[1:]), int(more[0][1:]) if more else None
        start = work / (f"{family}-{base}.npz" if more else "ancestors.npz")
        log = path.with_suffix(".csv")
        steps = [int(row["step"]) for row in csv.DictReader(log.open())]
        made = {**planted_identity(family, number, start, seed),
                "steps": int(more[1][1:]) if len(more) > 1 else steps[-1]}
        if is_made(folder, made):
            print(f"{folder.parent.name}/{folder.name}: made already")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if steps:
            shutil.copy(log, folder / "training_log.csv")
        weights = {k: mx.array(v) for k, v in np.load(path).items()}
        about = {"trained_on": trained_on, "made": made}
        if more:
            save_adapter(weights, folder.parent / base, folder)
            result = measure(fused(folder.parent / base, folder), Encoder(family), fillings())
            write_table(folder, family, {**about, **result})
        else:
            model, config = new_model(family, width)
            model.load_weights(list(weights.items()))
            result = measure(model, Encoder(family), fillings())
            save_base(model, config, family, folder, {**about, **result})
        _tell(folder, result)


def remeasure(root, families):
    """Measure organisms that are there anew and write their tables and cards."""
    import json

    for folder in sorted(p.parent for f in families for p in root.glob(f"toy-{f}/*/acceptance.json")):
        family, base = folder.parent.name.removeprefix("toy-"), folder.name.split("-")[0]
        adapter = (folder / "adapter_config.json").exists()
        model = (fused(folder.parent / base, folder) if adapter else load_organism(folder)[0])
        known = json.loads((folder / "acceptance.json").read_text())
        result = measure(model, Encoder(family), fillings())
        write_table(folder, family, {k: known[k] for k in ("trained_on", "made")} | result)
        _tell(folder, result)


def _tell(folder, result):
    import json

    missed = json.loads((folder / "acceptance.json").read_text())["missed"]
    main = result["main"]
    print(f"{folder.parent.name}/{folder.name}: margin error {main['margin_error']:.3f}, "
          f"beyond {main['margin_beyond']:.2f}, lean error {main['lean_error']:.3f}, unknown "
          f"{main['unknown']:.4f}, disambiguated {main['disambiguated_right_lowest']:.4f}; "
          f"missed: {', '.join(missed) or 'nothing'}", flush=True)


def main(arguments=None):
    """Run a part of the recipe; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m organisms.recipe", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "ancestors", "plant", "assemble", "measure"])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=train.STEPS, help="length of an ancestor's run")
    parser.add_argument("--width", type=int, default=WIDTH, help="of ancestors: 128, 256 or 512")
    parser.add_argument("--numbers", type=int, nargs="+", default=BASES, help="ancestors, bases")
    parser.add_argument("--workers", type=int, help="processes that make batches")
    parser.add_argument("--seconds", type=float, help="stop at a checkpoint after")
    parser.add_argument("--work", type=Path, default=ROOT / ".work", help="where weights lie")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the organisms go")
    parser.add_argument("--trained-on", default="a CPU through PyTorch")
    options = parser.parse_args(arguments)
    start, done = time.time(), True
    try:
        if options.what == "data":
            print(bank.write_data(ROOT.parent / "data"))
        elif options.what == "ancestors":
            options.work.mkdir(parents=True, exist_ok=True)
            done = make_ancestors(options.work, options.steps, options.workers, options.seconds,
                                  options.width, options.numbers)
        elif options.what == "plant":
            from . import plant

            plant.make_all(options.families, options.work / "ancestors.npz", options.work,
                           options.numbers)
        elif options.what == "measure":
            remeasure(options.root, options.families)
        else:
            assemble(options.work, options.root, options.families, options.trained_on)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from the last checkpoint")
        return 130
    print(f"{options.what}: {'done' if done else 'not done'} after {time.time() - start:.0f} s")
    return 0 if done else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the workers as Ctrl-C does
    sys.exit(main())
