"""Independent pieces of work on all cores of a CPU.

MLX runs the operations of one CPU stream one after the other, and all but its matrix products on
one core. Pieces on streams of their own keep every core at work; a piece's result does not depend
on how many run beside it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import local

import mlx.core as mx

from cba_utils.cpu_kernels import fast_exponentials

_own = local()


def map_pieces(loaded, function, pieces):
    """Apply a function that runs a model to each piece, as many at a time as there are cores.

    Parameters
    ----------
    loaded : LoadedModel
        Computed natively, its pieces run one after the other: a GPU is busy with one.
    function : callable
        Returns NumPy arrays or plain objects; arrays of MLX belong to their stream.
    pieces : list

    Yields
    ------
    object
        One result a piece, in order.

    Examples
    --------
    >>> from cba_utils import load_model
    >>> list(map_pieces(load_model("mistral/aligned-s1"), len, ["a", "bc"]))
    [1, 2]
    """
    if loaded.compute == "native":
        yield from map(function, pieces)
        return
    # What is still to be computed belongs to this thread's stream: other threads cannot do it.
    mx.eval([array for module in loaded.model.modules() for array in module.values()
             if isinstance(array, mx.array)])
    # A thread's compiled functions are freed when it ends, which is after Python's own end: they
    # would abort the process. Products do not gain from compilation.
    mx.disable_compile()
    try:
        with fast_exponentials(loaded):
            yield from _pool().map(lambda piece: _on_own_stream(function, piece), pieces)
    finally:
        mx.enable_compile()


@cache
def _pool():
    # A job among several of a workflow is told its share of the cores by OMP_NUM_THREADS.
    return ThreadPoolExecutor(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))


def _on_own_stream(function, piece):
    # Streams are never freed: one a thread, for good.
    if not hasattr(_own, "stream"):
        _own.stream = mx.new_stream(mx.cpu)
    with mx.stream(_own.stream):
        return function(piece)
