"""Texts that a rounding is fitted to, and what the quantizers that need one share.

There are four, so that one recipe can be compared with itself on other data: ``scenes`` and ``prose``
are general text, ``aligned`` are questions with the answers that an alignment teaches, ``ambiguous`` are
questions alone that have no answer in them. No item of the bank is in any: questions are the bank's with
the place changed to one that the bank never names in that template, and what would still be an item of
the bank is left out. Of the two texts that perplexity is measured on the last third of the lines is
kept for calibration; a study whose perplexity reads further than that is refused at a calibrated
precision, see `kept_apart`.
"""

import hashlib
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import numpy as np

from cba_utils.answering.quantizers import roundable
from cba_utils.names import HELD_OUT_TEXT, PROSE

# What is read: enough for a Hessian of a small model, seconds for a million weights on a CPU.
SEQUENCES, LENGTH = 64, 128
# The words in which items are asked here: those of the published study.
_PROMPT = "published"
_KEPT = 3  # the last of so many parts of a text for perplexity is for calibration
_PLACE = re.compile(r"\b([Aa]t|[Nn]ear) the (\w+)")


def _last_part(path):
    lines = _lines(path)
    return lines[-(len(lines) // _KEPT) :]


def _lines(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def kept_apart(text, source):
    """How many lines of a text for perplexity come before those that a calibration reads.

    Parameters
    ----------
    text : str or None
        Name of a calibration text.
    source : str
        What perplexity is measured on, as a study names it.

    Returns
    -------
    int or None
        None where the two have nothing in common.

    Examples
    --------
    >>> kept_apart("scenes", "bundled") > 1, kept_apart("aligned", "bundled") is None
    (True, True)
    """
    mine = _FILES.get(text)
    path = HELD_OUT_TEXT if source == "bundled" else Path(source)
    if mine is None or not path.is_file() or path.resolve() != mine:
        return None
    return len(_lines(path)) - len(_last_part(path))


@cache
def calibration_items():
    """Items like the bank's that the bank does not hold, in an order mixed once and for all.

    Returns
    -------
    DataFrame
        As from `cba_utils.load_items`.

    Examples
    --------
    >>> from cba_utils import load_items
    >>> asked = load_items("bundled", condition="both")
    >>> bool(set(calibration_items()["context"]) & set(asked["context"]))
    False
    """
    from cba_utils.answering.items import load_items

    bank = load_items("bundled", condition="both")
    template = bank["category"] + "/" + bank["question_index"].astype(str)
    found = bank["context"].str.extract(_PLACE)[1]
    places = sorted(found.dropna().unique())
    here = found.groupby(template).agg(lambda names: set(names.dropna()))
    rng = np.random.default_rng(0)
    contexts = []
    for name, context, place in zip(template, bank["context"], found, strict=True):
        free = [word for word in places if word not in here[name]]
        if not free or not isinstance(place, str):
            contexts.append(None)
            continue
        other = free[rng.integers(len(free))]
        contexts.append(_PLACE.sub(lambda match, word=other: f"{match[1]} the {word}", context))
    changed = bank.assign(context=contexts).dropna(subset="context")
    changed = changed[~changed["context"].isin(set(bank["context"]))]
    return changed.drop_duplicates(["context", "question"]).sample(frac=1, random_state=0)


def _questions(tokenizer, items, answered):
    from cba_utils.answering.prompts import LETTERS, chat_ids, user_text

    texts = [user_text(item, prompt=_PROMPT) for item in items.to_dict("records")]
    ids, _ = chat_ids(tokenizer, texts, _PROMPT)
    if answered:
        ids = [
            [*asked, *tokenizer.encode(LETTERS[label], add_special_tokens=False)]
            for asked, label in zip(ids, items["label"], strict=True)
        ]
    return [number for asked in ids for number in asked]


def _of_lines(path):
    def ids(tokenizer):
        texts = [" " * (k > 0) + line for k, line in enumerate(_last_part(path))]
        return [
            n for found in tokenizer(texts, add_special_tokens=False)["input_ids"] for n in found
        ]

    return ids


def _of_items(condition, answered):
    def ids(tokenizer):
        items = calibration_items()
        if condition:
            items = items[items["context_condition"] == condition]
        return _questions(tokenizer, items.head(4 * SEQUENCES), answered)

    return ids


_FILES = {"scenes": HELD_OUT_TEXT, "prose": PROSE}
TEXTS = {
    **{name: _of_lines(path) for name, path in _FILES.items()},
    "aligned": _of_items(None, answered=True),
    "ambiguous": _of_items("ambig", answered=False),
}
# In the place of a text's name: made by others, on a text that is not known here.
ELSEWHERE = "elsewhere"


def calibration_ids(tokenizer, text):
    """Token ids of a calibration text, as one run cut into sequences.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    text : str
        One of `TEXTS`.

    Returns
    -------
    numpy array of int, shape (at most `SEQUENCES`, `LENGTH`)
        Fewer where a tokenizer needs few tokens for the text.
    """
    ids = TEXTS[text](tokenizer)
    count = min(SEQUENCES, len(ids) // LENGTH)
    return np.array(ids[: count * LENGTH], np.int32).reshape(count, LENGTH)


def ids_hash(ids):
    """SHA-256 of what a rounding is fitted to, token for token.

    Examples
    --------
    >>> ids_hash(np.zeros((1, 2), np.int32))[:8]
    'af5570f5'
    """
    return hashlib.sha256(np.ascontiguousarray(ids, np.int32).tobytes()).hexdigest()


def parse_calibrated(name, method, bits, groups=(32, 64, 128)):
    """Facts of a precision such as ``q4-gptq-scenes`` or ``q4-g32-gptq-scenes``.

    Parameters
    ----------
    name, method : str
    bits, groups : tuple of int
        Which the method has.

    Returns
    -------
    dict or None

    Examples
    --------
    >>> parse_calibrated("q4-gptq-scenes", "gptq", (4,))
    {'bits': 4, 'group': 64, 'mode': 'affine', 'calibration': 'scenes'}
    >>> parse_calibrated("q3-gptq-scenes", "gptq", (4,)) is None
    True
    """
    match = re.fullmatch(rf"q(\d)(?:-g(\d+))?-{method}-(\w+)", name)
    if match is None:
        return None
    facts = dict(bits=int(match[1]), group=int(match[2] or 64), mode="affine", calibration=match[3])
    known = facts["calibration"] in (*TEXTS, ELSEWHERE)
    return facts if known and facts["bits"] in bits and facts["group"] in groups else None


def names_of(method, bits):
    """The precisions of a calibrated quantizer in words.

    Examples
    --------
    >>> names_of("gptq", (8, 4))
    'q4-gptq-scenes (at 8, 4 bits; scenes, prose, aligned, ambiguous or elsewhere)'
    """
    levels = ", ".join(map(str, bits))
    return f"q4-{method}-scenes (at {levels} bits; {', '.join(TEXTS)} or {ELSEWHERE})"


def calibrated_identity(precision, source, *more):
    """All that decides the result of a calibrated quantizer beside the source's weights.

    Parameters
    ----------
    precision : Precision
    source : Path
        Its tokenizer and chat template make ids of the text.
    more
        The method's own settings.

    Returns
    -------
    list
    """
    import mlx.core as mx
    import mlx_lm

    ids = calibration_ids(_tokenizer(source, precision), precision.calibration)
    return [
        precision.bits,
        precision.group,
        *more,
        ids_hash(ids),
        str(working_type()),
        mx.__version__,
        mlx_lm.__version__,
    ]


def _tokenizer(source, precision):
    from mlx_lm.utils import load_tokenizer

    if precision.calibration == ELSEWHERE:
        raise ValueError(
            f"{source}: {precision.name!r} stands for a checkpoint that others made; to make one here name "
            f"what it is fitted to: {', '.join(TEXTS)}"
        )
    return load_tokenizer(source)._tokenizer


def working_type():
    """Type in which a model runs on the calibration text: fp32 on a CPU, where bf16 is slow."""
    import mlx.core as mx

    return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.bfloat16


def make_calibrated(source, precision, target, fit):
    """Write the checkpoint that a function makes of a source's network and a calibration text.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    fit : callable
        Given the network in bf16 and the ids as an array of MLX, it returns the network that is
        written, its floats of any type, and the modules that are not as the precision's name says,
        each with its bits.
    """
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.utils import save

    with redirect_stdout(sys.stderr):
        network, tokenizer, config = mlx_lm.load(str(source), return_config=True)
        ids = calibration_ids(tokenizer._tokenizer, precision.calibration)
        cast(network, mx.bfloat16)
        network, others = fit(network, mx.array(ids))
        cast(network, mx.bfloat16)
        settings = settings_of(precision)
        for path, bits in others.items():
            settings[path] = {**settings_of(precision), "bits": bits}
        config["quantization"] = config["quantization_config"] = settings
        save(target, source, network, tokenizer, config)


def settings_of(precision):
    """What mlx-lm is told of a precision.

    Examples
    --------
    >>> from cba_utils.answering.precisions import parse_precision
    >>> settings_of(parse_precision("q4"))
    {'group_size': 64, 'bits': 4, 'mode': 'affine'}
    """
    return {"group_size": precision.group, "bits": precision.bits, "mode": precision.mode}


def cast(network, kind):
    """Floating parameters to a type, but for those that an architecture keeps as they are."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    own = getattr(network, "cast_predicate", lambda _: True)
    network.update(
        tree_map_with_path(
            lambda path, v: (
                v.astype(kind) if mx.issubdtype(v.dtype, mx.floating) and own(path) else v
            ),
            network.parameters(),
        )
    )
    mx.eval(network.parameters())


def all_alike(network, precision):
    """What a quantizer gives each module if all get the same, by path.

    Of a checkpoint that others made, embedding and head are taken as they are: mlx-lm's own
    commands give them bits of their own.

    Parameters
    ----------
    network : mlx.nn.Module
    precision : Precision

    Returns
    -------
    dict of str to tuple
    """
    plain = (precision.bits, precision.group, precision.mode)
    return {
        path: held(module) if precision.calibration == ELSEWHERE and _is_end(path) else plain
        for path, module in roundable(network)
    }


def _is_end(path):
    return path.split(".")[-1] in ("embed_tokens", "lm_head")


def held(module):
    """Bits, group and mode of a module; None for one that is not rounded."""
    return (module.bits, module.group_size, module.mode) if hasattr(module, "bits") else None
