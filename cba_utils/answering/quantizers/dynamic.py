"""Mixed bits by mlx-lm's sensitivities: the modules that the text says matter most get two bits more.

``q4-dynamic-scenes`` has modules at 3 and at 5 bits, chosen by mlx-lm's ``dynamic_quant`` so that the whole
takes as many bits a weight as ``q4``: two recipes of one size.
"""

from cba_utils.answering import calibration
from cba_utils.answering.quantizers import affine, roundable

_BITS = (5, 4, 3)
NAMES = calibration.names_of("dynamic", _BITS)
_BATCH = 4  # sequences in a gradient, as mlx-lm's command has it


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("q4-dynamic-prose")["bits"], parse("q2-dynamic-prose") is None
    (4, True)
    """
    return calibration.parse_calibrated(name, "dynamic", _BITS)


# On average, over modules of more and of fewer bits.
stored_bits = affine.stored_bits


def identity(precision, source):
    """All that decides the result beside the source's weights."""
    return calibration.calibrated_identity(precision, source, *_levels(precision), _BATCH)


def _levels(precision):
    low = {5: 4, 4: 3, 3: 2}[precision.bits]
    return low, low + 2


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    calibration.make_calibrated(
        source, precision, target, lambda network, ids: rounded(network, precision, ids)
    )


def rounded(network, precision, ids):
    """A network rounded by its sensitivities, and the bits of each module.

    Parameters
    ----------
    network : mlx.nn.Module
        In bf16.
    precision : Precision
    ids : mx.array, shape (sequences, tokens)

    Returns
    -------
    network : mlx.nn.Module
    bits : dict of str to int
        By the module's path.
    """
    import copy

    from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
    from mlx_lm.utils import quantize_model

    low, high = _levels(precision)
    group = precision.group
    fine = copy.deepcopy(network)
    calibration.cast(fine, calibration.working_type())
    found = dict(estimate_sensitivities(fine, ids, low, group, high, group, batch_size=_BATCH))
    threshold = estimate_threshold(network, found, stored_bits(precision), low, group, high, group)
    bits = {path: high if value > threshold else low for path, value in found.items()}
    network, _ = quantize_model(
        network,
        {},
        group,
        precision.bits,
        quant_predicate=lambda path, _: {"group_size": group, "bits": bits[path]},
    )
    return network, bits


def expected(network, precision):
    """What `make` may give each module that can be rounded, by path.

    Which module gets which bits is what the text decides: a module that has either is as expected.

    Parameters
    ----------
    network : mlx.nn.Module
    precision : Precision

    Returns
    -------
    dict of str to tuple
    """
    allowed = [(bits, precision.group, precision.mode) for bits in _levels(precision)]
    elsewhere = precision.calibration == calibration.ELSEWHERE
    return {
        path: found if (found := calibration.held(module)) in allowed or elsewhere else allowed[0]
        for path, module in roundable(network)
    }
