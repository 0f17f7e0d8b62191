"""AWQ by mlx-lm's own code: channels that the text makes large are scaled up before they are rounded.

mlx-lm has to be told where an architecture's scales can be hidden, and knows few: an architecture that
it does not know is refused by name. Embedding and head are rounded at the same bits and group as the
layers, so that ``q4-awq-scenes`` takes the bits that ``q4`` takes.
"""

from cba_utils.answering import calibration
from cba_utils.answering.quantizers import affine

_BITS = (8, 6, 5, 4, 3, 2)
NAMES = calibration.names_of("awq", _BITS)
# Scales tried a layer, as mlx-lm's command has it, and sequences of the text that they are tried on.
_GRID, _READ = 20, 16


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("q3-g32-awq-aligned")["group"], parse("q3-awq") is None
    (32, True)
    """
    return calibration.parse_calibrated(name, "awq", _BITS)


def identity(precision, source):
    """All that decides the result beside the source's weights."""
    return calibration.calibrated_identity(precision, source, _GRID, _READ)


def families():
    """Architectures that mlx-lm's AWQ knows.

    Examples
    --------
    >>> "mistral" in families(), "phi3" in families()
    (True, False)
    """
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS

    return sorted(AWQ_MODEL_CONFIGS)


def make(source, precision, target):
    """Write the rounded checkpoint of a folder to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision

    Raises
    ------
    ValueError
        For an architecture that mlx-lm's AWQ does not know, naming those that it knows.
    """
    import mlx_lm
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize
    from mlx_lm.utils import load_config

    kind = load_config(source)["model_type"]
    if kind not in AWQ_MODEL_CONFIGS:
        raise ValueError(
            f"precision: {precision.name!r} needs an architecture that AWQ of mlx_lm {mlx_lm.__version__} "
            f"knows ({', '.join(families())}), and this is {kind!r}; gptq, dwq and dynamic take any"
        )

    def fit(network, ids):
        calibration.cast(network, calibration.working_type())
        awq_quantize(
            network,
            ids[:_READ],
            AWQ_MODEL_CONFIGS[kind],
            group_size=precision.group,
            bits=precision.bits,
            embed_group_size=precision.group,
            embed_bits=precision.bits,
            n_grid=_GRID,
        )
        return network, {}

    calibration.make_calibrated(source, precision, target, fit)


stored_bits, expected = affine.stored_bits, calibration.all_alike
