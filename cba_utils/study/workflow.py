"""Run a study from its file to its book, by Snakemake: ``cba run smoke``.

This module lets one run at a study at a time, by a lock that ends with its processes (Snakemake's own
outlives a run that was killed), refuses bad studies and items before anything starts, ends all that it
started when it is stopped, and says errors once more at the end, where they are read. It also knows
which modules a notebook's outputs come from, so that editing one runs those again and no others.
"""

import ast
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import psutil
import yaml

from cba_utils.answering.items import load_items
from cba_utils.names import PROJECT, RESULTS
from cba_utils.study import slurm
from cba_utils.study.files import remove_scratch, write_text
from cba_utils.study.imported import imported_study
from cba_utils.study.lock import lock_study
from cba_utils.study.protocol import SHIPPED, book_folder, read_study, study_name

PACKAGE = PROJECT / "cba_utils"
PROFILES = PROJECT / "workflow" / "profiles"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3  # seconds between the request to end and the end


def run_workflow(path, raw=None, items=None, profile="local"):
    """Run whatever of a study is not done yet.

    Parameters
    ----------
    path : str or Path
        Study file; for imported records, the name of the study.
    raw : str or Path, optional
        Folder of records to import instead of running models.
    items : str, optional
        The items that imported records answer.
    profile : str
        Where the steps run: a folder of ``workflow/profiles``, or of the user's own.

    Raises
    ------
    ValueError
        If the study, its items or the profile cannot be used, or another run is at work on it.
    RuntimeError
        If a step failed, with the errors that the steps gave.
    KeyboardInterrupt
        If it was stopped; nothing that it started is left then.
    """
    name = study_name(path)
    folder, on_slurm = find_profile(profile)
    more = slurm.options(name) if on_slurm else []
    if raw:
        imported_study(name)
        if (RESULTS / name / "study.yml").exists():
            raise ValueError(
                f"STUDY: {name!r} is a study whose models were run (results/{name}); give "
                f"imported records a name of their own"
            )
        if not any(Path(raw).glob("*.jsonl")):
            raise ValueError(
                f"RAW: {str(raw)!r} is no folder with *.jsonl in it; it is where the records lie"
            )
    else:
        asked = read_study(path)["items"]
        if Path(asked["source"]).is_dir():
            load_items(asked["source"], asked.get("categories"), asked["condition"])
    asked = {"study": str(path), "raw": raw and str(raw), "items": raw and items}
    settings = RESULTS / name / "workflow.yml"
    # A file: Snakemake reads what stands on its command line as numbers where it can.
    write_text(yaml.safe_dump({key: value for key, value in asked.items() if value}), settings)
    command = [
        Path(sys.executable).with_name("snakemake"),
        "--snakefile",
        "workflow/Snakefile",
        "--profile",
        folder,
        "--configfile",
        settings.relative_to(PROJECT),
        *more,
    ]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    jobs = slurm.job_prefix(name) if on_slurm else None
    end_jobs = functools.partial(slurm.end_jobs, jobs) if on_slurm else None
    with lock_study(name, end_all, jobs, slurm.end_jobs) as lock:
        _remove_scratch(name)
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            stderr=subprocess.PIPE,
            pass_fds=[lock.fileno()],
            env={**os.environ, "PATH": search},
        )
        told = b""
        with _ends_with_us(process, end_jobs):
            while piece := process.stderr.read1():
                sys.stderr.buffer.write(piece)
                sys.stderr.flush()
                told += piece
            process.wait()
        if process.returncode:
            _remove_scratch(name)
    if process.returncode:
        text = told.decode(errors="replace")
        text += slurm.failed_logs(text) if on_slurm else ""
        errors = re.findall(r"(?:^|[\r\n])error: ([^\r\n]+)", text)
        raise RuntimeError(
            "\nerror: ".join(dict.fromkeys(errors))
            or "a step of the workflow failed; it is named above"
        )


def find_profile(text):
    """The folder of a profile, and whether its steps are Slurm's jobs.

    Parameters
    ----------
    text : str
        The name of a folder of ``workflow/profiles``, or a folder.

    Returns
    -------
    str, bool

    Examples
    --------
    >>> find_profile("slurm")[1], find_profile("local")[1]
    (True, False)
    """
    folder = PROFILES / text if re.fullmatch(r"[\w-]+", text) else Path(text)
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        have = ", ".join(sorted(path.name for path in PROFILES.iterdir()))
        why = "is no YAML" if isinstance(error, yaml.YAMLError) else "cannot be read"
        raise ValueError(
            f"PROFILE: {text!r} is neither one of {have} nor a folder with a profile for Snakemake: "
            f"{folder / 'config.yaml'} {why}"
        ) from None
    return str(folder), isinstance(settings, dict) and settings.get("executor") == "slurm"


def build_book(name):
    """Build the book of a study from its executed reports: no model is run.

    A build that was stopped leaves pages and an index that do not belong together, which the next one would
    take for its own. It leaves a mark as well, and then the next one begins from nothing.

    Parameters
    ----------
    name : str
        Of the study.

    Raises
    ------
    RuntimeError
        If something in the book is wrong; what it is was printed.
    """
    folder = book_folder(name)
    unfinished = folder / "_build" / "unfinished"
    if unfinished.exists():
        shutil.rmtree(unfinished.parent)
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.touch()
    builder = Path(sys.executable).with_name("jupyter-book")
    command = [builder, "build", folder, "-W", "-n", "--keep-going", "--quiet"]
    if subprocess.run(command, cwd=PROJECT, check=False).returncode:
        raise RuntimeError("the book could not be built; the reason is above")
    unfinished.unlink()


@contextlib.contextmanager
def _ends_with_us(process, end_jobs=None):
    """End a process, all below it and its jobs if this one is stopped or its `make` is gone or stopped."""
    stopped = []

    def stop(*_):
        if not stopped:
            stopped.append(True)
            end_all(process.pid)

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    done = threading.Event()
    if "MAKELEVEL" in os.environ:
        threading.Thread(target=_watch_make, args=(os.getppid(), done, stop), daemon=True).start()
    try:
        yield
    except BaseException:
        end_all(process.pid)
        stopped.append(True)
        raise
    finally:
        done.set()
        if stopped and end_jobs:
            end_jobs()
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        raise KeyboardInterrupt


def _watch_make(parent, done, stop):
    """Call `stop` when `make` has ended, or waits for us to end.

    `make` hands on a request to terminate, but keeps an interrupt to itself and waits: a terminal has
    sent it to everybody, other programs have not. Linux tells: `make` then blocks the signal that it
    has caught.
    """
    waiting = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGHUP))
    while not done.wait(0.5):
        if os.getppid() != parent:
            return stop()
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{parent}/status").read_text()
            blocked = re.search(r"^SigBlk:\s*([0-9a-f]+)", state, re.M)
            name = re.search(r"^Name:\s*(\w+)", state, re.M)
            if blocked and name and "make" in name[1] and int(blocked[1], 16) & waiting:
                return stop()


def end_all(number):
    """End a process and everything below it, kernels in sessions of their own as well.

    Parameters
    ----------
    number : int
        The process's id.
    """
    try:
        top = psutil.Process(number)
        below = [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        return
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(below, timeout=_PATIENCE)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            # What it started in the meantime goes with it.
            for late in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    late.kill()
            process.kill()


def _remove_scratch(name):
    """Remove what killed processes left half written in a study's results and beside the reports."""
    remove_scratch(RESULTS / name)
    if name == SHIPPED:
        remove_scratch(PROJECT / "notebooks")


def sources_of(*files):
    """Files of the package that a notebook or module needs: what it imports, and what that imports.

    A chapter that a notebook opens by its name (``open_page("noise", study)``) counts with its
    template, and a package's data files with its modules.

    Parameters
    ----------
    *files : Path
        Modules or notebooks.

    Returns
    -------
    list of str
        Below the project's folder.

    Examples
    --------
    >>> found = sources_of(PROJECT / "notebooks" / "22_run_log.ipynb")
    >>> "cba_utils/telling/study.py" in found, "cba_utils/study/doctor.py" in found
    (True, False)
    """
    found, todo = set(), [Path(file) for file in files]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        if file.suffix == ".py" and file.parent.name in (
            "measures",
            "telling",
            "instrument",
            "chapters",
        ):
            found |= {
                p
                for p in file.parent.iterdir()
                if p.suffix in (".csv", ".json") or p.name == "common.md.j2"
            }
        if file.suffix in (".py", ".ipynb"):
            todo += _imported(file)
    return sorted(str(file.relative_to(PROJECT)) for file in found if PACKAGE in file.parents)


def _imported(file):
    """Modules of the package that a file imports, wherever in it, and chapters that it opens."""
    if file.suffix == ".py":
        texts = [file.read_text(encoding="utf-8")]
    else:
        cells = nbformat.read(file, as_version=4).cells
        texts = [cell.source for cell in cells if cell.cell_type == "code"]
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [
                    node.module or "",
                    *(f"{node.module}.{alias.name}" for alias in node.names),
                ]
            elif isinstance(node, ast.Constant) and file.suffix == ".ipynb":
                name = str(node.value)
                chapter = PACKAGE / "chapters" / f"{name}.py"
                if name.isidentifier() and chapter.exists():
                    yield from (chapter, *chapter.parent.glob(f"{name}.md*"))
                continue
            else:
                continue
            for name in names:
                yield from _files_of(name)


def _files_of(name):
    """The file of a module and those of the packages around it."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return
    for k in range(1, len(parts) + 1):
        place = PROJECT.joinpath(*parts[:k])
        yield from (p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file())
