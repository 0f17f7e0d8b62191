"""Execute a study's notebooks: its cells, its reports, one cell by hand.

papermill does the work; this module passes parameters as typed values, refuses unknown ones
(papermill would only warn), sets a timeout, and lets no half-executed notebook take the place of
a whole one.
"""

import gc
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

from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.sources import at_precision
from cba_utils.names import PROJECT, RESULTS
from cba_utils.study.estimate import duration
from cba_utils.study.files import cannot_write, read_json, remove_scratch, scratch_for, write_text
from cba_utils.study.protocol import SHIPPED, book_folder, cells, model_slug, rounding_parameters
from cba_utils.study.states import States

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
                if isinstance(error, KeyboardInterrupt):
                    raise error
                if error:
                    cell.outputs.append(
                        new_output(
                            "error", ename=type(error).__name__, evalue=str(error), traceback=[]
                        )
                    )
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
    scratch = scratch_for(output)
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


def run_model(study, name, part=None):
    """Execute the run notebook for every cell of one model, and take its rounding apart.

    Parameters
    ----------
    study : dict
    name : str
        The model's name in the study.
    part : str, optional
        One of its precisions, or ``"rounding"``: this cell alone, or the taking apart alone.
    """
    known = cells(study)
    mine = [cell for cell in known if cell.name == name]
    if not mine:
        names = ", ".join(dict.fromkeys(cell.name for cell in known))
        raise ValueError(f"study {study['name']!r} has no model {name!r}; it has {names}")
    parameters = rounding_parameters(known, name)
    parts = [cell.precision for cell in mine] + (["rounding"] if parameters else [])
    if part and part not in parts:
        raise ValueError(
            f"study {study['name']!r} has no {part!r} of {name!r}; it has {', '.join(parts)}"
        )
    mine = [cell for cell in mine if part in (None, cell.precision)]
    started = time.monotonic()
    for done, cell in enumerate(mine):
        each = (time.monotonic() - started) / max(done, 1)
        left = f", {each:.1f} s a cell, {duration(each * (len(mine) - done))} left" if done else ""
        print(
            f"{name} at {cell.precision}: {done} of {len(mine)} cells done{left}", file=sys.stderr
        )
        folder = RESULTS / study["name"] / cell.folder
        execute(
            RUN_NOTEBOOK,
            folder / RUN_NOTEBOOK.name,
            {**cell.parameters(), "output": str(folder.relative_to(PROJECT))},
            engine="in-process",
        )
    if part is None:
        remove_states(study["name"], mine)
    if parameters and part in (None, "rounding"):
        print(f"{name}: taking the rounding apart", file=sys.stderr)
        folder = RESULTS / study["name"] / name
        execute(
            ROUNDING_NOTEBOOK,
            folder / ROUNDING_NOTEBOOK.name,
            {**parameters, "output": str(folder.relative_to(PROJECT))},
            engine="in-process",
        )


def remove_states(name, mine):
    """Make room where reference states of cells wait for the cells that are compared with them.

    Parameters
    ----------
    name : str
        Of the study.
    mine : list of Cell
        All of them done.
    """
    for cell in mine:
        known = read_json(RESULTS / name / cell.folder / "provenance.json")
        if known and known["identity"].get("reference"):
            States(known["identity"]).remove()


def run_cell(model, precision, items=None, prompt=None, compute=None, adapter=None):
    """Execute the run notebook for a model and precision outside of any study.

    Parameters
    ----------
    model, precision : str
        As `cba_utils.load_model` takes them.
    items : int or str, optional
        At most so many of the bundled items, or another source of items.
    prompt, compute : str, optional
        Instead of the run notebook's.
    adapter : str, optional
        A folder with an adapter, as `cba_utils.load_model` takes it.

    Returns
    -------
    Path
        The executed notebook, which lies beside the cell's records.
    """
    # Here, because it takes seconds that the other steps need not spend.
    from cba_utils.answering.adapters import find_adapter
    from cba_utils.answering.sources import find_checkpoint

    parse_precision(precision)
    find_checkpoint(at_precision(model, precision))
    if adapter:
        find_adapter(adapter)
    folder = RESULTS / "cells" / model_slug(adapter or model) / precision
    folder.mkdir(parents=True, exist_ok=True)
    remove_scratch(folder)
    parameters = {
        "model": model,
        "precision": precision,
        "output": str(folder.relative_to(PROJECT)),
    }
    if items is not None:
        parameters["limit" if isinstance(items, int) else "items"] = items
    changed = {"prompt": prompt, "compute": compute, "adapter": adapter}
    parameters |= {key: value for key, value in changed.items() if value}
    output = folder / RUN_NOTEBOOK.name
    execute(RUN_NOTEBOOK, output, parameters, engine="in-process")
    return output


def told(notebook):
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
    cards = [
        p for ending in ("*.md", "acceptance.json") for p in (PROJECT / "organisms").rglob(ending)
    ]
    pages = [*cards, *(PROJECT / name for name in ("data/README.md", "_config.yml", "_toc.yml"))]
    if not executed.exists():  # imported records come without: the shipped study's is there
        pages.append(PROJECT / EXAMPLE)
    for path in pages:
        copy = target / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
