"""What a precision's name stands for: how weights are rounded, the bits one takes, the order.

A precision is known by its name in study files, folders and tables. Which names there are is said by
the quantizers (``quantizers/``, one file each); ``bf16``, which rounds nothing, is said here, and so is
what ``-kv8`` or ``-kv4`` at the end of any name means: weights as the name before it says, and the keys
and values that a prompt leaves behind rounded to 8 or 4 bits.
"""

import re
from dataclasses import dataclass, replace

from cba_utils.answering.quantizers import quantizers

_CACHE = re.compile(r"(.+)-kv([84])")


@dataclass(frozen=True)
class Precision:
    """What a precision's name stands for.

    Attributes
    ----------
    name : str
        As study files, folders and tables have it.
    bits : int
        Bits in the name, by which the published analysis counts.
    group : int or None
        Weights that share a scale; None where nothing is rounded.
    mode : str or None
        MLX's name of the kind of rounding.
    method : str or None
        Name of the quantizer in ``quantizers/`` that makes it; None for ``bf16``.
    calibration : str or None
        What the rounding was fitted to; None for rounding to nearest, which looks at weights alone.
    cache_bits : int or None
        Bits of a number in the cache of keys and values; None where it is not rounded.

    Examples
    --------
    >>> parse_precision("q2-g32").group, parse_precision("bf16").method
    (32, None)
    >>> parse_precision("q4-kv8").weights == parse_precision("q4")
    True
    """

    name: str
    bits: int = 16
    group: int | None = None
    mode: str | None = None
    method: str | None = None
    calibration: str | None = None
    cache_bits: int | None = None

    @property
    def weights(self):
        """The same without what is done to the cache: what a checkpoint can be."""
        if self.cache_bits is None:
            return self
        return replace(self, name=_CACHE.fullmatch(self.name)[1], cache_bits=None)

    @property
    def stored_bits(self):
        """Bits that a weight takes, its share of what its group stores included."""
        return float(quantizers()[self.method].stored_bits(self)) if self.method else 16.0

    @property
    def rank(self):
        """What precisions are sorted by: most bits first, then most in the name."""
        return -self.stored_bits, -self.bits, -(self.cache_bits or 16), self.name

    def __str__(self):
        words = "not quantized"
        if self.method:
            words = f"{self.bits} bits, group {self.group}, {self.mode}"
        if self.calibration:
            words += f", {self.method} fitted to {self.calibration}"
        return words + (f", cache in {self.cache_bits} bits" if self.cache_bits else "")


def parse_precision(name):
    """What a precision's name stands for.

    Parameters
    ----------
    name : str
        ``"bf16"``; ``"q8"`` to ``"q2"`` (affine, group 64); ``"q4-g32"`` for another group size;
        ``"mxfp4-g32"``, ``"mxfp8-g32"`` or ``"nvfp4-g16"``; ``"q4-e8"`` for an embedding kept at more
        bits; ``"q4-gptq-scenes"`` and the like for what was fitted to a text; any of them with
        ``-kv8`` or ``-kv4`` for a cache of so many bits.

    Returns
    -------
    Precision

    Raises
    ------
    ValueError
        If no quantizer has such a precision.

    Examples
    --------
    >>> precision = parse_precision("q3")
    >>> precision.bits, precision.group, precision.mode, str(precision)
    (3, 64, 'affine', '3 bits, group 64, affine')
    >>> str(parse_precision("bf16"))
    'not quantized'
    """
    cached = _CACHE.fullmatch(str(name))
    if cached:
        return replace(parse_precision(cached[1]), name=name, cache_bits=int(cached[2]))
    if name == "bf16":
        return Precision("bf16")
    for method, quantizer in quantizers().items():
        facts = quantizer.parse(str(name))
        if facts:
            return Precision(name, method=method, **facts)
    names = "; ".join(quantizer.NAMES for quantizer in quantizers().values())
    raise ValueError(
        f"precision: {name!r} is unknown; use bf16, {names}; any of them with -kv8 or -kv4"
    )


def nominal_bits(name):
    """Bits in a precision's name, which the published analysis counts by.

    Examples
    --------
    >>> nominal_bits("bf16"), nominal_bits("q4"), nominal_bits("mxfp4-g32")
    (16, 4, 4)
    """
    return parse_precision(name).bits


def stored_bits(name):
    """Bits that a rounded weight takes, its share of its group's scale and offset included.

    Examples
    --------
    >>> stored_bits("q2"), stored_bits("q2-g32"), stored_bits("mxfp4-g32")
    (2.5, 3.0, 4.25)
    """
    return parse_precision(name).stored_bits


def most_bits_first(names):
    """Each precision once, from most to fewest bits.

    Where two take the same, the one with more bits in its name comes first.

    Examples
    --------
    >>> most_bits_first(["q3", "bf16", "q2-g32", "mxfp4-g32", "q3"])
    ['bf16', 'mxfp4-g32', 'q3', 'q2-g32']
    """
    return sorted(set(names), key=lambda name: parse_precision(name).rank)
