"""Files that appear whole or not at all."""

import json
import os
import re
import socket
import time

import numpy as np
import pandas as pd
import psutil

# Its name says who writes it: on a file system that machines share, a process id is known to one of them.
_SCRATCH = re.compile(r"\..+\.([\w-]+)\.(\d+)(?:\.ipynb)?")
_HOST = re.sub(r"\W+", "-", socket.gethostname(), flags=re.ASCII)
_DAY = 86_400
# Why the system lets nothing be written, and what to do about it.
_REMEDIES = {
    "No space left on device": "make room",
    "Disk quota exceeded": "make room",
    "Read-only file system": "choose a place that can be written (CBA_CACHE names the cache's)",
    "Permission denied": "choose a place of your own (CBA_CACHE names the cache's)",
}
_OF_SYSTEM = re.compile(r"\[Errno \d+\] ([^:']+): '([^']+)'")


def read_json(path):
    """Content of a JSON file, None where there is none.

    Parameters
    ----------
    path : Path
    """
    return json.loads(path.read_text()) if path.exists() else None


def write_table(table, path, **options):
    """Write a table as Parquet, whole or not at all.

    Parameters
    ----------
    table : DataFrame
    path : Path
    **options
        Passed to pyarrow, such as ``column_encoding``; without any, fractions are stored byte by byte,
        which packs them to about two thirds.
    """
    fractions = list(table.select_dtypes(["float32", "float64"]))
    if fractions and not options:
        others = [name for name in table if name not in fractions]
        options = {"use_byte_stream_split": fractions, "use_dictionary": others}
    write_whole(
        path,
        lambda scratch: table.to_parquet(scratch, index=False, compression="zstd", **options),
    )


def write_array(array, path):
    """Write a NumPy array, whole or not at all.

    Parameters
    ----------
    array : numpy array
    path : Path
    """

    def save(scratch):
        with scratch.open("wb") as file:
            np.save(file, array)

    write_whole(path, save)


def write_text(text, path):
    """Write a text, whole or not at all.

    Parameters
    ----------
    text : str
    path : Path
    """
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def write_whole(path, write):
    """Write a file beside its place and put it there when it is whole.

    Parameters
    ----------
    path : Path
    write : callable
        Takes the path to write to.
    """
    scratch = scratch_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        scratch.unlink(missing_ok=True)


def scratch_for(path):
    """Where a file is written before it takes its place: hidden, and named by machine and process.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Path
    """
    if path.suffix == ".ipynb":  # papermill wants the ending
        return path.with_name(f".{path.stem}.{_HOST}.{os.getpid()}.ipynb")
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}")


def remove_scratch(folder, mine=False):
    """Remove what processes that were killed left half written below a folder.

    Whether a process of another machine lives is not known here: what it wrote goes when nobody has
    written to it for a day.

    Parameters
    ----------
    folder : Path
    mine : bool
        Also what this process was writing.
    """
    for path in folder.rglob(".*"):
        match = _SCRATCH.fullmatch(path.name)
        if match and path.is_file():
            host, writer = match[1], int(match[2])
            if host != _HOST:
                over = time.time() - path.stat().st_mtime > _DAY
            else:
                over = (mine and writer == os.getpid()) or not psutil.pid_exists(writer)
            if over:
                path.unlink(missing_ok=True)


def cannot_write(path, error):
    """What to raise where a file cannot be written: which one, why, and what to do.

    Parameters
    ----------
    path : Path
    error : OSError

    Returns
    -------
    OSError
    """
    return OSError(
        f"{path}: cannot be written ({error.strerror or error}); what was finished before is kept: "
        f"{_REMEDIES.get(error.strerror, 'make room')} and run the same command again"
    )


def in_words(text):
    """An error's words, with the file first and a remedy where the operating system's own stand there.

    Parameters
    ----------
    text : str

    Examples
    --------
    >>> in_words("[Errno 30] Read-only file system: '/cache/states'").partition(";")[0]
    '/cache/states: cannot be written (Read-only file system)'
    >>> in_words("[Errno 2] No such file or directory: 'a.csv'"), in_words("limit: must be above 0")
    ('a.csv: No such file or directory', 'limit: must be above 0')
    """
    match = _OF_SYSTEM.search(text)
    if not match:
        return text
    reason, path = match.groups()
    told = f"{path}: {reason}"
    if reason in _REMEDIES:
        told = str(cannot_write(path, OSError(0, reason)))
    return text[: match.start()] + told + text[match.end() :]


def compact(frame):
    """Texts that repeat become categories: the tables are committed and should stay small.

    Parameters
    ----------
    frame : DataFrame
        Is changed.
    """
    for column in frame.columns:
        if pd.api.types.is_string_dtype(frame[column]) or frame[column].dtype == object:
            frame[column] = frame[column].astype("category")
    return frame
