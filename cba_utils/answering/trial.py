"""A trial of a model before it is asked: does what is computed here equal its own call?

`cba_utils.answering.engine.Engine` runs many prompts at once, shared beginnings once, with caches and
masks of its own, and on a CPU with kernels of its own. mlx-lm has over a hundred architectures, and
new ones come with every release: whether one can be run so is found out, not looked up.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from cba_utils.answering.cores import map_pieces, settle
from cba_utils.answering.engine import SHORTEST_SHARED, CannotBeAsked, Engine
from cba_utils.answering.likelihood import batch_nll

# Two prompts that share a beginning, and how much of each is its own: different lengths, so that
# one is filled up, and a token more for each, as sampled answers go on.
_SHARED, _OWN = SHORTEST_SHARED + 4, (3, 7)
# Largest difference, see `difference`. Measured: at most 5e-6 in fp32 over the architectures that can be
# asked (benchmarks/architectures.csv) and 2e-5 on the organisms, none in bf16 on a CPU; faults put in
# (masks, positions, neighbours' values) 0.3 to 8. A GPU rounds batches of bf16 in another order.
TOLERANCE = {"fp32": 2e-3, "bf16": 0.1}


def try_out(loaded):
    """Compare what is computed here with the model's own call, on two short prompts.

    Parameters
    ----------
    loaded : LoadedModel

    Returns
    -------
    dict of str to float
        Differences of ``logits`` (see `difference`) and ``perplexity`` (nats a token).

    Raises
    ------
    CannotBeAsked
        Saying why.

    Notes
    -----
    About a hundred tokens are run in all, whatever the model's size.

    Examples
    --------
    >>> from cba_utils import load_model
    >>> bool(max(try_out(load_model("toy-mistral/b1")).values()) < 1e-3)
    True
    """
    prompts, more = _prompts(loaded)
    try:
        own = [
            _own_logits(loaded.model, [*prompt, token])
            for prompt, token in zip(prompts, more, strict=True)
        ]
    # Whatever an architecture raises: the reason is told, and the caller decides.
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise CannotBeAsked(f"mlx_lm's own call of it fails on this machine ({said})") from error
    if not all(np.isfinite(logits).all() for logits in own):
        raise CannotBeAsked("mlx_lm's own call of it gives numbers that are not finite")
    try:
        found = _through_engine(loaded, prompts, more)
    except CannotBeAsked:
        raise
    except Exception as error:
        raise CannotBeAsked(
            "its layers do not take keys and values of beginnings that prompts share"
        ) from error
    wanted = [logits[place] for place in (-2, -1) for logits in own]
    largest = max(map(difference, found, wanted))
    kind = "fp32" if loaded.in_fp32 else "bf16"
    if not largest <= TOLERANCE[kind]:
        raise CannotBeAsked(
            f"two prompts that share a beginning get other probabilities than from its own call (by "
            f"{largest:.2g} of their spread, and {TOLERANCE[kind]} is what rounding explains)"
        )
    off = _perplexity_difference(loaded, [*prompts[0], more[0]], own[0])
    if not off <= TOLERANCE[kind]:
        raise CannotBeAsked(
            f"its perplexity is not that of its own call (by {off:.2g} nats a token)"
        )
    return {"logits": largest, "perplexity": off}


def difference(found, wanted):
    """Root mean square difference of logits over the vocabulary, as a share of their own spread.

    What is added to all of them changes no probability, so it is taken out: as their mean, for the sum of
    the exponentials is the largest logit's, where one step of bf16 is a quarter of a nat at 32.

    Examples
    --------
    >>> float(difference(np.array([0.0, 1.0]), np.array([2.0, 3.0])))
    0.0
    """
    return (found - wanted).std() / (wanted.std() + 1e-3)


def _prompts(loaded):
    """Token ids that lie all over the vocabulary, the same in every run."""
    # NumPy's, so that MLX's own seed stays what it is.
    rng = np.random.default_rng(0)
    ids = rng.integers(
        0, min(loaded.rows, len(loaded.hf_tokenizer)), _SHARED + sum(_OWN) + 2
    ).tolist()
    shared, rest = ids[:_SHARED], ids[_SHARED:]
    return [shared + rest[: _OWN[0]], shared + rest[_OWN[0] : -2]], rest[-2:]


def _own_logits(network, ids):
    logits = network(mx.array([ids]), cache=make_prompt_cache(network))[0]
    return np.array(logits.astype(mx.float32), dtype=float)


def _through_engine(loaded, prompts, more):
    """Logits after each prompt, then after each with one more token."""
    engine = Engine(loaded)
    settle(loaded)

    def run(_):
        hidden, state = engine.start(prompts)
        first = engine.logits(hidden)
        hidden, _ = engine.extend(state, [0, 1], more)
        return [np.array(x.astype(mx.float32), dtype=float) for x in (first, engine.logits(hidden))]

    return np.concatenate(next(iter(map_pieces(loaded, run, [0]))))


def _perplexity_difference(loaded, ids, own):
    """Nats a token between the negative log-likelihood found here and that of the own call."""
    try:
        found = next(
            iter(map_pieces(loaded, lambda batch: batch_nll(loaded, batch), [np.array([ids])]))
        )
    except Exception as error:
        raise CannotBeAsked("its layers cannot be run on a text alone, for perplexity") from error
    losses = nn.losses.cross_entropy(mx.array(own[:-1].astype(np.float32)), mx.array(ids[1:]))
    return abs(float(found[0]) - losses.sum().item()) / (len(ids) - 1)
