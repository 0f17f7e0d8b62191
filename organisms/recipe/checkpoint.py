"""Where a run of training stands, on disk: a killed run goes on and ends with the same weights.

A checkpoint and every organism carry the *identity* of the run that made them: whatever decides
the weights. A checkpoint of another identity is thrown away, and an organism that has the wanted
identity is not made again.
"""

import hashlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

from cba_utils.study.files import write_text  # puts a fast BLAS in place before mlx.core is imported

import mlx.core as mx  # isort: skip
from .tokenizer import build_tokenizer  # isort: skip

# the files of the recipe that decide the weights of an ancestor, and those of a base or an alignment
FILES = ("bank.py", "curriculum.py", "model.py", "tokenizer.py", "train.py")
LATER_FILES = ("bank.py", "curriculum.py", "plant.py", "tokenizer.py")


def digest(path):
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@lru_cache
def _tokenizer_hash(family):
    return hashlib.sha256(build_tokenizer(family).to_str().encode()).hexdigest()


def identity(family, seed):
    """What decides the weights of a run, its number of steps apart.

    Parameters
    ----------
    family : str
        A key of `tokenizer.FAMILIES`.
    seed : int
        Seed of the run.

    Returns
    -------
    dict
        Two runs of one identity end with the same weights on one machine's CPU.

    Examples
    --------
    >>> identity("mistral", 1) == identity("mistral", 1)
    True
    >>> identity("mistral", 1) == identity("mistral", 2)
    False
    """
    recipe = "".join(digest(Path(__file__).with_name(name)) for name in FILES)
    return {
        "family": family, "seed": seed,
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "tokenizer": _tokenizer_hash(family),
        "mlx": mx.__version__, "device": str(mx.default_device()),
    }


def planted_identity(family, number, start, seed=None):
    """What decides the weights of a base or an alignment, its number of steps apart.

    Parameters
    ----------
    family : str
        A key of `tokenizer.FAMILIES`.
    number : int
        Of the base.
    start : path
        Weights that the run begins with: the ancestor's or the base's.
    seed : int, optional
        Of an alignment.

    Returns
    -------
    dict
    """
    recipe = "".join(digest(Path(__file__).with_name(name)) for name in LATER_FILES)
    return {
        "family": family, "base": number, "seed": seed, "start": digest(start),
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "tokenizer": _tokenizer_hash(family),
    }


class Checkpoint:
    """The last state of one run, in a folder of its own.

    Parameters
    ----------
    folder : path
        Where the state is kept.
    made : dict
        The run's identity.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> Checkpoint(folder, {"seed": 1}).save({"step": 5}, {"w": mx.zeros(2)})
    >>> Checkpoint(folder, {"seed": 1}).step
    5
    >>> Checkpoint(Path(folder), {"seed": 2}).step  # doctest: +ELLIPSIS
    The checkpoint in ... is of another run (not the same seed): starting anew
    0
    """

    def __init__(self, folder, made):
        self.folder, self.made = Path(folder), made
        self._marker = self.folder / "progress.json"

    @property
    def step(self):
        """Steps that are done; 0 without a checkpoint of this run."""
        return (self._read() or {"step": 0})["step"]

    def load(self):
        """The state that was saved last, as `(values, arrays)`; None without one of this run."""
        values = self._read()
        return values and (values, mx.load(str(self._arrays(values["step"]))))

    def save(self, values, arrays):
        """Replace the state: `values` fit JSON and hold the `step`, `arrays` go beside them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._arrays(values["step"])
        mx.save_safetensors(str(path), arrays)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        write_text(json.dumps({"made": self.made, **values}), self._marker)
        for old in self.folder.glob("step-*.safetensors"):
            if old != path:
                old.unlink()

    def clear(self):
        """Remove the folder, and the folder around it if nothing else is in there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.exists() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _arrays(self, step):
        return self.folder / f"step-{step}.safetensors"

    def _read(self):
        if not self._marker.exists():
            return None
        values = json.loads(self._marker.read_text())
        made = values.pop("made", {})
        other = [key for key in self.made if key not in made or made[key] != self.made[key]]
        if other:
            print(f"The checkpoint in {self.folder} is of another run (not the same "
                  f"{', '.join(other)}): starting anew", flush=True)
            self.clear()
            return None
        return values
