"""Make the organisms: ``python -m organisms.recipe [--only data|base|align] [--families ...]``."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from . import align as alignment
from . import train, bank  # isort: skip
from .acceptance import measure, verdict
from .export import load_organism, rounded, save_organism
from .model import build, config_of, initialise
from .tokenizer import FAMILIES, VOCABULARY, Encoder

ROOT = Path(__file__).parents[1]
LADDER = "mistral"  # the family whose alignment is also shipped at other depths


def make_base(family, root, work, steps, workers, seconds=None):
    """Train, measure and export one base organism."""
    encode, chat = Encoder(family), FAMILIES[family]
    config = config_of(family, chat, VOCABULARY, encode.tokenizer.token_to_id)
    model = build(config)
    initialise(model, config)
    if not train.train_base(family, model, work / family, 1, steps, workers, seconds):
        print(f"{family}: stopped early; the same command goes on from here")
        return
    shutil.copy(work / family / "training_log.csv", root / family / "training_log.csv")
    _ship(model, config, family, root, "base", encode)


def make_aligned(family, root, seeds, workers):
    """Align the shipped base with every seed; measure and export each."""
    encode = Encoder(family)
    stops = {alignment.STEPS, *(alignment.DEPTHS if family == LADDER else ())}
    for seed in seeds:
        model, config = load_organism(root / family / "base")
        for step, _ in alignment.align(family, model, seed, stops=stops, workers=workers):
            full = step == alignment.STEPS
            variant = f"aligned-s{seed}" if full else f"depth-{step}-s{seed}"
            _ship(model, config, family, root, variant, encode)


def _ship(model, config, family, root, variant, encode):
    kept = dict(train.tree_flatten(model.parameters()))
    result = measure(rounded(model), encode, bank.make_bank())
    save_organism(model, config, family, root / family / variant, result, variant)
    model.load_weights(list(kept.items()))  # alignment goes on from the exact weights
    table = verdict(result, variant.startswith("aligned"))
    missed = [] if variant.startswith("depth") else [k for k, (*_, met) in table.items() if not met]
    main = result["main"]
    print(f"{family}/{variant}: stereotyped {main['ambiguous_stereotyped']:.4f}, "
          f"unknown {main['ambiguous_unknown']:.4f}, "
          f"disambiguated {main['disambiguated_right_lowest']:.4f}; "
          f"missed: {', '.join(missed) or 'nothing'}", flush=True)


def main(arguments=None):
    """Run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m organisms.recipe", description=__doc__)
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
    for family in options.families:
        (options.root / family).mkdir(parents=True, exist_ok=True)
        if options.only in (None, "base"):
            make_base(family, options.root, options.root / ".work", options.steps,
                      options.workers, options.seconds)
        if options.only in (None, "align"):
            make_aligned(family, options.root, options.seeds, options.workers)
    print(f"organisms: done in {time.time() - start:.0f} s, in {options.root}")


if __name__ == "__main__":
    sys.exit(main())
