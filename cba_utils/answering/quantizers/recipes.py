"""mlx-lm's mixed recipes, rounding to nearest with more bits for some layers: ``mixed-3-6`` and the like.

The first number is the bits of most modules, the second those of the head and, in the first and last
layers and every third between, of the value and down projections.
"""

import re

from cba_utils.answering.quantizers import affine, roundable

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


# Bits a weight of most modules takes; what it is on average depends on the model.
stored_bits, identity = affine.stored_bits, affine.named_identity


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    affine.convert(source, precision, target, quant_predicate=precision.name.replace("-", "_"))


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
        for path, module in roundable(network)
    }
