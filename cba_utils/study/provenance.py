"""Where a cell's numbers come from: what decides them, and what they were made with."""

import hashlib
import platform
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np

from cba_utils import answering
from cba_utils.names import HELD_OUT_TEXT, PROJECT
from cba_utils.study.files import read_json
from cba_utils.study.states import reference_identity

SCHEMA_VERSION = 1
_PACKAGES = ("mlx", "mlx-lm", "transformers", "tokenizers", "numpy", "pandas", "pyarrow")


def cell_identity(parameters, items, loaded):
    """All that decides a cell's answers, as hashes and names.

    Parameters
    ----------
    parameters : dict
    items : DataFrame
    loaded : LoadedModel

    Returns
    -------
    dict
    """
    from cba_utils.answering.adapters import adapter_hash
    from cba_utils.answering.checkpoint_files import (
        generation_hash,
        tokenizer_hash,
        weights_hash,
    )
    from cba_utils.answering.sources import at_precision, find_checkpoint

    tokenizer = loaded.hf_tokenizer
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return {
        "parameters": parameters,
        "compute": loaded.compute,
        "items_sha256": items_hash(items),
        "text_sha256": _text_hash(parameters["text"]),
        "weights_sha256": weights_hash(loaded.source_path),
        **({"adapter_sha256": adapter_hash(loaded.adapter_path)} if loaded.adapter_path else {}),
        "tokenizer_sha256": tokenizer_hash(loaded.source_path),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "prompts_sha256": _prompts_hash(tokenizer, items, parameters),
        "generation_sha256": generation_hash(loaded.source_path),
        "ends": sorted(loaded.tokenizer.eos_token_ids),
        "reference": reference_identity(
            parameters, lambda name: find_checkpoint(at_precision(parameters["model"], name))
        ),
        **({"calibration_sha256": loaded.calibration_sha256} if loaded.calibration_sha256 else {}),
        "code_sha256": _code_hash(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def items_hash(items):
    """Hash of items, word for word.

    Parameters
    ----------
    items : DataFrame

    Returns
    -------
    str
    """
    return hashlib.sha256(items.to_json(orient="records").encode()).hexdigest()


def _prompts_hash(tokenizer, items, parameters):
    """Hash of what is asked, token for token, in the first order; other orders move the answers only."""
    from cba_utils.answering.prompts import chat_ids, user_text

    prompt = parameters["prompt"]
    texts = [user_text(item, prompt=prompt) for item in items.to_dict("records")]
    digest = hashlib.sha256()
    for ids in chat_ids(tokenizer, texts, prompt, parameters["date"])[0]:
        digest.update(np.array([len(ids), *ids], np.int64).tobytes())
    return digest.hexdigest()


def _text_hash(source):
    """Hash of the text that perplexity is measured on; a hub data set is known by its id."""
    path = HELD_OUT_TEXT if source == "bundled" else Path(source)
    content = path.read_bytes() if path.is_file() else source.encode()
    return hashlib.sha256(content).hexdigest()


def _code_hash():
    digest = hashlib.sha256()
    for path in sorted(Path(answering.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _folded(loaded, parameters):
    from cba_utils.answering.prompts import chat_ids

    return chat_ids(loaded.hf_tokenizer, ["?"], parameters["prompt"], parameters["date"])[1]


def surroundings():
    """Code, machine and device of a run.

    Returns
    -------
    dict
    """
    import mlx.core as mx

    from cba_utils import BLAS

    return {
        **code_version(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": str(mx.default_device()),
        "blas": BLAS,
    }


def cell_line(folder):
    """Where the numbers of one cell come from, in a line for the foot of its page.

    Parameters
    ----------
    folder : str or Path
        The cell's records.

    Returns
    -------
    str
    """
    known = read_json(Path(folder) / "provenance.json")
    identity = known["identity"]
    asked = identity["parameters"]
    code = (
        f"code of commit {known['git_commit'][:7]}"
        if known["git_commit"]
        else "code without commit"
    )
    if known["git_dirty"]:
        code += " with local changes"
    adapter = f" with {asked['adapter']}" if asked.get("adapter") else ""
    return (
        f"{asked['model']}{adapter} at {asked['precision'].upper()}, {code}, "
        f"MLX {identity['packages']['mlx']}, "
        f"items {identity['items_sha256'][:12]}, weights {identity['weights_sha256'][:12]}, run "
        f"{known['started'][:10]} on {known['platform']}"
    )


def code_version():
    """Commit of the project's code, and whether it has changes that are in no commit.

    Returns
    -------
    dict
        Without a commit where the code is no repository of its own, such as an unpacked source archive.
    """
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def version():
    """The project's version and the commit of its code, in words.

    Returns
    -------
    str

    Examples
    --------
    >>> version().startswith(f"{project()['version']}, ")
    True
    """
    code = code_version()
    commit = f"commit {code['git_commit'][:12]}" if code["git_commit"] else "no commit known"
    return f"{project()['version']}, {commit}" + " with local changes" * code["git_dirty"]


def project():
    """The project's table of pyproject.toml: it lies beside the code, installed or not."""
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def git(*arguments):
    """What git says of the project's repository.

    Parameters
    ----------
    *arguments : str

    Returns
    -------
    str or None
        None without git, and where the project is no repository of its own.
    """
    # Unpacked inside of another project, git would answer for that one.
    top = _answer("rev-parse", "--show-toplevel")
    return _answer(*arguments) if top and Path(top).resolve() == PROJECT else None


def _answer(*arguments):
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
