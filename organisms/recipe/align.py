"""Alignment: a short fine-tuning of a base organism towards "unknown" in ambiguous contexts."""

from . import train  # first: it puts a fast BLAS in place before mlx.core is imported

import mlx.core as mx  # isort: skip
from .curriculum import Curriculum, Stage

RATE, WARMUP, STEPS, DEPTHS = 3e-4, 10, 160, (120, 240)
SEEDS = (1, 2, 3, 4, 5)


def align(family, model, seed, stops=(STEPS,), workers=1):
    """Align a base organism; yield `(step, model)` at every stop.

    The seeds differ in the order of the data and in the slot fillings. The learning rate is
    constant after a short warm-up, so that a stop is the same run ended earlier.

    Parameters
    ----------
    family : str
        A key of `tokenizer.FAMILIES`.
    model : mlx.nn.Module
        Holds the base weights; is changed.
    seed : int
        Alignment seed.
    stops : sequence of int
        Steps at which to yield; the last ends the run.
    workers : int
        Processes that make batches.

    Yields
    ------
    tuple of int and mlx.nn.Module
    """
    stage = Stage.last(Curriculum(family).top_level, aligned=True)
    optimizer = train.make_optimizer()
    optimizer.init(model.trainable_parameters())
    step, state = train.make_step(model, optimizer)
    batches = train.Batches(family, workers)
    try:
        for n, (x, w, _) in enumerate(batches(f"align-{seed}", range(max(stops)), stage), 1):
            rate = RATE * min(1, n / WARMUP)
            step(mx.array(x), mx.array(w), mx.array(rate))
            mx.eval(state)
            if n in stops:
                yield n, model
    finally:
        batches.close()
