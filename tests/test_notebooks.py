"""nbval really compares: a planted wrong number must fail."""

import re
import shutil
import subprocess
import sys

from conftest import ROOT

import nbformat
import pytest

NOTEBOOK = ROOT / "notebooks" / "22_run_log.ipynb"


def regression(path):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy():
    """A copy beside the original, where relative paths still hold."""
    path = NOTEBOOK.with_name("test_copy.ipynb")
    shutil.copy(NOTEBOOK, path)
    yield path
    path.unlink()


def test_a_planted_wrong_number_fails_the_regression(copy):
    notebook = nbformat.read(copy, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/html", "")
            planted = re.sub(r">(\d+)<", lambda m: f">{int(m[1]) + 1}<", text, count=1)
            if planted != text:
                output["data"]["text/html"] = planted
                nbformat.write(notebook, copy)
                done = regression(copy)
                assert done.returncode == 1, done.stdout[-2000:]
                assert "failed" in done.stdout
                return
    pytest.fail("no output of the notebook shows a whole number")


def test_reports_load_no_model_library():
    """It takes seconds, and what it prints on some machines would differ from the committed outputs."""
    code = (
        "import sys; from pathlib import Path; from importlib import import_module\n"
        "for p in Path('cba_utils/chapters').glob('*.py'): import_module(f'cba_utils.chapters.{p.stem}')\n"
        "sys.exit(str(sorted({'mlx_lm', 'transformers', 'torch'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""
