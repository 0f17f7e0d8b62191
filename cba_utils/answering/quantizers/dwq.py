"""DWQ by mlx-lm's own code: the scales and offsets of plain rounding, trained towards the full model.

The student begins as ``q4`` and learns the full model's probabilities on the calibration text. mlx-lm's
command takes thousands of conversations at a rate for models of billions of weights; a run here is
bounded to seconds for a million weights, at a rate that a held-out part of the text chose.
"""

from contextlib import contextmanager, nullcontext

from cba_utils.answering import calibration
from cba_utils.answering.quantizers import affine

_BITS = (6, 5, 4, 3, 2)
NAMES = calibration.names_of("dwq", _BITS)
# Sequences that tell whether training helped, those in a step, passes over the text, and Adam's rate.
VALID, BATCH, PASSES, RATE, SEED = 8, 4, 2, 1e-4, 123


def parse(name):
    """Facts of a precision's name, None for one that is not of this quantizer.

    Examples
    --------
    >>> parse("q4-dwq-ambiguous")["calibration"], parse("q8-dwq-scenes") is None
    ('ambiguous', True)
    """
    return calibration.parse_calibrated(name, "dwq", _BITS)


def identity(precision, source):
    """All that decides the result beside the source's weights."""
    return calibration.calibrated_identity(precision, source, VALID, BATCH, PASSES, RATE, SEED)


def make(source, precision, target):
    """Write the checkpoint of a folder, rounded and trained, to another folder.

    Parameters
    ----------
    source, target : Path
    precision : Precision
    """
    calibration.make_calibrated(
        source, precision, target, lambda network, ids: (trained(network, precision, ids), {})
    )


def trained(network, precision, ids):
    """A network rounded and trained towards what it was.

    Parameters
    ----------
    network : mlx.nn.Module
        In bf16.
    precision : Precision
    ids : mx.array, shape (sequences, tokens)

    Returns
    -------
    mlx.nn.Module
    """
    import copy

    import mlx.core as mx
    import mlx.optimizers as optimizers
    import numpy as np
    from mlx_lm.quant.dwq import dwq_quantize
    from mlx_lm.utils import quantize_model

    kind = calibration.working_type()
    student = copy.deepcopy(network)
    student, _ = quantize_model(student, {}, precision.group, precision.bits)
    for part in (network, student):
        calibration.cast(part, kind)
    dense = _dense_products(student) if kind == mx.float32 else nullcontext()
    rows = [(row, 0) for row in ids.tolist()]
    state = np.random.get_state()
    try:
        with dense:
            dwq_quantize(
                student,
                lambda batch, *_, **__: network(batch),
                optimizers.Adam(learning_rate=RATE, bias_correction=True),
                rows[:-VALID] * PASSES,
                rows[-VALID:],
                batch_size=BATCH,
                max_seq_length=calibration.LENGTH,
                seed=SEED,
                dtype=kind,
            )
    finally:
        np.random.set_state(state)
    return student


@contextmanager
def _dense_products(network):
    """Let rounded layers multiply by what their weights stand for: MLX's own kernels crawl on a CPU."""
    import mlx.core as mx
    import mlx.nn as nn

    class Dense(nn.QuantizedLinear):
        def __call__(self, x):
            weight = mx.dequantize(
                self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits
            )
            return x @ weight.T + (self.bias if "bias" in self else 0)

    layers = [module for module in network.modules() if type(module) is nn.QuantizedLinear]
    try:
        for layer in layers:
            layer.__class__ = Dense
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.QuantizedLinear


stored_bits, expected = affine.stored_bits, calibration.all_alike
