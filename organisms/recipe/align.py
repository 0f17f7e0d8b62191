"""Alignment: low-rank adapters on a base teach it the planted odds of "unknown"."""

from functools import partial

from . import train
from .curriculum import Curriculum, Stage
from .model import LAYERS

import mlx.core as mx  # isort: skip
from mlx_lm.tuner.utils import linear_to_lora_layers

RANK, SCALE = 8, 2.0
RATE, WARMUP, STEPS, DEPTHS, CHUNK = 3e-3, 20, 1000, (60, 200), 20
SEEDS = (1, 2, 3, 4, 5)


def rate_at(step, steps=STEPS, rate=RATE):
    """A short warm-up, constant, a linear end to a hundredth over the last half."""
    return rate * min(1, step / WARMUP) * min(1, max(0.01, (steps - step) / (0.5 * steps)))


def add_adapters(model, seed, rank=RANK):
    """Freeze a base and put a fresh adapter on every linear module of its layers.

    Returns
    -------
    dict
        The `adapter_config.json` that mlx_lm reads them back with, but for the base's name.
    """
    mx.random.seed(seed)
    settings = {"rank": rank, "scale": SCALE, "dropout": 0.0}
    model.freeze()
    linear_to_lora_layers(model, LAYERS, dict(settings))
    mx.eval(model.parameters())
    return {"fine_tune_type": "lora", "num_layers": LAYERS, "lora_parameters": settings}


def align(family, model, seed, checkpoint, stops=(STEPS,), workers=None, steps=STEPS, rate=RATE):
    """Train the adapters of a base, from a checkpoint if there is one; yield the steps at stops.

    The seeds differ in the adapters' first weights, the order of the data and the slot fillings.
    A stop before the last is the same run ended earlier, at the rate that it had there.

    Parameters
    ----------
    family : str
        A key of `tokenizer.FAMILIES`.
    model : mlx.nn.Module
        A base with the adapters of `add_adapters`; is changed.
    seed : str
        Of the data.
    checkpoint : checkpoint.Checkpoint
        Where the state and `training_log.csv` go.
    stops : sequence of int
        Steps at which to yield; the last ends the run.
    workers : int, optional
        Processes that make batches (default: half the cores).
    steps : int
        Over which the rate falls.
    rate : float
        The highest learning rate.

    Yields
    ------
    int
    """
    if checkpoint.step > min(stops):  # an earlier stop is wanted again
        checkpoint.clear()
    stage = Stage.last(Curriculum(family).top_level, aligned=True)
    plan = train.Plan(f"{family} alignment {seed}", family, f"align-{seed}", max(stops), CHUNK,
                      stage, partial(rate_at, steps=steps, rate=rate), decay=0.0)
    for done in train.follow(plan, model, checkpoint, workers):
        if done in stops:
            yield done
