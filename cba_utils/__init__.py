"""Measure stereotyped answers of language models at every precision they are quantized to."""

from importlib import import_module

from cba_utils.answering.blas import use_fast_blas

# MLX binds its BLAS when it is imported, so this line comes before anything that imports MLX.
BLAS = use_fast_blas()

_HOMES = {
    "load_items": "answering.items",
    "load_model": "answering.checkpoints",
    "perplexity": "answering.likelihood",
    "sample_answers": "answering.scoring",
    "score_letters": "answering.scoring",
}
__all__ = ["BLAS", *_HOMES]


def __getattr__(name):
    """Import what needs MLX, pandas and transformers only when it is asked for."""
    if name in _HOMES:
        value = getattr(import_module(f"cba_utils.{_HOMES[name]}"), name)
        value = import_module("cba_utils.study.arguments").checked(value)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'cba_utils' has no attribute {name!r}")
