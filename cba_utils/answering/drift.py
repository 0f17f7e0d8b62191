"""How far a distribution over the whole vocabulary lies from the reference's.

Letters are a few of many tokens. The reference's last hidden states, a few thousand numbers a position,
stand for its distributions: its own head makes them again whenever they are needed. So every item can
be compared, and nothing that is kept grows with the vocabulary.
"""

import mlx.core as mx
import numpy as np

from cba_utils.names import DRIFT

# Tokens of a held-out text that are compared; whole sequences, the first ones.
MOST_TOKENS = 2**15
# Positions whose logits over the vocabulary exist beside the reference's at a time.
_AT_ONCE = 32


def distances(logits, reference):
    """Distances of next-token distributions from the reference's, at temperature 1.

    Parameters
    ----------
    logits, reference : mx.array, shape (n, vocabulary)

    Returns
    -------
    numpy array, shape (n, 3)
        Kullback-Leibler divergence of the distribution from the reference's (nats, expectation under
        the reference), total variation (0 to 1), and 1 where the likeliest token is another one.

    Examples
    --------
    >>> there = mx.log(mx.array([[0.5, 0.25, 0.25]]))
    >>> here = mx.log(mx.array([[0.25, 0.5, 0.25]]))
    >>> [round(x, 4) for x in distances(here, there)[0].tolist()]
    [0.1733, 0.25, 1.0]
    """
    both = [x.astype(mx.float32) for x in (logits, reference)]
    # On a CPU, MLX computes exp one element at a time, and NumPy many times as fast.
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    xp = np if on_cpu else mx
    q, p = (np.array(x, copy=False) for x in both) if on_cpu else both
    (here, log_q), (there, log_p) = _normalised(xp, q), _normalised(xp, p)
    # Rounding alone would make some divergences of equal distributions negative.
    kl = xp.maximum((there * (log_p - log_q)).sum(axis=-1), 0)
    tv = xp.abs(there - here).sum(axis=-1) / 2
    flip = (q.argmax(axis=-1) != p.argmax(axis=-1)).astype(xp.float32)
    return np.array(xp.stack([kl, tv, flip], axis=1))


def _normalised(xp, logits):
    """Probabilities and their logarithms."""
    low = logits - logits.max(axis=-1, keepdims=True)
    share = xp.exp(low)
    total = share.sum(axis=-1, keepdims=True)
    return share / total, low - xp.log(total)


class Kept:
    """Hidden states of the reference in one block of positions, as they come.

    Parameters
    ----------
    write : callable
        Is given all states of the block, in the order of their positions, once it is done.
    """

    def __init__(self, write):
        self._write, self._parts = write, []

    def see(self, places, hidden, _logits):
        """Keep the states at some places of the block; the reference is no distance from itself."""
        self._parts.append((np.asarray(places), as_numpy(hidden)))
        return np.zeros((len(places), len(DRIFT)), np.float32)

    def done(self):
        """Hand the block on."""
        places = np.concatenate([part[0] for part in self._parts])
        self._write(np.concatenate([part[1] for part in self._parts])[places.argsort()])


class Compared:
    """A block of positions beside the reference's states at the same positions.

    Parameters
    ----------
    project : callable
        The reference's head, see `cba_utils.answering.checkpoints.LoadedModel.project`.
    states : numpy array, shape (positions, width)
        What `Kept` handed on.
    """

    def __init__(self, project, states):
        self._project, self._states = project, states

    def see(self, places, _hidden, logits):
        """Distances at some places of the block, shape (places, 3)."""
        found = [
            distances(
                logits[start : start + _AT_ONCE],
                self._project(as_mlx(self._states[places[start : start + _AT_ONCE]])),
            )
            for start in range(0, len(places), _AT_ONCE)
        ]
        return np.concatenate([np.empty((0, len(DRIFT)), np.float32), *found])

    def done(self):
        """Nothing is left to do."""


def as_numpy(hidden):
    """Hidden states as NumPy has them; bf16, which it does not know, as the same 16 bits."""
    return np.array(hidden.view(mx.uint16) if hidden.dtype == mx.bfloat16 else hidden)


def as_mlx(states):
    """Hidden states that `as_numpy` made, as they were."""
    array = mx.array(np.ascontiguousarray(states))
    return array.view(mx.bfloat16) if array.dtype == mx.uint16 else array
