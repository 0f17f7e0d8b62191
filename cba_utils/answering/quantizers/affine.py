"""Rounding to nearest by ``mlx_lm.convert``: affine at 8 to 2 bits, and MLX's mx and nv formats.

Every precision of a study's grid is made here unless its name says otherwise. MLX is imported where
it is needed: reading tables needs the names alone.
"""

import re
import sys
from contextlib import redirect_stdout

from cba_utils.answering.quantizers import roundable

BITS = (8, 6, 5, 4, 3, 2)
NAMES = (
    f"{', '.join(f'q{bits}' for bits in BITS)} (with -g32, -g64 or -g128 for the group size), "
    f"mxfp4-g32, mxfp8-g32 or nvfp4-g16"
)
_GROUPS = (32, 64, 128)
_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_NAME = re.compile(r"(?:q(?P<bits>\d)|(?P<mode>mxfp4|mxfp8|nvfp4))(?:-g(?P<group>\d+))?")


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("q4-g32")
    {'bits': 4, 'group': 32, 'mode': 'affine', 'calibration': None}
    >>> parse("q7") is None, parse("mxfp4-g64") is None
    (True, True)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["mode"]:
        (bits, group), mode = _MODES[match["mode"]], match["mode"]
        right = int(match["group"] or group) == group
    else:
        bits, group, mode = int(match["bits"]), int(match["group"] or 64), "affine"
        right = bits in BITS and group in _GROUPS
    return dict(bits=bits, group=group, mode=mode, calibration=None) if right else None


def stored_bits(precision):
    """Bits a weight takes: an affine group stores a scale and an offset in 16, others a scale in 8."""
    return precision.bits + (32 if precision.mode == "affine" else 8) / precision.group


def identity(precision, source):
    """All that decides the result beside the source's weights: nothing of the source."""
    import mlx.core as mx
    import mlx_lm

    return [
        precision.bits,
        precision.group,
        precision.mode,
        "bfloat16",
        mx.__version__,
        mlx_lm.__version__,
    ]


def named_identity(precision, source):
    """The same for a precision whose settings are all in its name."""
    import mlx.core as mx
    import mlx_lm

    return [precision.name, precision.group, "bfloat16", mx.__version__, mlx_lm.__version__]


def convert(source, precision, target, **more):
    """Round a folder's checkpoint into another folder by mlx-lm's own call, which prints to stderr.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    **more
        What ``mlx_lm.convert`` is told beside bits and group.
    """
    import mlx_lm

    with redirect_stdout(sys.stderr):
        mlx_lm.convert(
            str(source),
            mlx_path=str(target),
            quantize=True,
            q_bits=precision.bits,
            q_group_size=precision.group,
            dtype="bfloat16",
            **more,
        )


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Weights that are not bf16 are rounded to bf16 first, so that every source gives what its bf16
    copy gives.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    convert(source, precision, target, q_mode=precision.mode)


def expected(network, precision):
    """What `make` gives each module that can be rounded.

    Architectures may keep some at other bits (the gate of a mixture of experts, say): that is then
    what plain rounding by ``mlx_lm.convert`` means for them.

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
    own = getattr(network, "quant_predicate", None)
    found = {}
    for path, module in roundable(network):
        choice = own(path, module) if own else True
        plain = (precision.bits, precision.group, precision.mode)
        if isinstance(choice, dict):
            choice = (choice["bits"], choice["group_size"], choice.get("mode", "affine"))
        found[path] = plain if choice is True else choice or None
    return found
