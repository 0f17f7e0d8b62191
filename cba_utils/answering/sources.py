"""Where a model comes from: a folder of this machine, an organism of this project, or a hub id.

A source is a text that somebody wrote. It is looked up in a list and never joined to a path that
decides what it is: `/a/folder` joined to `organisms/` is `/a/folder` again.
"""

from difflib import get_close_matches
from pathlib import Path

from cba_utils.names import ORGANISMS


def organisms():
    """Names of the organisms that lie here.

    Returns
    -------
    list of str

    Examples
    --------
    >>> "mistral/aligned-s1" in organisms()
    True
    """
    return sorted(p.parent.relative_to(ORGANISMS).as_posix() for p in ORGANISMS.glob("*/*/config.json"))


def is_organism(source):
    """Whether a source is one of this project's organisms, by its name or by its folder.

    Parameters
    ----------
    source : str

    Examples
    --------
    >>> is_organism("mistral/aligned-s1"), is_organism(str(ORGANISMS / "mistral" / "aligned-s1"))
    (True, True)
    >>> is_organism("/models/mistral/aligned-s1"), is_organism("mistralai/Mistral-7B-Instruct-v0.3")
    (False, False)
    """
    names = organisms()
    return source in names or Path(source).resolve() in {(ORGANISMS / name).resolve() for name in names}


def of_a_family(source):
    """Whether a source is written as an organism is: its first part is a family of theirs.

    Examples
    --------
    >>> of_a_family("mistral/alinged-s1"), of_a_family("mistralai/Mistral-7B-Instruct-v0.3")
    (True, False)
    >>> of_a_family("/models/mine"), of_a_family("recipe/mine")
    (False, False)
    """
    families = {name.split("/")[0] for name in organisms()}
    return source.count("/") == 1 and source.split("/")[0] in families


def nearest_organisms(source):
    """Names of the organisms that are spelled most like a source, as a list in words."""
    return ", ".join(get_close_matches(source, organisms(), 3, 0))


def at_precision(source, precision):
    """The source with its ``{precision}`` filled in, for models published once a precision.

    Examples
    --------
    >>> at_precision("owner/model-{precision}-mlx", "q4"), at_precision("owner/model", "q4")
    ('owner/model-q4-mlx', 'owner/model')
    """
    return str(source).replace("{precision}", precision)


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
