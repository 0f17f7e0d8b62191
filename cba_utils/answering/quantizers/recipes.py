"""mlx-lm's mixed recipes, rounding to nearest with more bits for some layers: ``mixed-3-6`` and the like.

The first number is the bits of most modules, the second those of the head and, in the first and last
layers and every third between, of the value and down projections.
"""

import re
import sys
from contextlib import redirect_stdout

NAMES = "mixed-2-6, mixed-3-4, mixed-3-6 or mixed-4-6 (mlx_lm.convert's recipes)"
_NAME = re.compile(r"mixed-(?P<bits>2|3|4)-(?P<more>4|6)")
_GROUP = 64


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("mixed-3-6")["bits"], parse("mixed-2-4") is None
    (3, True)
    """
    match = _NAME.fullmatch(name)
    if match is None or (match["more"] == "4" and match["bits"] != "3"):
        return None
    return dict(bits=int(match["bits"]), group=_GROUP, mode="affine", calibration=None)


def stored_bits(precision):
    """Bits a weight of most modules takes; what it is on average depends on the model."""
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
            quant_predicate=precision.name.replace("-", "_"),
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
    dict of str to tuple
        Bits, group and mode by the module's path.
    """
    from mlx_lm.convert import mixed_quant_predicate_builder

    choice = mixed_quant_predicate_builder(
        precision.name.replace("-", "_"), network, precision.group
    )
    return {
        path: (choice(path, module)["bits"], precision.group, "affine")
        for path, module in network.named_modules()
        if hasattr(module, "to_quantized") or hasattr(module, "bits")
    }
