"""GPTQ by mlx-lm's own code: each column's rounding error is passed on to the columns not yet rounded.

Linear layers are rounded so, at 8, 4 or 2 bits, which are those that mlx-lm packs. The embedding, which
mlx-lm's command keeps at 6 bits, is rounded to nearest at the same bits as the layers here, so that
``q4-gptq-scenes`` takes the bits that ``q4`` takes and only the method differs.
"""

from cba_utils.answering import calibration
from cba_utils.answering.quantizers import affine

_BITS = (8, 4, 2)
NAMES = calibration.names_of("gptq", _BITS)


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("q4-gptq-scenes")["calibration"], parse("q3-gptq-scenes") is None
    ('scenes', True)
    """
    return calibration.parse_calibrated(name, "gptq", _BITS)


def identity(precision, source):
    """All that decides the result beside the source's weights."""
    return calibration.calibrated_identity(precision, source)


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    from mlx_lm.quant.gptq import gptq_quantize

    def fit(network, ids):
        calibration.cast(network, calibration.working_type())
        bits, group = precision.bits, precision.group
        return gptq_quantize(network, ids, bits, group, bits, group)[0], {}

    calibration.make_calibrated(source, precision, target, fit)


stored_bits, expected = affine.stored_bits, calibration.all_alike
