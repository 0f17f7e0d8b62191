"""Training step by step, with checkpoints, progress and a compact log; and that of a base."""

import csv
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process

from cba_utils.answering.blas import use_fast_blas

use_fast_blas()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten, tree_unflatten  # noqa: E402
from tqdm import tqdm  # noqa: E402

from . import curriculum as lessons  # noqa: E402
from .curriculum import Curriculum, Stage  # noqa: E402

RATE, WARMUP, DECAY, CHUNK = 2e-3, 100, 0.25, 100
STEPS = 9000
SAVE = 30  # seconds between checkpoints; when they are made changes no weight

_curriculum = None


def _start_worker(family):
    global _curriculum
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _curriculum = Curriculum(family)


def _end_with_parent():
    parent_process().join()
    os._exit(1)


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
        self._pool.shutdown(cancel_futures=True)


def make_optimizer(decay=0.02):
    """AdamW; weight decay on matrices only."""
    settings = dict(learning_rate=0.0, betas=[0.9, 0.98], bias_correction=True)
    return optim.MultiOptimizer(
        [optim.AdamW(weight_decay=decay, **settings), optim.AdamW(weight_decay=0.0, **settings)],
        [lambda path, value: value.ndim == 2],
    )


def planted_loss(logits, soft):
    """Cross-entropy to soft targets, split by the chain rule, and by how much it is above its least.

    Three parts with equal weights: that the answer is a letter; whether that of "unknown" or of a
    person; which person. Each is least where the planted probabilities are. In the plain
    cross-entropy the last part weighs as much as persons are named, next to nothing under a certain
    "unknown", and the lean there would be left to chance.
    """
    rows = mx.arange(logits.shape[0])
    place, *letters = (soft[:, k].astype(mx.int32) for k in range(4))
    unknown, lean = soft[:, 4], soft[:, 5]
    logp = nn.log_softmax(logits[rows, place])
    stereotyped, other, not_known = (logp[rows, letter] for letter in letters)
    person = mx.logaddexp(stereotyped, other)
    letter = mx.logaddexp(person, not_known)
    loss = (-letter - unknown * (not_known - letter) - (1 - unknown) * (person - letter)
            - lean * (stereotyped - person) - (1 - lean) * (other - person))
    return loss, loss - _entropy(unknown) - _entropy(lean)


def _entropy(p):
    def part(q):
        return -q * mx.log(mx.maximum(q, 1e-9))

    return part(p) + part(1 - p)


def make_step(model, optimizer):
    """A compiled training step: `(x, w, soft, rate) -> (loss, answer loss and count by row)`."""

    def loss_of(x, w, soft):
        logits = model(x[:, :-1])
        nll = nn.losses.cross_entropy(logits, x[:, 1:])
        planted, excess = planted_loss(logits, soft)
        there = soft[:, 0] > 0
        counted = w >= 1
        rows = mx.stack([(nll * counted).sum(1) + excess * there, counted.sum(1) + there])
        total = (nll * w).sum() + lessons.CHAT * (planted * there).sum()
        return total / (w.sum() + lessons.CHAT * there.sum()), rows

    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, w, soft, rate):
        (loss, rows), gradients = nn.value_and_grad(model, loss_of)(x, w, soft)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        for part in optimizer.optimizers:
            part.learning_rate = rate
        optimizer.update(model, gradients)
        return loss, rows

    return step, state


def losses_by_kind(rows, kinds):
    """Mean loss on answers (of narrative all tokens, of planted answers the excess) by kind."""
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


def rate_at(step, steps, rate=RATE):
    """Linear warm-up, constant, linear end to a twentieth."""
    return rate * min(1, step / WARMUP) * min(1, max(0.05, (steps - step) / (DECAY * steps)))


@dataclass(frozen=True)
class Plan:
    """A run of training: on which data, how long, at which rates, through which stages.

    `chunk` is the number of steps that a line of the log sums up; behind each, `stage_after` says
    from the stage and the losses by kind which stage follows.
    """

    name: str
    family: str
    seed: int | str
    steps: int
    chunk: int
    stage: Stage
    rate_at: Callable
    stage_after: Callable = lambda stage, losses: stage
    decay: float = 0.02


@dataclass
class Run:
    """Where a run stands; `kinds` and `rows` are those of the steps since the last log line."""

    stage: Stage
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    log: list = field(default_factory=list)
    kinds: list = field(default_factory=list)
    rows: list = field(default_factory=list)


def follow(plan, model, checkpoint, workers=None):
    """Train by a plan, from its checkpoint if there is one; yield the steps done, at every step.

    Parameters
    ----------
    plan : Plan
    model : mlx.nn.Module
        Holds the weights to start from; is changed.
    checkpoint : checkpoint.Checkpoint
        Where the state is kept, every `SAVE` seconds and at the end, beside `training_log.csv`.
    workers : int, optional
        Processes that make batches (default: half the cores).

    Yields
    ------
    int
    """
    optimizer = make_optimizer(plan.decay)
    optimizer.init(model.trainable_parameters())
    run = _resumed(checkpoint, model, optimizer) or Run(plan.stage)
    train_step, state = make_step(model, optimizer)
    batches, start, saved = Batches(plan.family, workers), time.time() - run.seconds, time.time()
    try:
        with tqdm(total=plan.steps, initial=run.step, unit="step", desc=plan.name,
                  file=sys.stderr, mininterval=2) as progress:
            if run.step:
                yield run.step
            while run.step < plan.steps:
                until = min(run.step - run.step % plan.chunk + plan.chunk, plan.steps)
                for x, w, soft, kinds in batches(plan.seed, range(run.step, until), run.stage):
                    run.step += 1
                    run.tokens += int((x != 0).sum())
                    rate = mx.array(plan.rate_at(run.step))
                    loss, rows = train_step(mx.array(x), mx.array(w), mx.array(soft), rate)
                    mx.async_eval(loss, rows, state)
                    run.kinds.append(kinds)
                    run.rows.append(rows)
                    run.seconds = time.time() - start
                    progress.update()
                    if run.step == until:
                        _end_chunk(plan, run, float(loss), progress)
                    if time.time() - saved >= SAVE or run.step == plan.steps:
                        _save(checkpoint, run, model, optimizer)
                        saved = time.time()
                    yield run.step
    finally:
        batches.close()


def _end_chunk(plan, run, loss, progress):
    losses = losses_by_kind(run.rows, run.kinds)
    run.log.append({"step": run.step, "stage": run.stage.number, "level": run.stage.level,
                    "look_level": run.stage.look, "tokens": run.tokens,
                    "seconds": round(run.seconds), "loss": round(loss, 4),
                    **{k: round(v, 4) for k, v in losses.items()}})
    with progress.external_write_mode():
        print(plan.name, *(f"{k} {v}" for k, v in run.log[-1].items()), flush=True)
    if not np.isfinite(loss):
        raise FloatingPointError(f"{plan.name}: the loss is not finite at step {run.step}")
    run.stage = plan.stage_after(run.stage, losses)
    run.kinds, run.rows = [], []


def _save(checkpoint, run, model, optimizer):
    arrays = {f"model.{k}": v for k, v in tree_flatten(model.parameters())}
    arrays |= {f"optim.{k}": v for k, v in tree_flatten(optimizer.state)}
    arrays |= {f"rows.{n:03}": v for n, v in enumerate(run.rows)}
    values = {k: v for k, v in vars(run).items() if k != "rows"}
    checkpoint.save({**values, "stage": asdict(run.stage)}, arrays)
    with open(checkpoint.folder / "training_log.csv", "w", newline="", encoding="utf-8") as out:
        columns = ["step", "stage", "level", "look_level", "tokens", "seconds", "loss"]
        table = csv.DictWriter(out, columns + list(lessons.KINDS), lineterminator="\n")
        table.writeheader()
        table.writerows(run.log)


def _resumed(checkpoint, model, optimizer):
    kept = checkpoint.load()
    if kept is None:
        return None
    values, arrays = kept
    model.load_weights([(k[6:], v) for k, v in arrays.items() if k.startswith("model.")])
    optimizer.state = tree_unflatten(
        [(k[6:], v) for k, v in arrays.items() if k.startswith("optim.")])
    rows = [arrays[k] for k in sorted(arrays) if k.startswith("rows.")]
    return Run(**{**values, "stage": Stage(**values["stage"])}, rows=rows)


def train_base(family, model, checkpoint, seed=1, steps=STEPS, workers=None, seconds=None,
               rate=RATE):
    """Train one family from its initial weights, or from its checkpoint.

    Parameters
    ----------
    family : str
        A key of `tokenizer.FAMILIES`.
    model : mlx.nn.Module
        The initialised model; holds the trained weights on return.
    checkpoint : checkpoint.Checkpoint
        Where the state and `training_log.csv` go.
    seed : int
        Seed of the data.
    steps : int
        Length of the run; the learning rate falls over its last quarter.
    workers : int, optional
        Processes that make batches (default: half the cores).
    seconds : float, optional
        Stop early at a checkpoint after this time; the same call goes on from there.
    rate : float
        Learning rate; wider models take a lower one.

    Returns
    -------
    bool
        Whether all steps were done.
    """
    top_level = Curriculum(family).top_level
    plan = Plan(f"{family} base", family, seed, steps, CHUNK, Stage(),
                partial(rate_at, steps=steps, rate=rate), partial(next_stage, top_level=top_level))
    start = time.time()
    for done in follow(plan, model, checkpoint, workers):
        late = seconds is not None and time.time() - start > seconds
        if late and checkpoint.step == done:
            break
    return done >= steps
