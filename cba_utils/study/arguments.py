"""Arguments of the five public functions, checked by the types that study files are checked by.

What a wrong value is gets said before a model runs, in one line; ``cba_utils.score_letters`` and its like
are the functions of ``answering/`` behind this check.
"""

import functools
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, create_model

from cba_utils.study.protocol import Orders, Perplexity, Precision, Samples, Text, _validated


def _as_text(value):
    return str(value) if isinstance(value, Path) else value


def _as_list(value):
    return value if isinstance(value, str | dict) or not hasattr(value, "__iter__") else list(value)


def _as_texts(value):
    """Texts that were tokenized already, as lists of token ids, are as good as others."""
    value = _as_list(value)
    return [_as_ids(text) for text in value] if isinstance(value, list) else value


def _as_ids(text):
    ids = isinstance(text, list) and text and all(type(k) is int and k >= 0 for k in text)
    return "token ids" if ids else text


def _items(value):
    if isinstance(value, pd.DataFrame) and not len(value):
        raise ValueError("there is none to ask")
    return value


def _field(model, name):
    """A field of a study's section, as an argument may write it."""
    field = model.model_fields[name]
    return Annotated[field.annotation, *field.metadata, BeforeValidator(_as_list)]


_PATH = Annotated[Text, BeforeValidator(_as_text)]
_TEXTS = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]
_ITEMS = Annotated[InstanceOf[pd.DataFrame], BeforeValidator(_items)]
_CHECKS: dict[str, dict[str, Any]] = {
    "load_items": {
        "source": _PATH,
        "categories": _TEXTS | None,
        "condition": Literal["ambig", "disambig", "both"],
    },
    "load_model": {"model": _PATH, "precision": Precision},
    "score_letters": {
        "items": _ITEMS,
        "orders": Orders,
        "temperature": _field(Samples, "temperature"),
    },
    "sample_answers": {
        "items": _ITEMS,
        **{name: _field(Samples, name) for name in Samples.model_fields},
    },
    "perplexity": {
        "texts": Annotated[_TEXTS, BeforeValidator(_as_texts)],
        "sequence_length": _field(Perplexity, "sequence_length"),
    },
}


def checked(function):
    """A public function that says in one line which of its arguments is wrong, and how.

    Parameters
    ----------
    function : callable
        One of the five.

    Returns
    -------
    callable

    Examples
    --------
    >>> import cba_utils
    >>> cba_utils.load_items("bundled", condition="all")
    Traceback (most recent call last):
    ValueError: load_items: condition: must be 'ambig', 'disambig' or 'both', not 'all'
    """
    name = function.__name__
    fields = {key: (kind, None) for key, kind in _CHECKS[name].items()}
    config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
    model = create_model(name, __config__=config, **fields)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **options):
        _validated(model, signature.bind(*args, **options).arguments, name)
        return function(*args, **options)

    return call
