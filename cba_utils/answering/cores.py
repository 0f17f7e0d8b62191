"""Independent pieces of work on all cores of a CPU.

MLX runs the operations of one CPU stream one after the other, and all but its matrix products on
one core. Pieces on streams of their own keep every core at work; a piece's result does not depend
on how many run beside it.
"""

import os
import re
from concurrent.futures import Future, wait
from functools import cache
from queue import SimpleQueue
from threading import Thread

import mlx.core as mx

from cba_utils.answering.cpu_kernels import dense_kernels


def map_pieces(loaded, function, pieces):
    """Apply a function that runs a model to each piece, as many at a time as there are cores.

    Parameters
    ----------
    loaded : LoadedModel
        One that `settle` was called with. On a GPU, which is busy with one, and natively, pieces run
        one after the other.
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
    >>> list(map_pieces(load_model("toy-mistral/b1"), len, ["a", "bc"]))
    [1, 2]
    """
    if not loaded.in_fp32:
        yield from map(function, pieces)
        return
    futures = [Future() for _ in pieces]
    with dense_kernels(loaded):
        for future, piece in zip(futures, pieces, strict=True):
            _workers().put((future, function, piece))
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def settle(loaded):
    """Compute what of a model is still to be computed: other threads could not do it."""
    mx.eval(
        [
            array
            for module in loaded.model.modules()
            for array in module.values()
            if isinstance(array, mx.array)
        ]
    )


def worker_count():
    """How many pieces are worked on at a time: one a core, or as many as OMP_NUM_THREADS says.

    A job among several of a workflow is told its share of the cores by it. OpenMP takes a list of
    numbers, one a level of nesting, of which the first counts here, and what is no number above 0 for
    none: both are read alike here, so that no setting of a machine stops a run or lets it wait for
    workers that are not there.

    Returns
    -------
    int

    Examples
    --------
    >>> worker_count() >= 1
    True
    """
    cores = os.cpu_count() or 1
    first = re.fullmatch(
        r"\s*\+?(\d{1,9})(?:\.0*)?\s*(?:,.*)?", os.environ.get("OMP_NUM_THREADS", "")
    )
    asked = int(first[1]) if first else 0
    # More threads than cores would only take memory.
    return min(asked, 4 * cores) if asked > 0 else cores


@cache
def _workers():
    """The queue that the workers of this process take their pieces from."""
    tasks = SimpleQueue()
    for _ in range(worker_count()):
        # Daemons, which never end: what MLX keeps for a thread is freed when it ends, and would abort
        # the process if Python itself had ended by then.
        Thread(target=_work, args=(tasks,), daemon=True).start()
    return tasks


def _work(tasks):
    with mx.stream(mx.new_stream(mx.cpu)):
        while True:
            future, function, piece = tasks.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(piece))
                except BaseException as error:  # noqa: BLE001 (the caller gets it)
                    future.set_exception(error)
            del future, function, piece
