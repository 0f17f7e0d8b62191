"""The files of a checkpoint: which of them are read, and what they say before anything is loaded.

A checkpoint folder holds more than a model: weights of other formats, weights twice, code, pictures.
What is read is listed here, once; a tensor that cannot be told apart from another is an error.
"""

import hashlib
import json
import math
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_config
from safetensors import SafetensorError, safe_open

from cba_utils.answering.sources import INDEX, TOKENIZER_FILES
from cba_utils.names import kind

# Settings that are a number of things, none of which can be none of them.
_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "head_dim",
)
# Those that no architecture that is known here can do without, if its configuration names them.
_NEEDED = (*_COUNTS[:3], "vocab_size", "rms_norm_eps")
_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta")
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
# Safetensors' names of the floating types that a weight may have.
FLOATS = ("BF16", "F16", "F32")


def read_config(folder):
    """Configuration of a checkpoint, that of its generation included, as mlx-lm reads it.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Naming the file and the setting, if it is none that a model could have.
    """
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            _check_settings(folder / name)
    if not isinstance(json.loads((folder / "config.json").read_bytes()).get("model_type"), str):
        raise ValueError(
            f"{folder / 'config.json'}: model_type is missing; it names the architecture"
        )
    return load_config(folder)


def _check_settings(path):
    try:
        settings = json.loads(path.read_bytes(), parse_constant=_not_a_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON that can be read: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds {kind(settings)}, not settings by name")
    for prefix, group in (("", settings), ("text_config.", settings.get("text_config"))):
        for name, value in group.items() if isinstance(group, dict) else ():
            each = value if isinstance(value, list) and value else [value]
            unset = (None,) if name not in _NEEDED else ()
            if name in _COUNTS and not all(v in unset or _is_count(v) for v in each):
                raise ValueError(
                    f"{path}: {prefix}{name} is {value!r}; it must be a whole number above 0"
                )
            if name in _NUMBERS and not all(v in unset or _is_number(v) for v in each):
                raise ValueError(f"{path}: {prefix}{name} is {value!r}; it must be a number")
            if name.startswith("quantization") and not isinstance(value, dict | None):
                raise ValueError(
                    f"{path}: {prefix}{name} is {kind(value)}; it must be keys with values"
                )
            if name == "eos_token_id" and not all(_is_token(v, settings) for v in each):
                raise ValueError(
                    f"{path}: {prefix}{name} is {value!r}; it must be a token's number, or a list of such"
                )


def _not_a_number(text):
    if text == "NaN":
        raise ValueError("a setting is NaN")
    return float(text)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value):
    return _is_number(value) and value == int(value) and value > 0


def _is_token(value, settings):
    if value is None:
        return True
    known = settings.get("vocab_size")
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return whole and (not isinstance(known, int) or value < known)


def weight_files(folder):
    """The weight files of a checkpoint: those that its index names, else ``model*.safetensors``.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Path

    Raises
    ------
    FileNotFoundError
        If one that the index names, or all of them, are not there.
    ValueError
        If the index is none.

    Examples
    --------
    >>> from cba_utils.names import ORGANISMS
    >>> [file.name for file in weight_files(ORGANISMS / "toy-mistral" / "b1")]
    ['model.safetensors']
    """
    index = folder / INDEX
    if index.exists():
        try:
            named = json.loads(index.read_bytes())["weight_map"].values()
            names = sorted({str(name) for name in named})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{index}: has no weight_map that names a file for each tensor"
            ) from None
        if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ValueError(f"{index}: names a file that is no *.safetensors of this folder")
        where, missing = index, [name for name in names if not (folder / name).is_file()]
    else:
        where, names = folder, sorted(file.name for file in folder.glob("model*.safetensors"))
        missing = [name for name in _all_shards(names) if name not in names]
    if missing:
        raise FileNotFoundError(
            f"{where}: weight file {missing[0]} is not there ({len(missing)} are "
            f"missing); fetch it again"
        )
    if not names:
        raise FileNotFoundError(
            f"{folder}: no model*.safetensors; other formats can run code and are not read"
        )
    return [folder / name for name in names]


def _all_shards(names):
    """Names of all parts of which the names are some, where they are said to be parts."""
    for match in filter(None, map(_SHARD.fullmatch, names)):
        first, count = match.groups()
        yield from (
            f"model-{number:0{len(first)}}-of-{count}.safetensors"
            for number in range(1, min(int(count), 10_000) + 1)
        )


def tensor_types(folder):
    """Type of every tensor of a checkpoint, by the headers of its weight files.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict of str to str
        Safetensors' names of types, such as ``"BF16"``.

    Raises
    ------
    ValueError
        If a file is cut, or a tensor is in two of them.
    """
    types, places = {}, {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as tensors:
                found = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(
                f"{file}: not a whole safetensors file ({error}); fetch it again"
            ) from error
        twice = sorted(found.keys() & types.keys())
        if twice:
            raise ValueError(
                f"{file}: tensor {twice[0]!r} is in {places[twice[0]].name} as well; remove "
                f"the file that is not the model's"
            )
        types |= found
        places |= dict.fromkeys(found, file)
    return types


def check_weights(folder):
    """Raise a `ValueError` that names the file and tensor if weights are truncated or not finite.

    Parameters
    ----------
    folder : Path
    """
    tensor_types(folder)
    for file in weight_files(folder):
        for name, tensor in mx.load(str(file)).items():
            if mx.issubdtype(tensor.dtype, mx.floating) and not mx.isfinite(tensor).all().item():
                raise ValueError(
                    f"{file}: tensor {name!r} holds values that are not finite; fetch "
                    f"or make it again"
                )


def check_layers(folder, config, types):
    """Raise a `ValueError` if there are fewer tensors than layers: building the rest could take for ever.

    Parameters
    ----------
    folder, config, types
        As in `foreign_format`.
    """
    for settings in (config, config.get("text_config")):
        layers = settings.get("num_hidden_layers") if isinstance(settings, dict) else None
        if isinstance(layers, int) and layers > len(types):
            raise ValueError(
                f"{folder / 'config.json'}: num_hidden_layers is {layers:,}, and the weight "
                f"files hold {len(types):,} tensors in all"
            )


def foreign_format(folder, config, types):
    """How weights were made smaller by other tools than ``mlx_lm.convert``, in words.

    Parameters
    ----------
    folder : Path
    config : dict
    types : dict of str to str
        From `tensor_types`.

    Returns
    -------
    str or None
        None where nothing says so.
    """
    if (folder / "hf_quant_config.json").exists():
        return "hf_quant_config.json says that they were quantized by ModelOpt"
    if config.get("quantize_activations"):
        return "config.json asks for activations that are quantized as well"
    for settings in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = settings.get(key) if isinstance(settings, dict) else None
            # mlx_lm.convert writes its own settings a second time under this key.
            if found and found != config.get("quantization"):
                return f"config.json says that they were quantized by {_method(found)}"
    eighths = sorted(name for name, kind in types.items() if kind.startswith("F8"))
    if eighths:
        return f"they are FP8 ({types[eighths[0]]}, {eighths[0]} and {len(eighths) - 1} more)"
    return None


def _method(settings):
    if not isinstance(settings, dict):
        return f"{settings!r}"
    names = ("quant_method", "quant_algo", "format", "bits", "group_size")
    said = [f"{name} {settings[name]}" for name in names if settings.get(name) is not None]
    return ", ".join(said) or "a method without a name"


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
    return hash_files([folder / "config.json", *weight_files(folder)])


def tokenizer_hash(folder):
    """SHA-256 over the tokenizer's files, chat templates included.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str
    """
    return hash_files(_present(folder, TOKENIZER_FILES))


def generation_hash(folder):
    """SHA-256 over the generation configuration, which can name ends of text.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str
    """
    return hash_files(_present(folder, ["generation_config.json"]))


def _present(folder, patterns):
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def hash_files(paths):
    """SHA-256 over the names and contents of files.

    Parameters
    ----------
    paths : iterable of Path

    Returns
    -------
    str
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def only_what_is_read(weights, words):
    """A folder with the weights of one checkpoint and all else of another, and nothing beside.

    mlx-lm reads every ``model*.safetensors`` and, from a quantized copy, a tokenizer that was written
    anew: here it finds what belongs to the model.

    Parameters
    ----------
    weights, words : Path
        Folders of checkpoints; the same where nothing was quantized.

    Yields
    ------
    Path
        Gone afterwards.
    """
    with tempfile.TemporaryDirectory() as scratch:
        view = Path(scratch) / "model"
        view.mkdir()
        for path in _present(words, ["generation_config.json", *TOKENIZER_FILES]):
            target = view / path.relative_to(words)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(path.resolve())
        for number, path in enumerate(weight_files(weights)):
            (view / f"model-{number:05}.safetensors").symlink_to(path.resolve())
        config = json.loads((words / "config.json").read_bytes())
        rounded = json.loads((weights / "config.json").read_bytes()).get("quantization")
        if rounded is not None:
            config |= {"quantization": rounded, "quantization_config": rounded}
        (view / "config.json").write_text(json.dumps(config))
        yield view
