"""What must hold of the book before and after it is built."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml

from cba_utils.run import EXAMPLE

PROJECT = Path(__file__).parents[1]
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
REPORTS = [path for path in NOTEBOOKS if path.name[0] in "23456789"]
BUILT = PROJECT / "_build" / "html"
DIGITS = re.compile(r"\d")


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


def code(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@by_name(NOTEBOOKS)
def test_notebook_has_one_parameters_cell_no_error_and_only_thin_cells(path):
    cells = code(path)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert all(cell.source.count("\n") < 30 and "def " not in cell.source for cell in cells)


@by_name(REPORTS)
def test_report_is_committed_with_outputs_and_every_figure_with_alt_text(path):
    outputs = [output for cell in code(path) for output in cell.outputs]
    assert outputs, "a report without outputs passes nbval without being compared"
    drawings = re.findall(r"<svg[^>]*>", "".join(str(o.get("data", "")) for o in outputs))
    for drawing in drawings:
        label = re.search(r'aria-label="([^"]*)"', drawing)
        assert label and DIGITS.search(label[1]), f"no alt text with numbers: {drawing[:80]}"
    captioned = [c for c in code(path) if "figure" in c.metadata.get("mystnb", {})]
    assert len(captioned) == len(drawings)
    assert all("{glue:text}" in c.metadata.mystnb.figure.caption for c in captioned)


@by_name(REPORTS)
def test_report_follows_the_page_skeleton(path):
    text = "\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
    )
    assert text.startswith("# ") and "**Question.**" in text
    for heading in ("## What it does not show", "## How to re-run it"):
        assert heading in text


def prose(text):
    """A page's words, without front matter, code, roles, link targets and directive lines."""
    text = re.sub(r"\A---.*?---", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\{[a-z:]+\}`[^`]*`|`[^`]*`|\]\([^)]*\)", "", text)
    return re.sub(r"^(:::.*|:[a-z-]+:.*|\d+\. )", "", text, flags=re.MULTILINE)


def test_no_number_on_the_first_page_is_typed():
    text = prose((PROJECT / "book" / "index.md").read_text())
    # the name of a format and the level of the intervals are no results
    assert not DIGITS.search(re.sub(r"BF16|95 %", "", text))


def test_words_that_promise_too_much_are_absent():
    pages = [*PROJECT.glob("book/*.md"), PROJECT / "README.md", *REPORTS]
    for page in pages:
        assert not re.search(r"debias|fair model|unbiased model", page.read_text(), re.IGNORECASE)


def test_every_page_is_in_the_table_of_contents():
    toc = yaml.safe_load((PROJECT / "_toc.yml").read_text())
    listed = {toc["root"]} | {c["file"] for part in toc["parts"] for c in part["chapters"]}
    pages = [*PROJECT.glob("book/*.md"), PROJECT / EXAMPLE, *REPORTS]
    assert {str(p.relative_to(PROJECT).with_suffix("")) for p in pages} == listed


def test_every_module_is_in_the_reference():
    text = (PROJECT / "book" / "api.md").read_text()
    listed = re.findall(r"automodule:: cba_utils\.(\w+)", text)
    modules = {p.stem for p in PROJECT.glob("cba_utils/*.py")} - {"__init__"}
    assert sorted(listed) == sorted(modules)


def test_the_example_is_the_run_notebook_executed():
    run, shown = (code(PROJECT / path) for path in ("notebooks/10_evaluate.ipynb", EXAMPLE))
    executed = [c for c in shown if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [c.source for c in executed] == [c.source for c in run]
    assert len(shown) == len(run) + 1 and shown[-1].outputs


class Loads(HTMLParser):
    """Addresses that a browser fetches when it opens a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") in ("next", "prev", "index", "search", "author"):
            return
        name = {"link": "href", "script": "src", "img": "src", "iframe": "src"}.get(tag)
        if attributes.get(name):
            self.found.append(attributes[name])


def test_built_pages_load_nothing_from_another_host():
    if not (BUILT / "index.html").exists():
        pytest.skip("no built book: run `make book`")
    for page in BUILT.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        for address in loads.found:
            assert not re.match(r"(https?:)?//", address), f"{page}: {address}"
