"""Rounding to nearest at 8 to 2 bits with the embedding kept at more: ``q4-e8``, ``q4-e16``.

An embedding that is used as the head too decides every letter by itself, and people ship it at more
bits than the layers. Both are named here, the head where a model has one of its own.
"""

import re

from cba_utils.answering.quantizers import affine, roundable
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


# Bits a weight of the layers takes; what the embedding takes on top depends on the model.
stored_bits, identity = affine.stored_bits, affine.named_identity


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    affine.convert(
        source, precision, target, quant_predicate=lambda path, _: _choice(path, precision)
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
    for path, _ in roundable(network):
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
