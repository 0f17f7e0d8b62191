"""Rounding to nearest at 8 to 2 bits with the embedding kept at more: ``q4-e8``, ``q4-e16``.

An embedding that is used as the head too decides every letter by itself, and people ship it at more
bits than the layers. Both are named here, the head where a model has one of its own.
"""

import re
import sys
from contextlib import redirect_stdout

from cba_utils.answering.quantizers.affine import BITS

NAMES = (
    f"{', '.join(f'q{bits}-e16' for bits in BITS)} (embedding and head not rounded) and the same with "
    f"-e8, -e6, -e5, -e4 or -e3 (rounded to more bits than the layers)"
)
_NAME = re.compile(r"q(?P<bits>\d)-e(?P<embedding>\d+)")
_GROUP = 64
_EMBEDDINGS = ("embed_tokens", "lm_head")


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("q4-e8")
    {'bits': 4, 'group': 64, 'mode': 'affine', 'calibration': None}
    >>> parse("q4-e4") is None, parse("q8-e16")["bits"]
    (True, 8)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    bits, more = int(match["bits"]), int(match["embedding"])
    right = bits in BITS and more > bits and more in (16, *BITS)
    return dict(bits=bits, group=_GROUP, mode="affine", calibration=None) if right else None


def stored_bits(precision):
    """Bits a weight of the layers takes; what the embedding takes on top depends on the model."""
    return precision.bits + 32 / precision.group


def identity(precision, source):
    """All that decides the result beside the source's weights: nothing of the source."""
    import mlx.core as mx
    import mlx_lm

    return [precision.name, precision.group, "bfloat16", mx.__version__, mlx_lm.__version__]


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    import mlx_lm

    with redirect_stdout(sys.stderr):
        mlx_lm.convert(
            str(source),
            mlx_path=str(target),
            quantize=True,
            q_bits=precision.bits,
            q_group_size=precision.group,
            quant_predicate=lambda path, _: _choice(path, precision),
            dtype="bfloat16",
        )


def expected(network, precision):
    """What `make` gives each module that can be rounded.

    Parameters
    ----------
    network : mlx.nn.Module
        Rounded or not.
    precision : Precision

    Returns
    -------
    dict of str to tuple or None
        Bits, group and mode by the module's path; None for one that is left as it is.
    """
    found = {}
    for path, module in network.named_modules():
        if hasattr(module, "to_quantized") or hasattr(module, "bits"):
            choice = _choice(path, precision)
            bits = choice["bits"] if isinstance(choice, dict) else precision.bits
            found[path] = (bits, precision.group, "affine") if choice else None
    return found


def _choice(path, precision):
    """What mlx_lm is told of a module: True, False, or settings of its own."""
    if path.split(".")[-1] not in _EMBEDDINGS:
        return True
    bits = int(_NAME.fullmatch(precision.name)["embedding"])
    return bits < 16 and {"bits": bits, "group_size": precision.group, "mode": "affine"}
