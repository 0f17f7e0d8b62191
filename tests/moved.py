"""Respondents whose logits one known thing happens to, for tests of margins and drift."""

from studies import study_of

import numpy as np
import pandas as pd

LETTERS = "ABC"


def moved(change, models=3, templates=40, items=16, precisions=("q4",), seed=0, bases=None):
    """A simulated study in which ``change(logits, letters, precision, rng)`` makes each precision.

    ``logits`` are of the roles (stereotyped, anti-stereotyped, unknown), an item a row; the letter at
    which each stands is in ``letters``. BF16 is mostly sure of "unknown", with margins spread over two nats.
    """
    study = study_of(
        "none",
        templates=templates,
        items_per_template=items,
        orders="original",
        precisions=["bf16"],
        replicates=models,
    )
    first = study.answers
    roles = np.array(["stereotyped", "anti_stereotyped", "unknown"])
    place = np.stack(
        [(first[[f"role_{x}" for x in LETTERS]] == r).to_numpy().argmax(1) for r in roles], 1
    )
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 0.8, len(first))
    unknown = rng.normal(2.0, 1.2, len(first))
    ambiguous = (first["context_condition"] == "ambig").to_numpy()
    right = first["correct"].map({x: k for k, x in enumerate(LETTERS)}).to_numpy()
    start = np.stack([lean / 2, -lean / 2, np.where(ambiguous, unknown, -1)], 1)
    start = start + 3.0 * ((place == right[:, None]) & ~ambiguous[:, None])
    parts = []
    for precision in ("bf16", *precisions):
        logits = start
        if precision != "bf16":
            logits = np.empty_like(start)
            for k, rows in enumerate(first.groupby("model", sort=False).indices.values()):
                own = np.random.default_rng([seed, k, len(precision), int(precision[1:])])
                logits[rows] = change(start[rows], place[rows], precision, own, k)
        by_letter = np.empty_like(logits)
        np.put_along_axis(by_letter, place, logits, axis=1)
        table = first.assign(precision=precision)
        for suffix, heat in (("", 1.0), ("_t", 0.3)):
            full = np.column_stack([by_letter, np.full(len(first), -8.0)]) / heat
            logp = full - np.logaddexp.reduce(full, axis=1, keepdims=True)
            table = table.assign(**{f"logp_{x}{suffix}": logp[:, k] for k, x in enumerate(LETTERS)})
            table[f"mass_other{suffix}"] = np.exp(logp[:, 3])
        parts.append(table)
    answers = pd.concat(parts, ignore_index=True)
    if bases:
        answers["base"] = answers["model"].map(
            {
                name: f"base-{k * bases // models}"
                for k, name in enumerate(answers["model"].unique())
            }
        )
    return answers


def shrunk(logits, letters, precision, rng, k):
    return 0.6 * logits


def shaken(logits, letters, precision, rng, k):
    return logits + rng.normal(0, 0.9, logits.shape)


def drifted(logits, letters, precision, rng, k):
    return logits + 1.2 * (letters == 2)
