"""Kill cells and whole books at random moments, go on, and compare what is there at the end.

A moment is a share of the processor time that a whole run takes: it is the work that is cut at random,
however busy the machine is.

``python -m benchmarks.kills benchmarks/kills.csv --cells 180 --books 20`` adds a row a kill, with the seed
that chose signal and moment, and says of each run whether it ended with the bytes of a run that nobody
killed. Rows that the file has already are kept and go on from.

A cell's run is a forked process that does what ``cba model`` does, so that no time goes by in imports,
where a kill has nothing to hurt. A book's is ``make book`` in a process group of its own; the signal goes
to make alone, as other programs send it.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import cba_utils  # noqa: F401  (binds the BLAS)
from cba_utils.names import CONFIG, PROJECT, RESULTS
from cba_utils.study import notebooks
from cba_utils.study.files import remove_scratch
from cba_utils.study.protocol import narrow, read_study
from cba_utils.study.workflow import end_all

import pandas as pd
import psutil
import yaml

SIGNALS = ("KILL", "KILL", "KILL", "TERM", "INT", "HUP")
COLUMNS = (
    *("kind", "run", "kill", "seed", "signal", "at_cpu_s", "of_cpu_s", "files_then"),
    *("ended_after_s", "left_at_work", "identical"),
)
KILLS = 6  # of a run, before it is let to its end


def make_study(name, items):
    """A study of a few cells in results/, whose file is its own."""
    study = narrow(read_study(CONFIG / "smoke.yml"), name, items=items)
    for model in study["models"]:
        model.pop("base", None)  # a killed cell is asked about, not what is taken apart after it
    study["perplexity"] |= {"sequences": 4}
    path = RESULTS / name / "study.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(study))
    return study


def _as_usual():
    """Let signals end this process: what a shell starts in the background ignores some of them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run_cells(study):
    """A forked process that runs all cells of the study's models."""
    child = os.fork()
    if child:
        return psutil.Process(child)
    _as_usual()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    code = 1
    try:
        remove_scratch(RESULTS / study["name"])
        for model in study["models"]:
            notebooks.run_model(study, model["name"])
        code = 0
    finally:
        os._exit(code)


def run_book(study):
    """``make book`` of the study."""
    command = ["make", "book", f"STUDY={study['name']}", f"PYTHON={sys.executable}"]
    with (RESULTS / study["name"] / "told").open("w") as out:
        return psutil.Popen(
            command,
            cwd=PROJECT,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_as_usual,
        )


def measured(name, kind):
    """What must be the same at the end: bytes by file, without times and places."""
    base = RESULTS / name
    files = [path for path in base.rglob("*.parquet") if path.parent.name != "parts"]
    if kind == "book":
        files += sorted((base / "book" / "notebooks").glob("[2-9]*.ipynb"))
        files += [base / "book" / "_build" / "html" / "index.html"]
    alike = {}
    for path in files:
        if path.name == "provenance.parquet":
            continue  # it says when
        content = path.read_bytes().replace(name.encode(), b"NAME")
        alike[str(path.relative_to(base))] = (
            content if path.suffix == ".parquet" else len(content) > 0
        )
    return alike


def used(process):
    """Processor seconds of a process and of all that it started."""
    total = 0.0
    try:
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    except psutil.Error:
        pass
    return total


def over(process):
    """Whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def at_work(name):
    """Processes of this copy of the project that have the study's name among their words."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if mine and name in " ".join(process.cmdline()) and process.cwd() == str(PROJECT):
                found.append(process)
        except psutil.Error:
            pass
    return found


def ended(process, name):
    """Wait until a process and all that is the study's have ended: seconds, and how many are left."""
    since = time.monotonic()
    while time.monotonic() - since < 30:
        if over(process) and not at_work(name):
            break
        time.sleep(0.1)
    if not isinstance(process, psutil.Popen):
        process.wait()
    else:
        process.poll()
    left = at_work(name)
    for one in left:
        end_all(one.pid)
    return round(time.monotonic() - since, 1), len(left)


def one_run(kind, number, start, study, due, whole, kills):
    """Kill a run some times and let it end: rows."""
    name, rows, well = study["name"], [], True
    shutil.rmtree(RESULTS / name, ignore_errors=True)
    make_study(name, study["items"]["limit"])
    for kill in range(kills):
        seed = 10_000 * (kind == "book") + 100 * number + kill
        chance = random.Random(seed)
        word, at = chance.choice(SIGNALS), chance.uniform(0.0, whole)
        process = start(study)
        while not over(process) and used(process) < at:
            time.sleep(0.005 if kind == "cell" else 0.05)
        files = sum(1 for path in (RESULTS / name).rglob("*") if path.is_file())
        alive = not over(process)
        if alive:
            process.send_signal(getattr(signal, f"SIG{word}"))
        took, left = ended(process, name)
        if not alive:
            well = process.wait() == 0
            break  # it came to its end before
        rows.append(
            [kind, number, kill, seed, word, round(at, 3), round(whole, 2), files, took, left]
        )
    code = start(study).wait()
    same = well and code == 0 and measured(name, kind) == due
    # Sphinx keeps hidden files of its own.
    hidden = [
        path
        for path in (RESULTS / name).rglob(".*")
        if path.name != ".lock" and "_build" not in path.parts
    ]
    return [[*row, bool(same and not hidden)] for row in rows]


def main():
    """Go on until there are as many rows of each kind as asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=180)
    parser.add_argument("--books", type=int, default=20)
    parser.add_argument("--items", type=int, default=48)
    options = parser.parse_args()
    table = (
        pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=list(COLUMNS))
    )
    for kind, start, wanted in (
        ("cell", run_cells, options.cells),
        ("book", run_book, options.books),
    ):
        name = f"killed-{kind}"
        due = None
        before = table.loc[table["kind"] == kind, "run"]
        number = 0 if before.empty else int(before.max()) + 1
        while (table["kind"] == kind).sum() < wanted:
            if due is None:
                study = make_study(name, options.items)
                for _ in range(2 if kind == "cell" else 1):  # the first one fills the caches
                    shutil.rmtree(RESULTS / name)
                    make_study(name, options.items)
                    process, whole = start(study), 0.0
                    while not over(process):
                        whole = max(whole, used(process))
                        time.sleep(0.01)
                    assert process.wait() == 0, "a run that nobody kills does not end well"
                due = measured(name, kind)
            left = wanted - len(table[table["kind"] == kind])
            rows = one_run(kind, number, start, study, due, whole, min(KILLS, left))
            table = pd.concat([table, pd.DataFrame(rows, columns=list(COLUMNS))], ignore_index=True)
            table.to_csv(options.out, index=False)
            number += 1  # also where a run came to its end before the first kill was due
            print(
                f"{kind}: {(table['kind'] == kind).sum()} kills, identical {table['identical'].all()}",
                flush=True,
            )
        shutil.rmtree(RESULTS / name, ignore_errors=True)


if __name__ == "__main__":
    main()
