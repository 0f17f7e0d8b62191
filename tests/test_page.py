"""A page shows the same in a bare notebook and in the book, and text from data stays text."""

import base64
import re

from cba_utils.telling import drawing as figures
from cba_utils.telling import page as pages
from cba_utils.telling.drawing import CARD
from cba_utils.telling.page import PROBABILITIES, Page, for_book, plain
from cba_utils.telling.tables import table_html
from conftest import ROOT

import nbformat
import pandas as pd
import pytest

HOSTILE = "<script>alert(1)</script> **bold** a_b_c | $x$"


class Study:
    exact, speechless = False, False


class Chapter(Page):
    needs = {"b": PROBABILITIES}
    name, number = HOSTILE, 0.5


@pytest.fixture
def chapter(monkeypatch):
    templates = {
        "test_page.md.j2": "{% block a %}It is {{ page.name }}.{% endblock %}"
        "{% block b %}unasked{% endblock %}{% block c %}{{ page.number }}{% endblock %}"
        "{% block d %}{{ page.nothing }}{% endblock %}",
        "common.md.j2": "{% block no_probabilities %}None here.{% endblock %}",
    }
    monkeypatch.setattr(pages._TEMPLATES, "loader", pages.jinja2.DictLoader(templates))
    monkeypatch.setattr(pages._TEMPLATES, "cache", {})
    return Chapter(Study())


def test_text_from_data_is_never_markup(chapter):
    text = chapter.text("a")
    assert not re.search(r"(?<!\\)[<*_|$]", text) and plain(text) == f"It is {HOSTILE}."
    table = table_html(pd.DataFrame({"answer": [HOSTILE], "p": [1.0]}), {"p": str})
    assert "<script" not in table and "&lt;script&gt;" in table


def test_what_records_lack_is_said_in_its_place_and_a_typo_is_an_error(chapter):
    assert chapter.text("b") == "None here."
    with pytest.raises(TypeError, match="0.5.*filter"):
        chapter.text("c")
    with pytest.raises(pages.jinja2.UndefinedError, match="nothing"):
        chapter.text("d")
    with pytest.raises(ValueError, match="no figure 'x'"):
        chapter._part("figure", "x")


def converted():
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if "open_page" in str(notebook.cells):
            found.append(pytest.param(notebook, id=path.name))
    return found


@pytest.mark.parametrize("notebook", converted())
def test_a_bare_notebook_shows_its_figures_and_texts(notebook):
    """As images that viewers show without trust, with alt text, and as Markdown without roles."""
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    figures = [o for o in outputs if o.metadata.get("cba", {}).get("kind") == "figure"]
    for figure in figures:
        assert base64.b64decode(figure.data["image/png"]).startswith(b"\x89PNG")
        assert figure.metadata["image/png"]["alt"] == figure.data["text/plain"]
    texts = [o.data["text/markdown"] for o in outputs if "text/markdown" in o.data]
    assert texts and not [t for t in texts if "{glue" in t or "{doc}" in t]
    assert not [c for c in notebook.cells if c.cell_type == "markdown" and "{glue" in c.source]


@pytest.mark.parametrize("notebook", converted())
def test_the_book_has_the_same_texts_and_captions(notebook):
    texts = [
        o.data["text/markdown"]
        for c in notebook.cells
        for o in c.get("outputs", [])
        if o.metadata.get("cba", {}).get("kind") == "text"
    ]
    read = nbformat.from_dict(for_book(nbformat.from_dict(notebook)))
    prose = "\n\n".join(c.source for c in read.cells if c.cell_type == "markdown")
    assert all(text in prose for text in texts)
    for cell in read.cells:
        kinds = [o.metadata.get("cba", {}).get("kind") for o in cell.get("outputs", [])]
        assert not {"text", "caption"} & {*kinds}
        if kinds == ["figure"]:
            shown = cell.outputs[0].data["text/html"]
            assert "currentColor" in shown and CARD not in shown and "aria-label" in shown
            assert cell.metadata.mystnb["figure"]["name"].startswith("fig-")


def test_a_figure_that_a_run_notebook_shows_has_no_caption_to_lift(monkeypatch):
    shown = {}
    monkeypatch.setattr(
        figures,
        "display",
        lambda data, metadata, **_: shown.update(
            data=data, metadata=metadata, output_type="display_data"
        ),
    )
    figures.show(figures.nothing("x"), "one_cell", "Shares: 0.1")
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "", "outputs": [shown]}
    read = for_book({"cells": [cell]})["cells"][0]
    assert "mystnb" not in read["metadata"] and "<svg" in read["outputs"][0]["data"]["text/html"]
