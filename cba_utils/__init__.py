"""Measure stereotyped answers of language models at every precision they are quantized to."""

from importlib import import_module

from cba_utils.answering.blas import use_fast_blas

# MLX binds its BLAS when it is imported, so this line comes before anything that imports MLX.
BLAS = use_fast_blas()

# Bound here, once: the function must win over the module of the same name.
from cba_utils.answering.likelihood import perplexity  # noqa: E402

_HOMES = {
    "load_items": "answering.items",
    "load_model": "answering.checkpoints",
    "score_letters": "answering.scoring",
    "sample_answers": "answering.scoring",
}
__all__ = ["BLAS", "perplexity", *_HOMES]


def __getattr__(name):
    """Import mlx-lm and transformers only when something that needs them is asked for."""
    if name in _HOMES:
        value = getattr(import_module(f"cba_utils.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'cba_utils' has no attribute {name!r}")
