"""Base training: the curriculum's gates, checkpoints, resume and a compact log."""

import csv
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from cba_utils.blas import use_fast_blas

use_fast_blas()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten, tree_unflatten  # noqa: E402

from . import curriculum as lessons  # noqa: E402
from .curriculum import Curriculum, Stage  # noqa: E402

RATE, WARMUP, DECAY, CHUNK, SAVE = 2e-3, 100, 0.25, 100, 500
STEPS = 9000

_curriculum = None


def _start_worker(family):
    global _curriculum
    _curriculum = Curriculum(family)


def _make_batch(job):
    return _curriculum.batch(*job)


class Batches:
    """Batches made by other processes, in order."""

    def __init__(self, family, workers=None):
        workers = workers or max(1, (os.cpu_count() or 2) // 2)
        self._pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start_worker, initargs=(family,))

    def __call__(self, seed, steps, stage):
        return self._pool.map(_make_batch, [(seed, s, stage) for s in steps], chunksize=2)

    def close(self):
        self._pool.shutdown()


def make_optimizer():
    """AdamW; weight decay on matrices only."""
    settings = dict(learning_rate=0.0, betas=[0.9, 0.98], bias_correction=True)
    return optim.MultiOptimizer(
        [optim.AdamW(weight_decay=0.02, **settings), optim.AdamW(weight_decay=0.0, **settings)],
        [lambda path, value: value.ndim == 2],
    )


def make_step(model, optimizer):
    """A compiled training step: `(x, w, rate) -> (loss, answer loss and count by row)`."""

    def loss_of(x, w):
        logits = model(x[:, :-1])
        nll = nn.losses.cross_entropy(logits, x[:, 1:])
        counted = w >= 1
        rows = mx.stack([(nll * counted).sum(1), counted.sum(1)])
        return (nll * w).sum() / w.sum(), rows

    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, w, rate):
        (loss, rows), gradients = nn.value_and_grad(model, loss_of)(x, w)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        for part in optimizer.optimizers:
            part.learning_rate = rate
        optimizer.update(model, gradients)
        return loss, rows

    return step, state


def losses_by_kind(rows, kinds):
    """Mean loss on answers (on all tokens in narrative) by kind of sequence."""
    total, count = np.concatenate([np.array(r) for r in rows], axis=1)
    kinds = np.array([k for batch in kinds for k in batch])
    return {k: float(total[kinds == k].sum() / max(1, count[kinds == k].sum()))
            for k in lessons.KINDS if (kinds == k).any()}


def next_stage(stage, losses, top_level):
    """Where the curriculum goes after a chunk with these losses."""
    level = stage.level
    if losses.get("facts", 9) < lessons.LEVEL_GATE and level < top_level:
        level += 1
    look = stage.look + (losses.get("look", 9) < lessons.LEVEL_GATE)
    gates = lessons.STAGES[stage.number][1]
    ready = stage.level == top_level
    ready = ready and (stage.look == lessons.LOOK_LEVELS or "look" not in (gates or ()))
    passed = gates and all(losses.get(k, 9) < limit for k, limit in gates.items())
    return Stage(stage.number + bool(ready and passed), level, min(look, lessons.LOOK_LEVELS))


def rate_at(step, steps):
    """Linear warm-up, constant, linear end to a twentieth."""
    return RATE * min(1, step / WARMUP) * min(1, max(0.05, (steps - step) / (DECAY * steps)))


def train_base(family, model, folder, seed=1, steps=STEPS, workers=None, seconds=None):
    """Train one family from its initial weights; resume from `folder` if it holds a checkpoint.

    Parameters
    ----------
    family : str
        A key of `tokenizer.FAMILIES`.
    model : mlx.nn.Module
        The initialised model; holds the trained weights on return.
    folder : path
        Where checkpoints and `training_log.csv` go.
    seed : int
        Seed of the data.
    steps : int
        Length of the run; the learning rate falls over its last quarter.
    workers : int, optional
        Processes that make batches (default: half the cores).
    seconds : float, optional
        Stop early at a checkpoint after this time; the same call goes on from there.

    Returns
    -------
    bool
        Whether all steps were done.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    top_level = Curriculum(family).top_level
    optimizer = make_optimizer()
    optimizer.init(model.trainable_parameters())
    stage, done, tokens, log = Stage(), 0, 0, []
    marker = folder / "progress.json"
    if marker.exists():
        progress = json.loads(marker.read_text())
        stage, done, tokens = Stage(**progress["stage"]), progress["step"], progress["tokens"]
        log = progress["log"]
        saved = mx.load(str(folder / f"step-{done}.safetensors"))
        model.load_weights([(k[6:], v) for k, v in saved.items() if k.startswith("model.")])
        optimizer.state = tree_unflatten(
            [(k[6:], v) for k, v in saved.items() if k.startswith("optim.")])
    train_step, state = make_step(model, optimizer)
    batches, start = Batches(family, workers), time.time()
    try:
        while done < steps:
            rows, kinds, until = [], [], min(done + CHUNK, steps)
            for x, w, names in batches(seed, range(done, until), stage):
                done += 1
                tokens += int((x != 0).sum())
                loss, row = train_step(mx.array(x), mx.array(w), mx.array(rate_at(done, steps)))
                mx.async_eval(loss, row, state)
                rows.append(row)
                kinds.append(names)
            losses = losses_by_kind(rows, kinds)
            log.append({"step": done, "stage": stage.number, "level": stage.level,
                        "look_level": stage.look, "tokens": tokens,
                        "seconds": round(time.time() - start),
                        "loss": round(float(loss), 4),
                        **{k: round(v, 4) for k, v in losses.items()}})
            print(family, *(f"{k} {v}" for k, v in log[-1].items()), flush=True)
            if not np.isfinite(log[-1]["loss"]):
                raise FloatingPointError(f"{family}: the loss is not finite at step {done}")
            stage = next_stage(stage, losses, top_level)
            out_of_time = seconds is not None and time.time() - start > seconds
            if done % SAVE == 0 or done == steps or out_of_time:
                _save(folder, model, optimizer, stage, done, tokens, log)
            if out_of_time:
                break
    finally:
        batches.close()
    return done >= steps


def _save(folder, model, optimizer, stage, done, tokens, log):
    arrays = {f"model.{k}": v for k, v in tree_flatten(model.parameters())}
    arrays |= {f"optim.{k}": v for k, v in tree_flatten(optimizer.state)}
    mx.save_safetensors(str(folder / f"step-{done}.safetensors"), arrays)
    with open(folder / "training_log.csv", "w", newline="", encoding="utf-8") as out:
        columns = ["step", "stage", "level", "look_level", "tokens", "seconds", "loss"]
        table = csv.DictWriter(out, columns + list(lessons.KINDS), lineterminator="\n")
        table.writeheader()
        table.writerows(log)
    marker = folder / "progress.json"
    progress = {"step": done, "tokens": tokens, "log": log,
                "stage": asdict(stage)}
    part = marker.with_suffix(".part")
    part.write_text(json.dumps(progress))
    part.replace(marker)
    for old in folder.glob("step-*.safetensors"):
        if old.name != f"step-{done}.safetensors":
            old.unlink()
