"""Names of precisions: what MLX is asked for, the bits a weight takes, and their order."""

import re

BITS = (8, 6, 5, 4, 3, 2)
_GROUPS = (32, 64, 128)
_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_PRECISION = re.compile(r"(?:q(?P<bits>\d)|(?P<mode>mxfp4|mxfp8|nvfp4))(?:-g(?P<group>\d+))?")


def parse_precision(precision):
    """Quantization parameters of a precision's name.

    Parameters
    ----------
    precision : str
        ``"bf16"``; ``"q8"`` to ``"q2"`` (affine, group 64); ``"q4-g32"`` for another group size;
        ``"mxfp4-g32"``, ``"mxfp8-g32"`` or ``"nvfp4-g16"``.

    Returns
    -------
    dict or None
        ``bits``, ``group_size`` and ``mode``; ``None`` for bf16.

    Raises
    ------
    ValueError
        If MLX has no such precision.

    Examples
    --------
    >>> parse_precision("q3")
    {'bits': 3, 'group_size': 64, 'mode': 'affine'}
    >>> parse_precision("bf16") is None
    True
    """
    if precision == "bf16":
        return None
    match = _PRECISION.fullmatch(str(precision))
    if match and match["mode"]:
        bits, group = _MODES[match["mode"]]
        if int(match["group"] or group) == group:
            return {"bits": bits, "group_size": group, "mode": match["mode"]}
    elif match and int(match["bits"]) in BITS and int(match["group"] or 64) in _GROUPS:
        group = int(match["group"] or 64)
        return {"bits": int(match["bits"]), "group_size": group, "mode": "affine"}
    raise ValueError(
        f"precision: {precision!r} is unknown; use bf16, {', '.join(f'q{b}' for b in BITS)} "
        f"(with -g32, -g64 or -g128 for the group size), mxfp4-g32, mxfp8-g32 or nvfp4-g16"
    )


def nominal_bits(precision):
    """Bits in a precision's name, which the published analysis counts by.

    Examples
    --------
    >>> nominal_bits("bf16"), nominal_bits("q4"), nominal_bits("mxfp4-g32")
    (16, 4, 4)
    """
    quantization = parse_precision(precision)
    return quantization["bits"] if quantization else 16


def stored_bits(precision):
    """Bits that a rounded weight takes, its share of its group's scale and offset included.

    An affine group stores both in 16 bits; the other modes store a scale of 8.

    Examples
    --------
    >>> stored_bits("q2"), stored_bits("q2-g32"), stored_bits("mxfp4-g32")
    (2.5, 3.0, 4.25)
    """
    quantization = parse_precision(precision)
    if quantization is None:
        return 16.0
    of_group = 32 if quantization["mode"] == "affine" else 8
    return quantization["bits"] + of_group / quantization["group_size"]


def most_bits_first(precisions):
    """Each precision once, from most to fewest bits.

    Where two take the same, the one with more bits in its name comes first.

    Examples
    --------
    >>> most_bits_first(["q3", "bf16", "q2-g32", "mxfp4-g32", "q3"])
    ['bf16', 'mxfp4-g32', 'q3', 'q2-g32']
    """
    return sorted(set(precisions), key=lambda p: (-stored_bits(p), -nominal_bits(p), p))
