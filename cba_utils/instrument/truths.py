"""Simulated studies whose truth is known, many at a time, as arrays.

A study has three families. Its checkpoints answer the same items, and what is special about a template
is partly shared by the families, as it is where people wrote the template. Two designs:

- ``"single"``: one checkpoint a family, as the published study had;
- ``"bases"``: three bases of each family and five alignments of each base, as the default study has.

Every checkpoint is asked before and after rounding. Rounding shakes it a little: all of its answers
alike, its templates and its items, each towards either person alike. What it does besides is the
:class:`Truth`. Each is simulated without and with a lean to the stereotyped person at BF16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS, ORDERS
from cba_utils.names import ROLES

TEMPERATURE = 0.3
LEAN = 1.0  # log odds of the stereotyped person at BF16, on average, where respondents lean
SHARED = 0.6  # correlation of template effects between families
CATEGORIES, TEMPLATES, AMBIGUOUS, CLEAR = 5, 35, 6, 4  # the last two a template
DESIGNS = {"single": (3, 1, 1), "bases": (3, 3, 5)}  # families, bases of each, alignments of each
QUIET, LOUD = 0.25, 0.9  # how far rounding shakes an answer, nats; Q4 and Q3 of 1M-weight organisms
EVEN, UNEVEN = (0.05, 0.1, 0.2), (1.0, 0.15, 0.05)  # how far all answers move, a family
OTHER = -4.0  # logit of an answer that is no letter
STEREOTYPED, ANTI, UNKNOWN = range(3)


@dataclass
class Setting:
    """What a truth may act on besides the logits."""

    category: np.ndarray
    group: np.ndarray
    effects: Callable  # effects of templates with a given spread, partly shared by families


@dataclass(frozen=True)
class Truth:
    """What rounding does.

    Parameters
    ----------
    name : str
        As tables name it.
    grew : {"no", "yes", "in parts"}
        Whether the stereotyped person gained on the other beyond each item's own odds at BF16: nowhere,
        on average, or in some groups while others lost.
    scale : float
        What all log odds are multiplied by, those between letters too.
    acts : callable, optional
        Takes logits by role (the last axis) and the :class:`Setting`, returns those after rounding.
    shake : float
        Spread of what rounding adds to an answer, in nats.
    wander : tuple of float
        Spread of what it adds to all answers of a checkpoint, a family.
    letter : float
        What the letter C gains, in nats.
    guess : float
        Share of the answers that become guesses among the letters.
    retrained : bool
        Whether both sides of the comparison are trainings of their own.
    """

    name: str
    grew: str = "no"
    acts: Callable | None = None
    scale: float = 1.0
    shake: float = QUIET
    wander: tuple[float, ...] = EVEN
    letter: float = 0.0
    guess: float = 0.0
    retrained: bool = False


def _lost(logits, _):
    return logits - 1.0 * (np.arange(3) == UNKNOWN)


def _rise(by):
    def acts(logits, setting):
        return _with(logits, by * (1 + setting.effects(0.5)))

    return acts


def _with(logits, gain):
    """Logits whose stereotyped role gains."""
    return logits + np.asarray(gain)[..., None] * (np.arange(3) == STEREOTYPED)


def _one_category(logits, setting):
    return _with(logits, 1.0 * (setting.category == 0)[:, None])


def _halves_flat_odds(logits, setting):
    return _with(logits, np.where(setting.group % 2, 0.5, -0.5)[:, None])


def _halves_flat_rate(logits, setting):
    """Half of the groups lose one nat, and the others gain what keeps the stereotyped rate."""
    up = (setting.group % 2 == 1)[:, None]
    fallen = _with(logits, np.where(up, 0.0, -1.0))
    return _with(fallen, up * gain_for(logits, fallen, up))


def stereotyped_rate(logits, temperature=TEMPERATURE):
    """Stereotyped share of the letters on ambiguous items, a study: all axes but the first averaged.

    One alignment of each base stands for all.
    """
    first = logits[:, :, :, :1, :, :AMBIGUOUS, :] / temperature
    p = np.exp(first - first.max(-1, keepdims=True))
    return (p[..., STEREOTYPED] / p.sum(-1)).mean(axis=(1, 2, 3, 4, 5))


def gain_for(before, after, where):
    """What the stereotyped role must gain in some templates so that its rate is what it was before.

    Found by bisection, a study.
    """
    wanted = stereotyped_rate(before)
    low, high = np.zeros(len(before)), np.full(len(before), 8.0)
    shape = (-1,) + (1,) * (before.ndim - 2)
    for _ in range(30):
        middle = (low + high) / 2
        short = stereotyped_rate(_with(after, where * middle.reshape(shape))) < wanted
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return low.reshape(shape)


TRUTHS = {
    truth.name: truth
    for truth in (
        Truth("nothing", shake=0.0, wander=(0.0, 0.0, 0.0)),
        Truth("retrained", shake=0.0, retrained=True),
        Truth("noise", shake=LOUD),
        Truth("uneven families", shake=QUIET, wander=UNEVEN),
        Truth("margins × 0.86", scale=0.86),
        Truth("margins × 0.33", scale=0.33),
        Truth("unknown lost", acts=_lost),
        Truth("guessing", guess=0.2),
        Truth("letter drift", letter=1.0),
        Truth("rise 0.3", "yes", _rise(0.3)),
        Truth("rise 0.8", "yes", _rise(0.8)),
        Truth("uneven families, rise 0.8", "yes", _rise(0.8), wander=UNEVEN),
        Truth("margins × 0.86, rise 0.3", "yes", _rise(0.3), scale=0.86),
        Truth("margins × 0.33, rise 0.3", "yes", _rise(0.3), scale=0.33),
        Truth("one category + 1", "yes", _one_category),
        Truth("halves, rate flat", "in parts", _halves_flat_rate),
        Truth("halves, odds flat", "in parts", _halves_flat_odds),
    )
}


@dataclass
class Studies:
    """Answers of many simulated studies, before (``_ref``) and after rounding.

    Probabilities have the axes study, checkpoint, template, item of the template, order of the options
    and outcome (the three roles, no letter). The first items of a template are ambiguous.
    """

    p_ref: np.ndarray
    p: np.ndarray
    t_ref: np.ndarray  # at the temperature that answers are drawn at
    t: np.ndarray
    letter: np.ndarray  # study, template, item, order, role: at which letter the role stands
    family: np.ndarray  # of each checkpoint
    base: np.ndarray
    category: np.ndarray  # of each template
    group: np.ndarray
    temperature: float = TEMPERATURE

    @property
    def right(self):
        """The right role of each item of a template."""
        clear = np.arange(CLEAR) % 2
        return np.concatenate([np.full(AMBIGUOUS, UNKNOWN), clear])

    def answers(self, study=0):
        """One study as records keep it, in the schema of ``answers``.

        Returns
        -------
        DataFrame
        """
        letters = self.letter[study]
        templates, items, orders, _ = letters.shape
        size = templates * items * orders
        template, item, order = (x.ravel() for x in np.indices((templates, items, orders)))
        clear = item >= AMBIGUOUS
        category = np.array([f"category {k + 1}" for k in self.category], object)[template]
        keep = {
            "item_id": [f"{c}/{k}" for c, k in zip(category, template * items + item, strict=True)],
            "category": category,
            "question_index": template + 1,
            "question_polarity": np.array(["neg", "nonneg"], object)[item // 2 % 2],
            "context_condition": np.where(clear, "disambig", "ambig").astype(object),
            "template_id": [f"{c}/{k}" for c, k in zip(category, template + 1, strict=True)],
            "group": self.group[template],
            "order": np.array(ORDERS["cyclic"], object)[order],
        }
        at = letters.reshape(size, 3)
        role_at = np.argsort(at, axis=1)
        for k, letter in enumerate(LETTERS):
            keep[f"role_{letter}"] = np.array(ROLES, object)[role_at[:, k]]
        keep["correct"] = np.array([*LETTERS], object)[at[np.arange(size), self.right[item]]]
        frames = []
        for c, (family, base) in enumerate(zip(self.family, self.base, strict=True)):
            for precision, one, heated in (
                ("bf16", self.p_ref, self.t_ref),
                ("q3", self.p, self.t),
            ):
                columns = {
                    "model": f"family {family + 1}-{c + 1}",
                    "family": f"family {family + 1}",
                    "base": f"base {base + 1}",
                    "replicate": c + 1,
                    "depth": "full",
                    "precision": precision,
                    **keep,
                }
                for suffix, p in (("", one), ("_t", heated)):
                    p = p[study, c].reshape(size, 4)
                    by_letter = np.take_along_axis(p, role_at, axis=1)
                    for k, letter in enumerate(LETTERS):
                        columns[f"logp_{letter}{suffix}"] = np.log(by_letter[:, k])
                    columns[f"mass_other{suffix}"] = p[:, 3]
                frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)


def simulate(
    truth: str,
    leaning: bool = False,
    design: str = "bases",
    studies: int = 1,
    seed: int = 0,
    templates: int = TEMPLATES,
    shaken: bool = True,
) -> Studies:
    """Answers of simulated studies.

    Parameters
    ----------
    truth : str
        One of ``TRUTHS``: what rounding does.
    leaning : bool
        Whether the respondents lean to the stereotyped person at BF16, by ``LEAN`` on average; if not,
        each template leans its own way, and none on average.
    design : {"single", "bases"}
    studies, seed, templates : int
    shaken : bool
        Without it rounding does what the truth says and nothing else.

    Examples
    --------
    >>> simulate("rise 0.3", design="single", studies=2, templates=5).p.shape
    (2, 3, 5, 10, 3, 4)
    """
    if truth not in TRUTHS:
        raise ValueError(f"truth must be one of {list(TRUTHS)}, not {truth!r}")
    if design not in DESIGNS:
        raise ValueError(f"design must be one of {list(DESIGNS)}, not {design!r}")
    return simulated(TRUTHS[truth], leaning, DESIGNS[design], studies, seed, templates, shaken)


def simulated(truth, leaning, sizes, studies, seed=0, templates=TEMPLATES, shaken=True):
    """The same of a truth of one's own and any numbers of families, bases and alignments.

    Studies of the same truth and seed ask the same items, whatever the numbers of bases and alignments.
    """
    families, bases, alignments = sizes
    key = [seed, *map(ord, truth.name), leaning]
    asked, rng = np.random.default_rng(key), np.random.default_rng([*key, bases, alignments])
    items = AMBIGUOUS + CLEAR
    cells = (studies, families, bases, alignments)

    def by_family(spread, last):
        """Effects of templates or items that families partly share."""
        shared = asked.normal(size=(studies, 1, 1, 1, *last))
        own = asked.normal(size=(studies, families, 1, 1, *last))
        return spread * (np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own)

    def by_training(spread, last=(templates, 1)):
        """Effects of the training of a base and of its alignment, half of the variance each."""
        base = rng.normal(size=(studies, families, bases, 1, *last))
        aligned = rng.normal(size=(*cells, *last))
        return spread * np.sqrt(0.5) * (base + aligned)

    def effects(spread):
        return by_family(spread, (templates, 1))

    def trained():
        """What one training gives: odds of the persons and margin of unknown, a template."""
        return by_training(0.25), by_training(0.25)

    first_named = np.where(np.arange(items) // 2 % 2 == 0, 0.1, -0.1)
    odds = leaning * LEAN + effects(0.5) + by_family(0.3, (templates, items)) + 2 * first_named
    margin = asked.uniform(0.5, 4.5, (studies, 1, 1, 1, templates, 1)) + effects(0.3)
    margin = margin + by_family(0.3, (templates, items))
    skill = 2.2 + effects(0.4)

    def logits(training):
        gap, rest = odds + training[0], margin + training[1]
        ambiguous = np.stack([gap / 2, -gap / 2, rest + gap / 2], axis=-1)
        clear = np.stack([gap / 2, -gap / 2, 0 * gap], axis=-1)
        right = np.arange(items)[:, None] % 2 == np.arange(3)
        clear = clear + skill[..., None] * right
        return np.where((np.arange(items) < AMBIGUOUS)[:, None], ambiguous, clear)

    start = trained()
    before = logits(start)
    category = np.arange(templates) % CATEGORIES
    group = 2 * category + np.arange(templates) // CATEGORIES % 2
    after = truth.scale * (logits(trained()) if truth.retrained else before)
    if truth.acts:
        after = truth.acts(after, Setting(category, group, effects))
    if shaken and truth.name != "nothing":
        moved = np.sqrt(0.5) * (
            rng.normal(size=(studies, families, bases, 1, 1, 1, 3))
            + rng.normal(size=(*cells, 1, 1, 3))
        )
        after = after + np.array(truth.wander).reshape(1, -1, 1, 1, 1, 1, 1) * moved
        if truth.shake:
            # A quarter of the variance of what rounding adds is a template's, the rest an item's.
            after = after + truth.shake * (
                np.sqrt(0.25) * by_training(1.0, (templates, 1, 3))
                + np.sqrt(0.75) * rng.standard_normal((*cells, templates, items, 3), np.float32)
            )

    place = np.argsort(asked.random((studies, templates, items, 3)), axis=-1)
    letter = (place[..., None, :] - np.arange(3)[:, None]) % 3  # order k shows option k first
    liked = 0.2 * rng.normal(size=(*cells, 3))
    checkpoints = families * bases * alignments

    def probabilities(by_role, scale, gained, guess, jitter):
        # In memory the outcomes and orders come first: sums over so short axes are slow elsewhere.
        full = np.full((4, 3, studies, checkpoints, templates, items), OTHER, np.float32)
        by_role = by_role.reshape(studies, checkpoints, templates, items, 3)
        full[:3] = np.moveaxis(by_role, -1, 0)[:, None]
        liking = np.moveaxis((scale * liked + gained).reshape(studies, checkpoints, 3), -1, 0)
        for k in range(3):
            at = np.moveaxis(letter == k, (-1, -2), (0, 1))[:, :, :, None]
            full[:3] += at * liking[k][:, :, None, None].astype(np.float32)
        if jitter:
            full[:3] += jitter * rng.standard_normal(full[:3].shape, np.float32)
        for heat in (1.0, TEMPERATURE):
            p = full / np.float32(heat)
            p -= p.max(0)
            np.exp(p, out=p)
            p /= p.sum(0)
            if guess:
                p[:3] = (1 - guess) * p[:3] + guess / 3 * p[:3].sum(0)
            yield np.moveaxis(p, (0, 1), (-1, -2))

    gained = truth.letter * np.array([0.0, 0.0, 1.0])
    wobble = 0.1 * (truth.name != "nothing") * shaken
    p_ref, t_ref = probabilities(before, 1.0, 0.0, 0.0, 0.0)
    p, t = probabilities(after, truth.scale, gained, truth.guess, wobble)
    return Studies(
        p_ref,
        p,
        t_ref,
        t,
        letter,
        np.repeat(np.arange(families), bases * alignments),
        np.repeat(np.arange(families * bases), alignments),
        category,
        group,
    )
