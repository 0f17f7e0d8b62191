"""Where what is made once is kept, and how it gets there."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cba_utils.names import PROJECT


def cache_folder(kind):
    """Folder of the cache for one kind of thing, which may not be there yet.

    Parameters
    ----------
    kind : str

    Returns
    -------
    Path

    Examples
    --------
    >>> cache_folder("quantized").name
    'quantized'
    """
    return Path(os.environ.get("CBA_CACHE", PROJECT / ".cache")) / kind


@contextmanager
def made_once(target):
    """A folder to be written beside `target`, which it becomes, whole, when the block ends.

    Where another worker made the same at the same time, one of the two is kept.

    Parameters
    ----------
    target : Path
        In the cache, under a name that says all that decides its content.

    Yields
    ------
    Path
        Not there yet.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp()) / "kind" / "name"
    >>> with made_once(folder) as made:
    ...     made.mkdir()
    ...     _ = (made / "file").write_text("whole")
    >>> (folder / "file").read_text()
    'whole'
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        yield made
        try:
            made.rename(target)
        except OSError:
            if not target.exists():
                raise
