"""Execute a study's notebooks: ``python -m cba_utils.study.notebooks model|collect|import|report``.

papermill does the work; this module passes parameters as typed values, refuses unknown ones
(papermill would only warn), sets a timeout, and lets no half-executed notebook take the place of
a whole one.
"""

import argparse
import gc
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import papermill
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat.v4 import new_output
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from cba_utils.names import PROJECT
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.sources import at_precision
from cba_utils.study.imported import import_raw, imported_study
from cba_utils.study.estimate import duration
from cba_utils.study.files import cannot_write, write_text
from cba_utils.study.tables import collect
from cba_utils.study.protocol import (
    RESULTS,
    SHIPPED,
    book_folder,
    cells,
    parse_items,
    read_study,
    rounding_parameters,
)

RUN_NOTEBOOK = PROJECT / "notebooks" / "10_evaluate.ipynb"
ROUNDING_NOTEBOOK = PROJECT / "notebooks" / "12_rounding.ipynb"
EXAMPLE = Path("notebooks", "11_one_cell.ipynb")  # the executed one that the book shows
_HOUR = 3600


class InProcess(Engine):
    """A papermill engine without a kernel: cells run in this process, in a namespace of their own.

    Starting a kernel and importing everything anew takes longer than evaluating an organism.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **_):
        """Run the code cells in order; the first error ends the notebook."""
        # display() reaches the one registered shell: a new one takes the place of the last.
        InteractiveShell.clear_instance()
        shell = InteractiveShell.instance(user_ns={})
        for index, cell in enumerate(nb_man.nb.cells):
            nb_man.cell_start(cell, index)
            if cell.cell_type == "code":
                with capture_output(stderr=False) as captured:
                    # run_cell would put its own hook back, which prints the last value as text.
                    shell.display_trap.hook = sys.displayhook
                    result = shell.run_cell(cell.source, store_history=False)
                cell.outputs = _outputs(captured)
                error = result.error_before_exec or result.error_in_exec
                if error:
                    cell.outputs.append(new_output(
                        "error", ename=type(error).__name__, evalue=str(error), traceback=[]))
                    nb_man.cell_exception(cell, index)
                    break
            nb_man.cell_complete(cell, index)
        InteractiveShell.clear_instance()
        gc.collect()
        return nb_man.nb


def _outputs(captured):
    found = [new_output("stream", name="stdout", text=captured.stdout)] if captured.stdout else []
    for rich in captured.outputs:
        found.append(new_output("display_data", data=rich.data, metadata=rich.metadata or {}))
    return found


papermill_engines.register("in-process", InProcess)


def execute(notebook, output, parameters=None, engine=None, timeout=12 * _HOUR):
    """Execute a notebook with papermill, whole or not at all.

    Parameters
    ----------
    notebook, output : Path
    parameters : dict, optional
        Values for the notebook's parameters; with none, no cell is injected.
    engine : str, optional
        ``"in-process"``, or papermill's own, which starts a kernel.
    timeout : float
        Seconds that one cell of the notebook may take in a kernel.

    Raises
    ------
    ValueError
        If the notebook has no parameter of a given name.
    RuntimeError
        If a cell of the notebook fails: its last line says why, and the notebook as far as it
        came lies beside the output.
    """
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters or {}) - set(known))
    if unknown:
        raise ValueError(
            f"{notebook}: no parameter {unknown[0]!r}; it has {', '.join(sorted(known))}"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    # Not named like a notebook of the study, so that nothing takes it for one.
    failed = output.with_name(f"failed.{output.name}")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(scratch),
            parameters=parameters or {},
            engine_name=engine,
            cwd=str(PROJECT),
            execution_timeout=timeout,
            progress_bar=False,
            log_output=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise cannot_write(output, error) from error
    except PapermillExecutionError as error:
        shutil.move(scratch, failed)
        raise RuntimeError(f"{notebook}: {error.ename}: {error.evalue} (see {failed})") from error
    executed = nbformat.read(scratch, as_version=4)
    scratch.unlink()
    failed.unlink(missing_ok=True)
    write_text(nbformat.writes(_without_run_traces(executed)) + "\n", output)


def _without_run_traces(notebook):
    """Leave out times and paths: an unchanged result must give an unchanged file."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def run_model(study, name):
    """Execute the run notebook for every cell of one model, and take its rounding apart.

    Parameters
    ----------
    study : dict
    name : str
        The model's name in the study.
    """
    mine = [cell for cell in cells(study) if cell.name == name]
    if not mine:
        names = ", ".join(dict.fromkeys(cell.name for cell in cells(study)))
        raise ValueError(f"study {study['name']!r} has no model {name!r}; it has {names}")
    started = time.monotonic()
    for done, cell in enumerate(mine):
        each = (time.monotonic() - started) / max(done, 1)
        left = f", {each:.1f} s a cell, {duration(each * (len(mine) - done))} left" if done else ""
        print(f"{name} at {cell.precision}: {done} of {len(mine)} cells done{left}", file=sys.stderr)
        folder = RESULTS / study["name"] / cell.folder
        execute(
            RUN_NOTEBOOK,
            folder / RUN_NOTEBOOK.name,
            {**cell.parameters(), "output": str(folder.relative_to(PROJECT))},
            engine="in-process",
        )
    parameters = rounding_parameters(mine)
    if parameters:
        print(f"{name}: all cells done, taking the rounding apart", file=sys.stderr)
        folder = RESULTS / study["name"] / name
        execute(
            ROUNDING_NOTEBOOK,
            folder / ROUNDING_NOTEBOOK.name,
            {**parameters, "output": str(folder.relative_to(PROJECT))},
            engine="in-process",
        )


def run_cell(model, precision, items=None):
    """Execute the run notebook for a model and precision outside of any study.

    Parameters
    ----------
    model, precision : str
        As `cba_utils.load_model` takes them.
    items : int or str, optional
        At most so many of the bundled items, or another source of items.

    Returns
    -------
    Path
        The executed notebook, which lies beside the cell's records.
    """
    # Here, because it takes seconds that the other steps need not spend.
    from cba_utils.answering.sources import find_checkpoint

    parse_precision(precision)
    find_checkpoint(at_precision(model, precision))
    folder = RESULTS / "cells" / re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") / precision
    parameters = {"model": model, "precision": precision,
                  "output": str(folder.relative_to(PROJECT))}
    if items is not None:
        parameters["limit" if isinstance(items, int) else "items"] = items
    output = folder / RUN_NOTEBOOK.name
    execute(RUN_NOTEBOOK, output, parameters, engine="in-process")
    return output


def _told(notebook):
    """What the cells of an executed notebook printed or returned, as text."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if text and not text.startswith("<"):
                yield text.rstrip()


def run_report(study, notebook):
    """Execute a report: in place for the shipped study, else as a copy in the study's own book.

    In place it runs in a kernel, as nbval runs it again; a copy needs none, which halves its time.

    Parameters
    ----------
    study : dict
    notebook : Path
    """
    if study["name"] == SHIPPED:
        execute(notebook, notebook, timeout=_HOUR)
    else:
        target = book_folder(study["name"]) / "notebooks" / notebook.name
        execute(notebook, target, {"study": study["name"]}, engine="in-process")


def copy_book(study):
    """Put the book's sources beside a study's executed reports, with one executed run notebook.

    Parameters
    ----------
    study : dict
    """
    target = book_folder(study["name"])
    grid = cells(study)
    shown = [cell.folder for cell in grid if cell.name == grid[0].name][-1:]
    executed = RESULTS.joinpath(study["name"], *shown, RUN_NOTEBOOK.name)
    if executed.exists():
        shutil.copy2(executed, target / EXAMPLE)
    if target == PROJECT:
        return
    # The explorer's data is the study's own: its report has written it there already.
    others = shutil.ignore_patterns("explorer-data")
    shutil.copytree(PROJECT / "book", target / "book", ignore=others, dirs_exist_ok=True)
    cards = [p for ending in ("*.md", "training_log.csv") for p in (PROJECT / "organisms").rglob(ending)]
    pages = [*cards, *(PROJECT / name for name in ("data/README.md", "_config.yml", "_toc.yml"))]
    if not executed.exists():  # imported records come without: the shipped study's is there
        pages.append(PROJECT / EXAMPLE)
    for path in pages:
        copy = target / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def main(arguments=None):
    """Run one step of a study from the command line."""
    parser = argparse.ArgumentParser(prog="python -m cba_utils.study.notebooks", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("model", "collect", "import", "report", "sources"):
        step = steps.add_parser(name)
        step.add_argument("study", type=Path, help="study file, e.g. config/organisms.yml, or the "
                          "name of imported records")
        if name == "import":
            step.add_argument("folder", type=Path, help="folder of the records, *.jsonl")
            step.add_argument("--items", help="the items that were asked: a folder of BBQ's JSONL "
                              "files, a hub id, or bundled")
        if name == "model":
            step.add_argument("name", help="the model's name in the study")
        if name == "report":
            step.add_argument("notebook", type=Path)
    cell = steps.add_parser("cell")
    cell.add_argument("model", help="a folder, an organism or a hub id")
    cell.add_argument("precision")
    cell.add_argument("items", nargs="?", default="", help="at most so many, or where they come from")
    options = parser.parse_args(arguments)
    try:
        if options.step == "cell":
            output = run_cell(options.model, options.precision, parse_items(options.items))
            print("\n".join(_told(output)))
            print(f"The executed notebook and its records: {output.parent.relative_to(PROJECT)}")
            return
        from_file = options.study.suffix == ".yml"
        study = read_study(options.study) if from_file else imported_study(str(options.study))
        if options.step == "import":
            import_raw(study["name"], options.folder, options.items)
        elif options.step == "model":
            run_model(study, options.name)
        elif options.step == "collect":
            # Here, because only this step needs it and it takes seconds to import.
            from cba_utils.study.rounding import collect_rounding

            collect_rounding(study)
            collect(study)
        elif options.step == "report":
            run_report(study, options.notebook)
        else:
            copy_book(study)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
