"""Run a study from its file to its book: ``python -m cba_utils.study.workflow config/smoke.yml``.

Snakemake does the work. This module lets one run at a study at a time, by a lock that ends with its
processes (Snakemake's own outlives a run that was killed), refuses bad studies and items before
anything starts, and says errors once more at the end, where they are read.
"""

import argparse
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

from cba_utils.answering.items import load_items
from cba_utils.names import PROJECT
from cba_utils.study.imported import imported_study
from cba_utils.names import RESULTS
from cba_utils.study.protocol import read_study, study_name


def run_workflow(path, raw=None, items=None):
    """Run whatever of a study is not done yet.

    Parameters
    ----------
    path : str or Path
        Study file; for imported records, a file that does not exist, which names the study.
    raw : str or Path, optional
        Folder of records to import instead of running models.
    items : str, optional
        The items that imported records answer.

    Raises
    ------
    ValueError
        If the study or its items cannot be used, or another run is at work on it.
    RuntimeError
        If a step failed, with the errors that the steps gave.
    """
    name = study_name(path)
    if raw:
        imported_study(name)
    else:
        asked = read_study(path)["items"]
        if Path(asked["source"]).is_dir():
            load_items(asked["source"], asked.get("categories"), asked["condition"])
    command = [
        Path(sys.executable).with_name("snakemake"), "--snakefile", "workflow/Snakefile",
        "--profile", "workflow/profiles/local", "--config", f"study={path}",
        *([f"raw={raw}"] if raw else []), *([f"items={items}"] if raw and items else []),
    ]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with _lock(name) as lock, subprocess.Popen(
        command, cwd=PROJECT, stderr=subprocess.PIPE, pass_fds=[lock.fileno()],
        env={**os.environ, "PATH": search},
    ) as process:
        told = b""
        while piece := process.stderr.read1():
            sys.stderr.buffer.write(piece)
            sys.stderr.flush()
            told += piece
    if process.returncode:
        errors = re.findall(r"(?:^|[\r\n])error: ([^\r\n]+)", told.decode(errors="replace"))
        raise RuntimeError("\nerror: ".join(dict.fromkeys(errors))
                           or "a step of the workflow failed; it is named above")


def _lock(name):
    """A file that this process and those it starts hold while one of them is alive."""
    path = RESULTS / name / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"study {name!r}: another run is at work on it; wait for it or end it") from None
    return file


def main(arguments=None):
    """Run a study's workflow from the command line."""
    parser = argparse.ArgumentParser(prog="python -m cba_utils.study.workflow", description=__doc__)
    parser.add_argument("study", type=Path, help="study file, e.g. config/organisms.yml")
    parser.add_argument("--raw", help="folder of records to import, *.jsonl")
    parser.add_argument("--items", help="the items that these answer")
    options = parser.parse_args(arguments)
    try:
        run_workflow(options.study, options.raw, options.items)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
