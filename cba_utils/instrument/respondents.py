"""Simulated respondents whose truth is known, to test the instrument itself.

A respondent answers three-option items through logits: one for each role, one for each letter,
and template and item effects. Quantization acts on them with a strength that grows as bits fall.
What it does is the *truth*:

- ``none``: nothing changes;
- ``retrained``: both precisions are checkpoints of their own, moved at random from the same start,
  so that answers differ and nothing changes on average;
- ``noise``: the answers get flatter and every option of an item is moved at random, towards the
  stereotyped and the anti-stereotyped answer alike;
- ``leaning noise``: the same to a respondent that leaned to the stereotyped person before;
- ``bias``: the stereotyped answer gains;
- ``letter``: one letter gains, whatever its role;
- ``mixed``: noise, bias and letter.

All but ``none`` also wobble a little from one option order to the next, as real models do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS, ORDERS, ORIGINAL
from cba_utils.names import PAPER_SEEDS, ROLES, STUDY
from cba_utils.study.roles import template_ids

TRUTHS = ("none", "retrained", "noise", "leaning noise", "bias", "letter", "mixed")
LEAN = 0.3  # of "leaning noise": the stereotyped person's logit above zero, the other's below
STRENGTH = {"bf16": 0.0, "q8": 0.02, "q6": 0.06, "q5": 0.15, "q4": 0.4, "q3": 1.0, "q2": 2.0}
CATEGORIES = ("Age", "Religion", "SES")


def _log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def simulate_items(templates: int, items_per_template: int, rng, categories=CATEGORIES):
    """Items with roles but no text: half ambiguous, half disambiguated, both polarities."""
    n = templates * items_per_template
    number = np.arange(n)
    template = number // items_per_template
    category = np.array(categories)[template % len(categories)]
    roles = np.argsort(rng.random((n, 3)), axis=1)  # column r: option index of role r
    ambiguous = number % 2 == 0
    frame = pd.DataFrame(
        {
            "item_id": [f"{c}/{i}" for c, i in zip(category, number, strict=True)],
            "category": category,
            "question_index": template + 1,
            "question_polarity": np.where(number // 2 % 2 == 0, "neg", "nonneg"),
            "context_condition": np.where(ambiguous, "ambig", "disambig"),
            "label": np.where(ambiguous, roles[:, 2], roles[number, number // 4 % 2]),
        }
    )
    for k, role in enumerate(ROLES):
        frame[f"{role}_index"] = roles[:, k]
    return frame


def simulate_respondents(
    truth: str = "mixed",
    templates: int = 24,
    items_per_template: int = 40,
    precisions: Sequence[str] = ("bf16", "q8", "q6", "q4", "q3"),
    replicates: int = 1,
    orders: str = "cyclic",
    family: str = "simulated",
    effect: float = 1.0,
    wander: float = 0.0,
    temperature: float = 0.3,
    seed: int = 0,
    categories: Sequence[str] = CATEGORIES,
) -> pd.DataFrame:
    """Exact answers of simulated respondents, in the schema of ``answers``.

    Parameters
    ----------
    truth : {"none", "retrained", "noise", "leaning noise", "bias", "letter", "mixed"}
        What quantization does; see the module.
    replicates : int
        Independent respondents, each a ``model`` of its own with other templates and items.
    effect : float
        Multiplies what quantization does; 0 makes every truth ``"none"``.
    wander : float
        Standard deviation of a shift of each role's logit that all items of a respondent share, as
        one quantized checkpoint has by chance and the next has not.
    temperature : float
        Temperature of the columns that end in ``_t``.

    Examples
    --------
    >>> answers = simulate_respondents("bias", templates=4, items_per_template=8)
    >>> len(answers) == 4 * 8 * 3 * 5
    True
    """
    if truth not in TRUTHS:
        raise ValueError(f"truth must be one of {TRUTHS}, not {truth!r}")
    parts = []
    for replicate in range(1, replicates + 1):
        rng = np.random.default_rng([seed, replicate])
        items = simulate_items(templates, items_per_template, rng, categories)
        labels = {
            "model": f"{family}-s{replicate}",
            "family": family,
            "base": f"{family}-s{replicate}",
            "replicate": replicate,
            "depth": "full",
        }
        parts += [
            {**labels, **part}
            for part in _answers(
                items, truth, precisions, ORDERS[orders], effect, wander, temperature, rng
            )
        ]
    # One frame is made at the end: a frame a part takes much longer.
    size = templates * items_per_template

    def column(value):
        if np.ndim(value):
            return value
        return np.full(size, value, object if isinstance(value, str) else None)

    return pd.DataFrame(
        {name: np.concatenate([column(part[name]) for part in parts]) for name in parts[0]}
    )


def _answers(items, truth, precisions, orders, effect, wander, temperature, rng):
    """Columns of the answers, one dictionary a precision and order."""
    n = len(items)
    template, first = np.unique(items["question_index"], return_inverse=True)
    ambiguous = (items["context_condition"] == "ambig").to_numpy()
    role_index = items[[f"{r}_index" for r in ROLES]].to_numpy()
    # Before quantization: mostly "unknown" on ambiguous items, mostly right on the others, with
    # leanings that differ by template and item and favour neither person on average.
    lean = rng.normal(0, 0.4, len(template))[first] + rng.normal(0, 0.4, n)
    lean = lean + LEAN * (truth == "leaning noise")
    logits = np.stack([lean, -lean, np.full(n, 1.5)], axis=1)
    logits[:, 2] += rng.normal(0, 0.4, len(template))[first]
    right = role_index == items["label"].to_numpy()[:, None]
    logits = np.where(ambiguous[:, None], logits, logits * [1, 1, 0.2] + 2.0 * right)

    def moved():
        return rng.normal(0, 0.5, (len(template), 3))[first] + rng.normal(0, 0.5, (n, 3))

    shake = moved()
    keep = items.drop(columns=["label", *(f"{r}_index" for r in ROLES)])
    keep = keep.assign(template_id=template_ids(keep))
    keep = {name: column.to_numpy() for name, column in keep.items()}
    role_of_option = np.empty_like(role_index)
    np.put_along_axis(role_of_option, role_index, np.arange(3)[None, :].repeat(n, 0), axis=1)
    for precision in precisions:
        if precision not in STRENGTH:
            raise ValueError(f"precision must be one of {list(STRENGTH)}, not {precision!r}")
        strength = effect * STRENGTH[precision]
        now, letters = logits, np.zeros(3)
        if truth == "retrained" or strength:
            now = now + wander * rng.normal(size=3)
        if truth == "retrained":
            now = now + effect * moved()
        if truth in ("noise", "leaning noise", "mixed"):
            now = now / (1 + strength) + strength * shake
        if truth in ("bias", "mixed"):
            now = now + strength * np.array([1.0, 0, 0])
        if truth in ("letter", "mixed"):
            letters = strength * np.array([0, 0, 1.0])
        for order in orders:
            shown = np.array([int(x) for x in order])
            role = role_of_option[:, shown]
            wobble = 0.1 * strength * rng.normal(size=(n, 3)) * (truth != "none")
            by_letter = np.take_along_axis(now, role, axis=1) + letters + wobble
            columns = {"precision": precision, **keep, "order": order}
            for k, letter in enumerate(LETTERS):
                columns[f"role_{letter}"] = np.array(ROLES, object)[role[:, k]]
            place = np.argmax(shown[None, :] == items["label"].to_numpy()[:, None], axis=1)
            columns["correct"] = np.array([*LETTERS], object)[place]
            for suffix, heat in (("", 1.0), ("_t", temperature)):
                # A fourth outcome, no letter at all, keeps a small constant logit.
                full = np.column_stack([by_letter, np.full(n, -4.0)]) / heat
                logp = _log_softmax(full).astype("float32")
                for k, letter in enumerate(LETTERS):
                    columns[f"logp_{letter}{suffix}"] = logp[:, k]
                columns[f"mass_other{suffix}"] = np.exp(logp[:, 3])
            yield columns


def draw_samples(
    answers: pd.DataFrame, seeds: Sequence[int] = PAPER_SEEDS, seed: int = 0
) -> pd.DataFrame:
    """Draw samples, each on its own, from exact answers.

    They are drawn at the study's temperature, in the original order of the options.

    Parameters
    ----------
    seeds : sequence of int
        Names of the draws.

    Returns
    -------
    DataFrame
        In the schema of ``samples``.
    """
    source = answers[answers["order"] == ORIGINAL].reset_index(drop=True)
    logp = np.column_stack(
        [
            source[[f"logp_{x}_t" for x in LETTERS]].to_numpy(float),
            np.log(np.maximum(source["mass_other_t"].to_numpy(float), 1e-30)),
        ]
    )
    roles = np.column_stack(
        [source[[f"role_{x}" for x in LETTERS]].to_numpy(str), np.full(len(source), "unparsed")]
    )
    names = np.array([*LETTERS, "Q"])
    drop = [c for c in source if c.startswith(("logp_", "mass_", "role_"))]
    base = source.drop(columns=[*drop, "order", "correct"])
    frames = []
    for value in seeds:
        rng = np.random.default_rng([seed, value])
        choice = (logp + rng.gumbel(size=logp.shape)).argmax(axis=1)
        letter = names[choice]
        frames.append(
            base.assign(
                seed=value,
                raw_response=letter,
                parsed_answer=pd.array(np.where(choice == 3, None, letter), dtype="str"),
                role=roles[np.arange(len(choice)), choice],
                correct=letter == source["correct"].to_numpy(str),
            )
        )
    return pd.concat(frames, ignore_index=True)


def simulate_perplexity(
    answers: pd.DataFrame, sequences: int = 64, effect: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Per-sequence negative log-likelihoods that rise with the strength of quantization."""
    cells = answers[STUDY].drop_duplicates()
    frames = []
    for cell in cells.itertuples(index=False):
        rng = np.random.default_rng([seed, int(cell.replicate)])
        level = rng.gamma(40, 0.05, sequences)
        strength = effect * STRENGTH[cell.precision]
        rise = 0.08 * strength + 0.03 * strength * rng.normal(size=sequences)
        frames.append(
            pd.DataFrame(
                {
                    **cell._asdict(),
                    "sequence": np.arange(sequences),
                    "tokens": 512,
                    "nll": 512 * (level + rise),
                    "source": "simulated",
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def simulate_study(truth: str = "mixed", seed: int = 0, **options) -> dict[str, pd.DataFrame]:
    """A whole study of simulated respondents, keyed as ``load_study`` keys a real one.

    Examples
    --------
    >>> sorted(simulate_study("none", templates=3, items_per_template=8))
    ['answers', 'items', 'perplexity', 'samples']
    """
    answers = simulate_respondents(truth, seed=seed, **options)
    first = answers[answers["model"] == answers["model"].iloc[0]]
    first = first[(first["precision"] == first["precision"].iloc[0]) & (first["order"] == ORIGINAL)]
    items = first[
        ["item_id", "category", "question_index", "question_polarity", "context_condition"]
    ].reset_index(drop=True)
    shown = first[[f"role_{x}" for x in LETTERS]].to_numpy(str)
    items["label"] = first["correct"].map({x: k for k, x in enumerate(LETTERS)}).to_numpy()
    for role in ROLES:
        items[f"{role}_index"] = (shown == role).argmax(axis=1)
    return {
        "items": items,
        "answers": answers,
        "samples": draw_samples(answers, seed=seed),
        "perplexity": simulate_perplexity(answers, seed=seed),
    }
