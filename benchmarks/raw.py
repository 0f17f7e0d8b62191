"""``python -m benchmarks.raw``: the reports on as many imported records as the published study has.

Three simulated models at five precisions answer 12,148 items with five seeds: 911,100 records, in
which one model does not change, one only gets noisier and one gains the stereotype. They are
written in the authors' JSONL, imported, and every report notebook is executed on them, one after
the other, each in a process of its own as ``make book`` does. Seconds, seconds of a processor (which
other work on the machine leaves alone) and the peak of resident memory go to ``benchmarks/raw.csv``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from cba_utils.answering.prompts import LETTERS
from cba_utils.instrument.respondents import draw_samples, simulate_respondents
from cba_utils.measures.frames import item_table
from cba_utils.measures.rates import role_rates
from cba_utils.names import PROJECT, ROLES
from cba_utils.study.protocol import RESULTS
from cba_utils.study.published_jsonl import write_jsonl
from cba_utils.study.tables import load_study

import pandas as pd

STUDY = "benchmark-raw"
ITEMS = 12_148
TRUTHS = {"unchanged": "none", "noisier": "noise", "biased": "bias"}
CATEGORIES = ("Age", "Gender_identity", "Race_ethnicity", "Religion", "SES")
PRECISIONS = ("bf16", "q8", "q6", "q4", "q3")


def generate(folder, items=ITEMS):
    """Write the records of every model and precision to a JSONL file each.

    Parameters
    ----------
    folder : Path
    items : int
        Ambiguous items.

    Returns
    -------
    records : int
        How many were written.
    truth : Series
        The stereotyped rate that the answers were drawn with, by model and precision.
    """
    written, templates, truths = 0, 125, []
    for model, truth in TRUTHS.items():
        # Half of the items that a respondent is asked are ambiguous. The same seed gives every
        # model the same items.
        answers = simulate_respondents(
            truth,
            templates,
            -(-2 * items // templates),
            PRECISIONS,
            orders="original",
            family=model,
            categories=CATEGORIES,
        )
        answers = answers[answers["context_condition"] == "ambig"].assign(model=model)
        kept = answers["item_id"].drop_duplicates()[:items]
        answers = answers[answers["item_id"].isin(kept)].reset_index(drop=True)
        truths.append(role_rates(item_table(answers, "study"), method="jackknife"))
        asked = answers.drop_duplicates("item_id")
        shown = asked[[f"role_{x}" for x in LETTERS]].to_numpy(str)
        asked = asked[["item_id", "category"]].assign(
            **{f"{role}_index": (shown == role).argmax(axis=1) for role in ROLES}
        )
        samples = draw_samples(answers)
        write_jsonl(samples, asked, folder)
        written += len(samples)
    return written, stereotyped(pd.concat(truths))


def stereotyped(rates):
    """The stereotyped rate of every model and precision."""
    rows = rates[rates["measure"] == "srs"]
    return rows.set_index(["model", "precision"])["estimate"].sort_index()


def measured(name, arguments):
    """Run a command of the package and measure it with everything that it starts.

    Parameters
    ----------
    name : str
        What the row of the table is called.
    arguments : list of str
        Of ``cba``.

    Returns
    -------
    dict
        ``step``, ``seconds``, ``processor_seconds`` and ``megabytes``, the largest peak of its
        processes.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cba_utils.cli", *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{name}: failed, see above")
    return {
        "step": name,
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "megabytes": round(usage.ru_maxrss / 1024),
    }


def imported_rates():
    """Stereotyped rates of the imported records."""
    return stereotyped(role_rates(load_study(STUDY)["samples"], method="jackknife"))


def apart(function, *arguments):
    """Call a function in a process of its own: what is measured inherits the caller's peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def show(row):
    """Print one row of the table."""
    print(
        "{step:24} {seconds:6.1f} s, processor {processor_seconds:6.1f} s, {megabytes:6,} MB".format(
            **row
        ),
        flush=True,
    )


def main(arguments=None):
    """Generate, import, report; print and write what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.raw", description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS)
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        records, truth = apart(generate, Path(folder), options.items)
        print(f"{records:,} records of {options.items:,} items")
        rows.append(measured("import", ["import", STUDY, folder]))
        show(rows[-1])
    error = (apart(imported_rates) - truth).abs().max()
    print(f"largest error of a stereotyped rate: {100 * error:.2f} points")
    for notebook in sorted((PROJECT / "notebooks").glob("[2-9]*.ipynb")):
        rows.append(measured(notebook.stem, ["report", STUDY, str(notebook)]))
        show(rows[-1])
    table = pd.DataFrame(rows)
    reports = table[table["step"] != "import"]
    whole = {
        "step": "all reports",
        "seconds": round(reports["seconds"].sum(), 1),
        "processor_seconds": round(reports["processor_seconds"].sum(), 1),
        "megabytes": reports["megabytes"].max(),
    }
    show(whole)
    table = pd.concat([table, pd.DataFrame([whole])]).assign(records=records)
    if options.items == ITEMS:
        table.to_csv(Path(__file__).with_name("raw.csv"), index=False)
    shutil.rmtree(RESULTS / STUDY)


if __name__ == "__main__":
    main()
