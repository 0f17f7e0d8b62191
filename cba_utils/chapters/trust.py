"""Can it be trusted? What kills, bad input, slips in the code, other machines and other Pythons do.

The numbers are those of files in the repository, each written by the command that the page names; the
study makes no difference to them.
"""

import heapq
import re
from functools import cached_property

import pandas as pd

from cba_utils.measures.intervals import wilson
from cba_utils.names import PROJECT
from cba_utils.study.provenance import project
from cba_utils.telling.numbers import measured
from cba_utils.telling.page import Need, Page

SURFACES = {
    "make": "variables and goals of make",
    "words": "words of cba's command line",
    "study": "keys of a study file",
    "file": "study files as a whole",
    "item": "fields of an item",
    "items": "files of items",
    "record": "fields of a record",
    "records": "files of records",
    "model": "files of a model's folder",
    "call": "arguments of functions",
}
# What Python calls a system and machine, in words.
MACHINES = {
    "Linux x86_64": "Linux on x86-64",
    "Linux aarch64": "Linux on arm64",
    "Darwin arm64": "macOS on arm64",
}
REHEARSAL = PROJECT / "benchmarks" / "gpu_rehearsal.csv"
REHEARSED = Need("rehearsed", lambda study: REHEARSAL.exists())
# Cells of the published grid, and numbers of GPUs that they are spread over.
MODELS, GPUS = 3, (1, 5, 15)


def makespan(first, after, gpus):
    """Seconds until all cells are done, each model's reference before its other cells.

    Parameters
    ----------
    first : list of float
        Seconds of the reference cell, a model each.
    after : list of list of float
        Seconds of the model's other cells.
    gpus : int

    Returns
    -------
    float

    Examples
    --------
    >>> makespan([2.0, 2.0], [[1.0, 1.0], [1.0]], 1), makespan([2.0, 2.0], [[1.0, 1.0], [1.0]], 5)
    (7.0, 3.0)
    """
    free, waiting = [0.0] * gpus, []
    for seconds, cells in zip(first, after, strict=True):
        done = heapq.heappop(free) + seconds
        heapq.heappush(free, done)
        waiting += [(done, cell) for cell in cells]
    last = max(free)
    for ready, seconds in sorted(waiting, key=lambda cell: (cell[0], -cell[1])):
        done = max(heapq.heappop(free), ready) + seconds
        heapq.heappush(free, done)
        last = max(last, done)
    return last


class Chapter(Page):
    """Notebook ``52_trust``; whatever the study, its numbers are the same."""

    without_letters = ("all",)
    needs = {"gpus": REHEARSED, "gpu_hours": REHEARSED}

    @cached_property
    def kills(self):
        """A kill a row."""
        return pd.read_csv(PROJECT / "benchmarks" / "kills.csv")

    @cached_property
    def faults(self):
        """A fault of the machine a row."""
        return pd.read_csv(PROJECT / "benchmarks" / "faults.csv", keep_default_na=False)

    @cached_property
    def inputs(self):
        """A bad input a row."""
        return pd.read_csv(PROJECT / "tests" / "bad_inputs.csv", keep_default_na=False)

    @cached_property
    def mutants(self):
        """A change of one thing in the code a row, and the test that noticed it."""
        return pd.read_csv(PROJECT / "benchmarks" / "mutation.csv", keep_default_na=False)

    @cached_property
    def environments(self):
        """A platform and Python a row: what has no wheel there, and the tests that were run."""
        path = PROJECT / "benchmarks" / "environments.csv"
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        return rows.assign(platform=rows["platform"].map(MACHINES))

    @cached_property
    def gpu(self):
        """A cell of a model of seven billion weights a row."""
        rows = pd.read_csv(REHEARSAL)
        return rows[rows["seconds"].notna()]

    # Readings: what the template says

    @property
    def runs(self):
        """Runs that were killed, some of them several times."""
        return len(self.kills[["kind", "run"]].drop_duplicates())

    @property
    def most_kills(self):
        """Kills of a run, at most."""
        return int(self.kills.groupby(["kind", "run"]).size().max())

    @property
    def different(self):
        """Runs at whose end something was not the same."""
        return int((~self.kills.groupby(["kind", "run"])["identical"].all()).sum())

    @property
    def slowest(self):
        """Seconds from the signal until all had ended, at most."""
        return float(self.kills["ended_after_s"].max())

    @property
    def chance(self):
        """Share of runs that end with the same bytes; kills of one run are not independent."""
        n = self.runs
        low, high = wilson(n - self.different, n)
        return {"estimate": (n - self.different) / n, "low": low, "high": high, "n": n}

    @property
    def packages(self):
        """Packages and hashes of the lock."""
        text = (PROJECT / "requirements.lock").read_text()
        found = re.findall(r"^[A-Za-z0-9][\w.-]*==", text, re.M)
        return {"packages": len(found), "hashes": text.count("--hash=sha256:")}

    @property
    def python(self):
        """The oldest Python that the pins allow."""
        return project()["requires-python"].removeprefix(">=")

    @property
    def newest(self):
        """The newest Python that the lock was tried for."""
        return max(self.environments["python"], key=lambda text: int(text.partition(".")[2]))

    @property
    def platforms(self):
        """What the lock was tried for."""
        return list(dict.fromkeys(self.environments["platform"]))

    @property
    def tested(self):
        """Where tests were run."""
        ran = self.environments[self.environments["tests"] != ""]
        return [f"Python {row.python} ({row.platform})" for row in ran.itertuples()]

    @property
    def noticed(self):
        """Share of small changes of the code that a test noticed, before tests were written for the rest."""
        return self._noticed(self.mutants)

    @staticmethod
    def _noticed(rows):
        killed, n = int((rows["first"] == "killed").sum()), len(rows)
        low, high = wilson(killed, n)
        return {"estimate": killed / n, "low": low, "high": high, "n": n}

    @property
    def missed(self):
        """Changes that no test noticed at first."""
        return self.mutants[self.mutants["first"] == "survived"]

    @property
    def mended(self):
        """How many of them a test notices that was written since."""
        return int((self.missed["result"] == "killed").sum())

    @property
    def explained(self):
        """How many of the others can be seen by no test, as somebody noted with the reason."""
        return int((self.missed["note"] != "").sum())

    # Tables

    def table_kills(self):
        """Kills by what was killed and the signal."""
        groups = self.kills.groupby(["kind", "signal"], sort=True)
        rows = groups.agg(
            kills=("kill", "size"), same=("identical", "sum"), slowest=("ended_after_s", "max")
        ).reset_index()
        rows["kind"] = rows["kind"].map({"cell": "a cell", "book": "make book"})
        rows.columns = ["what", "signal", "kills", "same bytes in the end", "ended in at most, s"]
        return rows, {
            "kills": str,
            "same bytes in the end": str,
            "ended in at most, s": "{:.1f}".format,
        }

    def table_faults(self):
        """Faults of the machine, what was said, and whether the next run went on from there."""
        table = self.faults[["fault", "exit", "said", "identical"]].copy()
        table["fault"] = table["fault"].str[0].str.lower() + table["fault"].str[1:]
        # what is left out are places of the machine that measured
        said = (
            table["said"]
            .str.removeprefix("error: ")
            .str.replace(r"^\S+: (?:\w+Error: )?(?=CACHE)", "", regex=True)
        )
        table["said"] = said.str.replace(r" \(see .*\)$", "", regex=True).replace("", "nothing")
        table["identical"] = table["identical"].map({True: "yes", False: "no"})
        table.columns = ["a study with", "exit code", "said", "same bytes in the end"]
        return table, {"exit code": str}

    def table_inputs(self):
        """Bad inputs by where they are given, with one of their lines."""
        rows = []
        for surface, words in SURFACES.items():
            mine = self.inputs[self.inputs["surface"] == surface]
            if len(mine):
                short = mine.loc[mine["line"].str.len().idxmin(), "line"]
                codes = ", ".join(map(str, sorted(mine["code"].unique())))
                rows.append([words, len(mine), codes, short])
        table = pd.DataFrame(rows, columns=["where", "inputs", "exit code", "the shortest line"])
        return table, {"inputs": str}

    def table_mutants(self):
        """Small changes of the code by what was changed."""
        rows = []
        for part, mine in self.mutants.groupby("part", sort=False):
            left = mine[mine["first"] == "survived"]
            counts = [len(left), (left["result"] == "killed").sum(), (left["note"] != "").sum()]
            rows.append([part, mine["module"].nunique(), self._noticed(mine), len(mine), *counts])
        names = ["not noticed", "noticed since", "explained"]
        table = pd.DataFrame(rows, columns=["part", "modules", "noticed at first", "n", *names])
        return table, {**dict.fromkeys(["modules", "n", *names], str), "noticed at first": measured}

    def table_environments(self):
        """Packages without a wheel and tests that were run, by Python and platform."""
        rows = [
            [
                row.platform,
                row.python,
                row.from_source.replace(" ", ", ") or "none",
                f"{row.passed} of {row.tests}" if row.tests else "none were run",
            ]
            for row in self.environments.itertuples()
        ]
        columns = ["platform", "Python", "built from sources", "tests passed"]
        return pd.DataFrame(rows, columns=columns), {}

    def table_gpus(self):
        """Hours that the published grid takes on some GPUs."""
        seconds = self.gpu.set_index("precision")["seconds"]
        first = float(seconds["bf16"])
        others = [float(value) for name, value in seconds.items() if name != "bf16"]
        rows = [[gpus, makespan([first] * MODELS, [others] * MODELS, gpus) / 3600] for gpus in GPUS]
        alone = MODELS * float(seconds.sum()) / 3600
        table = pd.DataFrame(rows, columns=["GPUs", "hours"])
        table["GPU hours"] = alone
        return table, {"GPUs": str, "hours": "{:.2f}".format, "GPU hours": "{:.2f}".format}
