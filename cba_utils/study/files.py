"""Files that appear whole or not at all."""

import json
import os
import re

import numpy as np
import pandas as pd
import psutil

_SCRATCH = re.compile(r"\..+\.(\d+)(?:\.ipynb)?")


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
        Passed to pyarrow, such as ``column_encoding``.
    """
    _atomically(
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

    _atomically(path, save)


def write_text(text, path):
    """Write a text, whole or not at all.

    Parameters
    ----------
    text : str
    path : Path
    """
    _atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _atomically(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_for(path)
    try:
        write(scratch)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        scratch.unlink(missing_ok=True)


def scratch_for(path):
    """Where a file is written before it takes its place: hidden, and named by the process.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Path
    """
    if path.suffix == ".ipynb":  # papermill wants the ending
        return path.with_name(f".{path.stem}.{os.getpid()}.ipynb")
    return path.with_name(f".{path.name}.{os.getpid()}")


def remove_scratch(folder, mine=False):
    """Remove what processes that were killed left half written below a folder.

    Parameters
    ----------
    folder : Path
    mine : bool
        Also what this process was writing.
    """
    for path in folder.rglob(".*"):
        match = _SCRATCH.fullmatch(path.name)
        if match and path.is_file():
            writer = int(match[1])
            if (mine and writer == os.getpid()) or not psutil.pid_exists(writer):
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
        error.errno,
        f"{path}: cannot be written ({error.strerror}); what was finished before is kept: "
        f"make room and run the same command again",
    )


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
