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
from .acceptance import measure, verdict
from .checkpoint import Checkpoint, identity
from .export import is_made, load_organism, rounded, save_organism
from .model import build, config_of, initialise
from .tokenizer import FAMILIES, VOCABULARY, Encoder

ROOT = Path(__file__).parents[1]
LADDER = "mistral"  # the family whose alignment is also shipped at other depths
SEED = 1  # of the bases


def make_base(family, root, steps, workers, seconds=None):
    """Train, measure and export one base organism, unless it is there; return whether it is."""
    made = {**identity(family, SEED), "steps": steps}
    checkpoint = Checkpoint(root / ".work" / f"{family}-base", made)
    if is_made(root / family / "base", made):
        print(f"{family}/base: made already with this recipe, seed and number of steps")
    else:
        encode, chat = Encoder(family), FAMILIES[family]
        config = config_of(family, chat, VOCABULARY, encode.tokenizer.token_to_id)
        model = build(config)
        initialise(model, config)
        if not train.train_base(family, model, checkpoint, SEED, steps, workers, seconds):
            return False
        _keep_log(checkpoint, root / family / "training_log.csv")
        _ship(model, config, family, root, "base", encode, made)
    checkpoint.clear()
    return True


def make_aligned(family, root, seeds, workers):
    """Align the base with every seed, unless that was done; measure and export each."""
    base, encode = root / family / "base", Encoder(family)
    stops = {alignment.STEPS, *(alignment.DEPTHS if family == LADDER else ())}
    for seed in seeds:
        run = identity(family, seed, base / "model.safetensors")
        checkpoint = Checkpoint(root / ".work" / f"{family}-align-s{seed}", run)
        missing = [stop for stop in sorted(stops) if not is_made(
            root / family / _variant(stop, seed), {**run, "steps": stop})]
        if missing:
            model, config = load_organism(base)
            for step, _ in alignment.align(family, model, seed, checkpoint, missing, workers):
                _keep_log(checkpoint, root / family / f"alignment_log_s{seed}.csv")
                _ship(model, config, family, root, _variant(step, seed), encode,
                      {**run, "steps": step})
        else:
            print(f"{family}, alignment seed {seed}: made already from this base and recipe")
        checkpoint.clear()


def _variant(step, seed):
    return f"aligned-s{seed}" if step == alignment.STEPS else f"depth-{step}-s{seed}"


def _keep_log(checkpoint, path):
    shutil.copy(checkpoint.folder / "training_log.csv", path)


def _ship(model, config, family, root, variant, encode, made):
    kept = dict(train.tree_flatten(model.parameters()))
    result = measure(rounded(model), encode, bank.make_bank())
    save_organism(model, config, family, root / family / variant, {"made": made, **result}, variant)
    model.load_weights(list(kept.items()))  # alignment goes on from the exact weights
    table = verdict(result, variant.startswith("aligned"))
    missed = [] if variant.startswith("depth") else [k for k, (*_, met) in table.items() if not met]
    main = result["main"]
    print(f"{family}/{variant}: stereotyped {main['ambiguous_stereotyped']:.4f}, "
          f"unknown {main['ambiguous_unknown']:.4f}, "
          f"disambiguated {main['disambiguated_right_lowest']:.4f}; "
          f"missed: {', '.join(missed) or 'nothing'}", flush=True)


def make_family(family, options):
    """Make what was asked for of one family; return whether all of it is there."""
    root = options.root
    (root / family).mkdir(parents=True, exist_ok=True)
    if options.only != "align" and not make_base(
            family, root, options.steps, options.workers, options.seconds):
        print(f"{family}: the base is unfinished, so nothing was aligned and what was there before "
              "was left as it is; the same command goes on from here")
        return False
    if options.only == "base":
        return True
    if not (root / family / "base" / "model.safetensors").exists():
        print(f"{family}: nothing was aligned, there is no base in {root / family / 'base'}")
        return False
    make_aligned(family, root, options.seeds, options.workers)
    return True


def main(arguments=None):
    """Run the recipe; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m organisms.recipe", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["data", "base", "align"])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(alignment.SEEDS))
    parser.add_argument("--steps", type=int, default=train.STEPS, help="length of base training")
    parser.add_argument("--workers", type=int, help="processes that make batches")
    parser.add_argument("--seconds", type=float, help="stop base training at a checkpoint after")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the organisms go")
    options = parser.parse_args(arguments)
    start = time.time()
    if options.only in (None, "data"):
        print(bank.write_data(ROOT.parent / "data"))
    families = [] if options.only == "data" else options.families
    try:
        finished = [make_family(family, options) for family in families]
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from the last checkpoint")
        return 130
    print(f"organisms: {'done' if all(finished) else 'not done'} after "
          f"{time.time() - start:.0f} s, in {options.root}")
    return 0 if all(finished) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the workers as Ctrl-C does
    sys.exit(main())
