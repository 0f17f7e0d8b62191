"""Ways to make a checkpoint smaller, one module each; a module put here is found by its name.

A quantizer has

- ``NAMES``: its precisions, in words, for messages;
- ``parse(name)``: the facts of a `cba_utils.answering.precisions.Precision` (``bits``, ``group``,
  ``mode``, ``calibration``) as a dict, None for a name that is not its own;
- ``stored_bits(precision)``: bits a weight takes;
- ``identity(precision, source)``: all that decides its result beside the weights in the source's
  folder, as plain values (a calibrated one reads the text with the source's tokenizer);
- ``make(source, precision, target)``: write the checkpoint of a folder to another folder;
- ``expected(network, precision)``: what `make` gives each module of a network, by its path.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules


def roundable(network):
    """Modules of a network that are rounded or can be.

    Parameters
    ----------
    network : mlx.nn.Module

    Yields
    ------
    path : str
    module : mlx.nn.Module

    Examples
    --------
    >>> import mlx.nn as nn
    >>> [path for path, _ in roundable(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))]
    ['layers.0']
    """
    for path, module in network.named_modules():
        if hasattr(module, "to_quantized") or hasattr(module, "bits"):
            yield path, module


@cache
def quantizers():
    """Every quantizer by its name.

    Returns
    -------
    dict of str to module

    Examples
    --------
    >>> list(quantizers())
    ['affine', 'awq', 'dwq', 'dynamic', 'gptq', 'mixed', 'recipes']
    """
    return {
        found.name: import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)
    }
