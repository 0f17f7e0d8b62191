"""Run a study into faults of the machine, take them away, go on, and compare what is there at the end.

``python -m benchmarks.faults benchmarks/faults.csv`` makes a study of two cells and runs it with its results
or its cache on a disk that is full or read-only, or that belongs to another user, beside another study on
the same cache, and with a clock that jumps. Each run's exit code and what it said is a row, with whether the
same command, once the fault is gone, ended with the bytes of a run that met none.

Disks are small ones in memory, so that it has to be root on Linux that runs this; another user's folder is
met without root's right to write everywhere (``setpriv`` takes it).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from benchmarks.kills import make_study, measured
from cba_utils.names import PROJECT, RESULTS
from cba_utils.study.protocol import read_study

import pandas as pd

NAME, BESIDE = "faulty", "faulty-beside"
TWO_AT_ONCE = "two-at-once"
ITEMS = 48
NOBODY = 65534
# A day back after the first seconds, then two days on.
CLOCK = """
import time
_real, _start = time.time, time.monotonic()
def jumping():
    since = time.monotonic() - _start
    return _real() - 86400 * (2 < since <= 6) + 86400 * (since > 6)
time.time = jumping
"""


def command(name, limited=False):
    """The words that run a study's cells; limited: without root's right to write where others may not."""
    model = read_study(RESULTS / name / "study.yml")["models"][0]["name"]
    rights = "-dac_override,-dac_read_search,-fowner"
    before = ["setpriv", f"--bounding-set={rights}", "--no-new-privs"] if limited else []
    return [*before, sys.executable, "-m", "cba_utils.cli", "model", name, model]


def run(name, limited=False, **environment):
    """Run a study's cells to their end: exit code and what was said of an error."""
    done = subprocess.run(
        command(name, limited),
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return {
        "exit": done.returncode,
        "lines": len(said),
        "said": " / ".join(said).replace(str(PROJECT), "PROJECT"),
        "traceback": "Traceback" in done.stderr,
    }


@contextmanager
def disk(folder, size, read_only=False):
    """A small disk in memory in the folder's place, with what the folder held."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            if read_only:
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            yield
            # what was written there before the fault stays
            shutil.copytree(folder, aside, dirs_exist_ok=True)
        finally:
            subprocess.run(["umount", folder], check=True)
        shutil.copytree(aside, folder, dirs_exist_ok=True)


@contextmanager
def of_another(folder):
    """The folder and what it holds belong to another user, who lets nobody write there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    try:
        yield
    finally:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 0, 0)


@contextmanager
def beside(cache):
    """Another study's cells run meanwhile, on the same cache."""
    with subprocess.Popen(
        command(BESIDE), cwd=PROJECT, env=os.environ | {"CBA_CACHE": cache}, stderr=subprocess.PIPE
    ) as other:
        yield
        other.communicate()


@contextmanager
def jumping():
    """The environment in which Python's clock jumps back a day, and then on by two."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(CLOCK)
        yield {"PYTHONPATH": folder}


def faults(cache):
    """Every fault by name: what the study meets, what brings it about, and whether root's rights are off."""
    results = RESULTS / NAME
    return {
        "results-full": (
            "Its results on a disk that gets full on the way",
            disk(results, "200k"),
            False,
        ),
        "results-read-only": (
            "Its results on a disk that is read-only",
            disk(results, "20m", read_only=True),
            False,
        ),
        "results-of-another": (
            "Its results in a folder of another user",
            of_another(results),
            True,
        ),
        "cache-full": ("Its cache on a disk that is full", disk(Path(cache), "100k"), False),
        "cache-read-only": (
            "Its cache on a disk that is read-only",
            disk(Path(cache), "20m", read_only=True),
            False,
        ),
        "cache-of-another": (
            "Its cache in a folder of another user",
            of_another(Path(cache)),
            True,
        ),
        TWO_AT_ONCE: (
            "Another study at the same time, on the same new cache",
            beside(cache),
            False,
        ),
        "clock-jumps": (
            "A clock that jumps back a day while it runs, and then on by two",
            jumping(),
            False,
        ),
    }


def main():
    """Meet every fault, or those that are named; write a row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(faults("")))
    options = parser.parse_args()

    def start():
        for name in (NAME, BESIDE):
            shutil.rmtree(RESULTS / name, ignore_errors=True)
            make_study(name, ITEMS)

    start()
    with tempfile.TemporaryDirectory() as cache:
        assert run(NAME, CBA_CACHE=cache)["exit"] == 0, "a run without a fault does not end well"
    due, rows = measured(NAME, "cell"), []
    for fault in options.only or faults(""):
        start()
        with tempfile.TemporaryDirectory() as cache:
            words, trouble, limited = faults(cache)[fault]
            with trouble as changed:
                met = run(NAME, limited, CBA_CACHE=cache, **(changed or {}))
            again = run(NAME, CBA_CACHE=cache)
            same = again["exit"] == 0 and measured(NAME, "cell") == due
            if fault == TWO_AT_ONCE:
                same = same and measured(BESIDE, "cell") == due
        row = {"fault": words, **met, "identical": same}
        rows.append({**row, "said": row["said"].replace(cache, "CACHE")})
        print(rows[-1], flush=True)
    for name in (NAME, BESIDE):
        shutil.rmtree(RESULTS / name)
    pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
