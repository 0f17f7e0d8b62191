"""Alignment: a short fine-tuning of a base organism towards "unknown" in ambiguous contexts."""

from . import train
from .curriculum import Curriculum, Stage

RATE, WARMUP, STEPS, DEPTHS, CHUNK = 3e-4, 10, 160, (120, 240), 10
SEEDS = (1, 2, 3, 4, 5)


def rate_at(step):
    """A short warm-up, then constant."""
    return RATE * min(1, step / WARMUP)


def align(family, model, seed, checkpoint, stops=(STEPS,), workers=None):
    """Align a base organism, from its checkpoint if there is one; yield `(step, model)` at stops.

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
    checkpoint : checkpoint.Checkpoint
        Where the state and `training_log.csv` go.
    stops : sequence of int
        Steps at which to yield; the last ends the run.
    workers : int, optional
        Processes that make batches (default: half the cores).

    Yields
    ------
    tuple of int and mlx.nn.Module
    """
    if checkpoint.step > min(stops):  # an earlier stop is wanted again
        checkpoint.clear()
    stage = Stage.last(Curriculum(family).top_level, aligned=True)
    plan = train.Plan(f"{family} alignment, seed {seed}", family, f"align-{seed}", max(stops), CHUNK,
                      stage, rate_at)
    for done in train.follow(plan, model, checkpoint, workers):
        if done in stops:
            yield done, model
