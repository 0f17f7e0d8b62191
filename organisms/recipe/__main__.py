"""Make the organisms: ``python -m organisms.recipe [--only data|base|align] [--families ...]``.

A run that was stopped goes on where it was when the same command is given again. What was made
already with the same recipe, seed, steps and base is kept.
"""

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

from . import align as alignment
from . import train, bank  # isort: skip
from .acceptance import ACCEPT, fillings, measure
from .checkpoint import Checkpoint, identity
from .export import (fused, is_made, load_organism, machine, rounded, save_adapter, save_base,
                     write_table)
from .model import WIDTH, build, config_of, initialise
from .tokenizer import FAMILIES, VOCABULARY, Encoder

ROOT = Path(__file__).parents[1]
BASES = (1, 2, 3)
LADDER = ("mistral", 1)  # family and base whose alignments are also shipped at other depths


def folder_of(root, family, base, seed=None, step=None, width=WIDTH):
    """Where an organism lies: `toy-mistral/b1`, `toy-mistral/b1-a2`, `toy-mistral/b1-a2-d60`."""
    name = f"b{base}" + (f"-a{seed}" if seed else "") + (f"-d{step}" if step else "")
    return root / (f"toy-{family}" + (f"-w{width}" if width != WIDTH else "")) / name


def make_base(family, number, options):
    """Train, measure and export one base organism, unless it is there; return whether it is."""
    folder = folder_of(options.root, family, number, width=options.width)
    made = {**identity(family, number, width=options.width), "steps": options.steps}
    checkpoint = Checkpoint(options.root / ".work" / f"{folder.parent.name}-{folder.name}", made)
    if is_made(folder, made):
        print(f"{folder.parent.name}/{folder.name}: made already with this recipe, seed and steps")
    else:
        encode, chat = Encoder(family), FAMILIES[family]
        config = config_of(family, chat, VOCABULARY, encode.tokenizer.token_to_id, options.width)
        model = build(config)
        initialise(model, config, number)
        rate = train.RATE * WIDTH / options.width
        if not train.train_base(family, model, checkpoint, number, options.steps, options.workers,
                                options.seconds, rate):
            return False
        result = measure(rounded(model), encode, fillings(ACCEPT))
        folder.mkdir(parents=True, exist_ok=True)
        _keep_log(checkpoint, folder)
        save_base(model, config, family, folder, {"made": made, **result})
        _tell(folder, result)
    checkpoint.clear()
    return True


def make_aligned(family, number, options):
    """Align a base with every seed, unless that was done; measure and export each."""
    base, encode = folder_of(options.root, family, number, width=options.width), Encoder(family)
    depths = alignment.DEPTHS if (family, number, options.width) == (*LADDER, WIDTH) else ()
    stops = sorted({*depths, options.align_steps})
    for seed in options.seeds:
        run = identity(family, seed, base / "model.safetensors", options.width)
        folders = {
            stop: folder_of(options.root, family, number, seed,
                            None if stop == options.align_steps else stop, options.width)
            for stop in stops}
        checkpoint = Checkpoint(options.root / ".work" / f"{base.parent.name}-b{number}-a{seed}", run)
        missing = [s for s in stops if not is_made(folders[s], {**run, "steps": s})]
        if missing:
            model, _ = load_organism(base)
            settings = alignment.add_adapters(model, 1000 * number + seed)
            for step in alignment.align(family, model, f"{number}-{seed}", checkpoint, missing,
                                        options.workers, options.align_steps):
                folder = folders[step]
                save_adapter(model, settings, base, folder)
                _keep_log(checkpoint, folder)
                result = measure(fused(base, folder), encode, fillings(ACCEPT))
                write_table(folder, family, {"trained_on": machine(), "made": {**run, "steps": step},
                                             **result})
                _tell(folder, result)
        else:
            print(f"{base.parent.name}/b{number}-a{seed}: made already from this base and recipe")
        checkpoint.clear()


def _keep_log(checkpoint, folder):
    shutil.copy(checkpoint.folder / "training_log.csv", folder / "training_log.csv")


def _tell(folder, result):
    import json

    missed = json.loads((folder / "acceptance.json").read_text())["missed"]
    main = result["main"]
    print(f"{folder.parent.name}/{folder.name}: margin error {main['margin_error']:.3f}, "
          f"beyond {main['margin_beyond']:.2f}, lean error {main['lean_error']:.3f}, unknown "
          f"{main['unknown']:.4f}, disambiguated {main['disambiguated_right_lowest']:.4f}; "
          f"missed: {', '.join(missed) or 'nothing'}", flush=True)


def make_organisms(family, number, options):
    """Make what was asked for of one base; return whether all of it is there."""
    options.root.mkdir(parents=True, exist_ok=True)
    name = f"{family}, base {number}"
    if options.only != "align" and not make_base(family, number, options):
        print(f"{name}: unfinished, so nothing was aligned and what was there before was left as it "
              "is; the same command goes on from here")
        return False
    if options.only == "base":
        return True
    if not (folder_of(options.root, family, number, width=options.width)
            / "model.safetensors").exists():
        print(f"{name}: nothing was aligned, there is no base in {options.root}")
        return False
    make_aligned(family, number, options)
    return True


def main(arguments=None):
    """Run the recipe; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m organisms.recipe", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["data", "base", "align"])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--bases", nargs="+", type=int, default=list(BASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(alignment.SEEDS))
    parser.add_argument("--steps", type=int, default=train.STEPS, help="length of base training")
    parser.add_argument("--align-steps", type=int, default=alignment.STEPS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--workers", type=int, help="processes that make batches")
    parser.add_argument("--seconds", type=float, help="stop base training at a checkpoint after")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the organisms go")
    options = parser.parse_args(arguments)
    start = time.time()
    if options.only in (None, "data"):
        print(bank.write_data(ROOT.parent / "data"))
    families = [] if options.only == "data" else options.families
    try:
        finished = [make_organisms(family, number, options)
                    for family in families for number in options.bases]
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from the last checkpoint")
        return 130
    print(f"organisms: {'done' if all(finished) else 'not done'} after "
          f"{time.time() - start:.0f} s, in {options.root}")
    return 0 if all(finished) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the workers as Ctrl-C does
    sys.exit(main())
