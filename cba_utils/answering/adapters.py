"""Adapters of mlx-lm's form, fused into their base at full precision before anything is quantized.

A fused checkpoint is kept in the cache under a hash of both, and is from there on a checkpoint like any
other: its weights are those that ``mlx_lm.fuse`` writes, in the base's own floating type.
"""

import hashlib
import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_unflatten

from cba_utils.answering.cache import cache_folder, made_once
from cba_utils.answering.checkpoint_files import (
    hash_files,
    only_what_is_read,
    tokenizer_hash,
    weights_hash,
)
from cba_utils.answering.sources import ADAPTER_FILES, adapter_folder, local_folder

# What mlx-lm trains and can fuse without a trace of how it was trained. A fused DoRA is rounded after a
# division by its norms, which no test here covers.
KINDS = ("lora", "full")


def find_adapter(adapter):
    """Folder of an adapter.

    Parameters
    ----------
    adapter : str or Path
        A folder as mlx-lm writes it, or the name of one of this project's.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    folder = adapter_folder(adapter)
    if folder is None:
        raise FileNotFoundError(
            f"adapter: {str(adapter)!r} is no folder with {' and '.join(ADAPTER_FILES)}, which is the form "
            f"that mlx_lm.lora writes"
        )
    return folder.resolve()


def adapter_hash(folder):
    """SHA-256 over the configuration and the weights of an adapter.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str
    """
    return hash_files([folder / name for name in ADAPTER_FILES])


def fused_checkpoint(name, base, adapter):
    """Folder of a checkpoint that is the base with the adapter fused into it, made once.

    Parameters
    ----------
    name : str
        How the base was asked for.
    base, adapter : Path
        Folders.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the adapter is of a kind that is not fused here, or another model's, or the base is quantized.
    """
    _check(name, base, adapter)
    identity = [weights_hash(base), tokenizer_hash(base), adapter_hash(adapter), mlx_lm.__version__]
    target = cache_folder("fused") / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    if target.exists():
        return target
    with made_once(target) as made, only_what_is_read(base, base) as view:
        network = _fused(view, base, adapter)
        mlx_lm.utils.save_model(made, network)
        for file in view.iterdir():
            if file.suffix != ".safetensors" and file.is_file():
                shutil.copy(file, made / file.name)
            elif file.is_dir():
                shutil.copytree(file, made / file.name)
    return target


def _fused(view, base, adapter):
    try:
        network, _ = mlx_lm.load(str(view), adapter_path=str(adapter))
    # Whatever mlx-lm raises where names, shapes or settings do not fit.
    except Exception as error:
        said = " ".join(str(error).replace(str(view), str(base)).split())[:300]
        raise ValueError(f"{adapter}: the adapter does not fit {base}: {said}") from error
    network.update_modules(
        tree_unflatten(
            [(name, part.fuse()) for name, part in network.named_modules() if hasattr(part, "fuse")]
        )
    )
    mx.eval(network.parameters())
    return network


def _check(name, base, adapter):
    where = adapter / ADAPTER_FILES[0]
    try:
        settings = json.loads(where.read_bytes())
        kind = settings.get("fine_tune_type", "lora")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}: not the settings of an adapter: {error}") from None
    if "peft_type" in settings:
        raise ValueError(
            f"{where}: an adapter of PEFT; convert it to the form that mlx_lm.lora writes"
        )
    if kind not in KINDS:
        raise ValueError(
            f"{where}: fine_tune_type is {kind!r}; {' and '.join(KINDS)} are fused here, for others name "
            f"the checkpoint that mlx_lm.fuse made"
        )
    if json.loads((base / "config.json").read_bytes()).get("quantization"):
        raise ValueError(
            f"{base}: is quantized, and adapters are fused at full precision; name the checkpoint that it "
            f"was made from"
        )
    file = adapter / ADAPTER_FILES[1]
    try:
        tensors = mx.load(str(file))
    except RuntimeError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from None
    for tensor, values in tensors.items():
        if not mx.isfinite(values).all().item():
            raise ValueError(f"{file}: tensor {tensor!r} holds values that are not finite")
    trained = settings.get("model")
    if isinstance(trained, str) and not _same(trained, name, base):
        raise ValueError(
            f"{where}: the adapter was trained on {trained!r}, and the model is {name!r}; name that base, "
            f"or correct `model` in the file"
        )


def _same(trained, name, base):
    """Whether the base that an adapter names is the one that was asked for."""
    if trained == name or Path(trained).name == base.name:
        return True
    folder = local_folder(trained)
    return folder is not None and weights_hash(folder) == weights_hash(base)
