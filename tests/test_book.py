"""What must hold of the book before and after it is built."""

import importlib
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from cba_utils.study.notebooks import EXAMPLE
from cba_utils.telling.page import for_book
from cba_utils.telling.tables import table_html

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

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
    if path in REPORTS:  # the book shows what it says, and not how it was called
        assert all("remove-input" in cell.metadata.get("tags", []) for cell in cells)


@by_name(REPORTS)
def test_report_is_committed_with_outputs_and_every_figure_with_alt_text(path):
    outputs = [output for cell in code(path) for output in cell.outputs]
    assert outputs, "a report without outputs passes nbval without being compared"
    read = nbformat.from_dict(for_book(nbformat.read(path, as_version=4)))
    cells = [c for c in read.cells if c.cell_type == "code"]
    drawings = re.findall(
        r"<svg[^>]*>", "".join(str(o.get("data", "")) for c in cells for o in c.outputs)
    )
    for drawing in drawings:
        label = re.search(r'aria-label="([^"]*)"', drawing)
        assert label and DIGITS.search(label[1]), f"no alt text with numbers: {drawing[:80]}"
    captioned = {
        c.metadata.mystnb["figure"]["name"]: c
        for c in cells
        if "figure" in c.metadata.get("mystnb", {})
    }
    tables = {name for name in captioned if name.startswith("tab-")}
    assert len(captioned) - len(tables) == len(drawings)
    for name, cell in captioned.items():
        if name in tables:
            assert "cba-table" in str(cell.outputs)
        else:
            assert "{glue:text}" in cell.metadata.mystnb["figure"]["caption"] or DIGITS.search(
                cell.metadata.mystnb["figure"]["caption"]
            )


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


def test_a_model_of_a_million_weights_has_no_opinions_and_no_item_is_biased():
    for page in PROJECT.glob("book/*.md"):
        found = re.search(r"biased items?\b|\b(belief|believes|opinion)", page.read_text(), re.I)
        assert not found, f"{page.name}: {found and found[0]}"


def test_every_page_is_in_the_table_of_contents():
    toc = yaml.safe_load((PROJECT / "_toc.yml").read_text())
    listed = {toc["root"]} | {c["file"] for part in toc["parts"] for c in part["chapters"]}
    pages = [*PROJECT.glob("book/*.md"), PROJECT / EXAMPLE, *REPORTS]
    assert {str(p.relative_to(PROJECT).with_suffix("")) for p in pages} == listed


def test_every_work_that_is_cited_is_in_the_bibliography_and_the_other_way_round():
    pages = [*PROJECT.glob("book/*.md"), *REPORTS]
    lists = re.findall(r"\{cite:\w+\}`([^`]*)`", "\n".join(p.read_text() for p in pages))
    cited = {key.strip() for keys in lists for key in keys.split(",")}
    entries = re.findall(
        r"^@\w+\{([^,]+),", (PROJECT / "book/references.bib").read_text(), re.MULTILINE
    )
    assert sorted(entries) == sorted(cited)


def test_every_text_that_a_page_cites_from_a_notebook_is_glued_there():
    texts = "\n".join(page.read_text() for page in PROJECT.glob("book/*.md"))
    cited = re.findall(r"\{glue:text\}`\.\./(notebooks/\w+\.ipynb)::(\w+):s`", texts)
    glued = {
        (str(path.relative_to(PROJECT)), output.metadata.scrapbook.name)
        for path in NOTEBOOKS
        for cell in code(path)
        for output in cell.outputs
        if "scrapbook" in output.get("metadata", {})
    }
    assert cited and set(cited) <= glued


def test_every_module_is_in_the_reference():
    text = "".join(page.read_text() for page in sorted((BUILT / "book").glob("api*.html")))
    listed = set(re.findall(r'id="module-([\w.]+)"', text))
    modules = {
        ".".join(p.relative_to(PROJECT).with_suffix("").parts)
        for p in PROJECT.glob("cba_utils/**/*.py")
        if p.name != "__init__.py"
    }
    assert modules <= listed


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


def built_pages():
    if not (BUILT / "index.html").exists():
        pytest.skip("no built book: run `make pages`")
    return [p for p in BUILT.rglob("*.html") if "_static" not in p.parts]


def test_no_link_and_no_image_is_broken():
    soups = {
        page.resolve(): BeautifulSoup(page.read_text(), "html.parser") for page in built_pages()
    }
    ids = {page: {node["id"] for node in soup.select("[id]")} for page, soup in soups.items()}
    broken = []
    for page, soup in soups.items():
        for node in soup.select("a[href], img[src], link[href], script[src]"):
            address = node.get("href", node.get("src"))
            if re.match(r"\w+:|//", address):
                continue
            path, _, anchor = address.partition("#")
            target = (page.parent / unquote(path.split("?")[0])).resolve() if path else page
            # with an equals sign it is the explorer's state, not a place on the page
            known = "=" in anchor or target not in ids or unquote(anchor) in ids[target] | {""}
            if not (target.exists() and known):
                broken.append(f"{page.name}: {address}")
    assert not broken


def test_tables_are_numbered_and_named_and_equations_need_no_script():
    numbers, equations = [], 0
    for page in built_pages():
        soup = BeautifulSoup(page.read_text(), "html.parser")
        for table in soup.select(".cba-table"):
            words = soup.find(id=table.get("aria-labelledby")) or table["aria-label"]
            assert getattr(words, "text", words) not in ("", "table"), page.name
        numbers += [int(n.text.split()[1]) for n in soup.select(".cba-numbered .caption-number")]
        blocks = soup.select(".cba-equation")
        assert all(block.find("math") and block.select_one(".eqno") for block in blocks)
        assert not soup.select('script[src*="mathjax" i]')
        equations += len(blocks)
    assert sorted(numbers) == list(range(1, len(numbers) + 1)) and len(numbers) > 10
    assert equations > 3


def test_pages_are_light():
    """A browser's time goes with a page's elements: 20,000 took 0.7 s on two slow cores."""
    weights = {
        p.name: (p.stat().st_size, len(re.findall("<[a-z]", p.read_text()))) for p in built_pages()
    }
    assert not {k: v for k, v in weights.items() if v[0] > 1e6 or v[1] > 20_000}


def test_a_link_to_the_book_shows_its_figure():
    page = BeautifulSoup(next(iter(built_pages())).read_text(), "html.parser")
    assert page.select_one('meta[property="og:image"]')["content"].endswith("preview.png")
    size = (BUILT / "_static" / "preview.png").read_bytes()[16:24]
    assert struct.unpack(">II", size) == (1200, 630)


def test_every_organism_is_in_the_book():
    built_pages()
    text = (BUILT / "book" / "models.html").read_text()
    for table in PROJECT.glob("organisms/*/*/acceptance.json"):
        assert re.search(rf">\s*{table.parent.name}\s*<", text)


def test_the_address_of_a_repository_turns_on_every_button(tmp_path):
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "book", tmp_path / "book")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(PROJECT / "notebooks" / "22_run_log.ipynb", tmp_path / "notebooks")
    config = yaml.safe_load((PROJECT / "_config.yml").read_text())
    config["repository"]["url"] = "https://github.com/someone/somewhere"
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "_toc.yml").write_text("{format: jb-book, root: notebooks/22_run_log}")
    subprocess.run(
        [Path(sys.executable).with_name("jupyter-book"), "build", tmp_path, "--quiet"],
        check=True,
        capture_output=True,
    )
    page = (tmp_path / "_build" / "html" / "notebooks" / "22_run_log.html").read_text()
    for address in (
        "https://github.com/someone/somewhere/edit/main/notebooks/22_run_log.ipynb",
        "https://github.com/someone/somewhere/issues/new",
        "https://github.com/someone/somewhere/blob/main/notebooks/22_run_log.ipynb",
        "https://mybinder.org/v2/gh/someone/somewhere/main",
        "https://colab.research.google.com/github/someone/somewhere/blob/main",
    ):
        assert address in page
    if (BUILT / "index.html").exists():
        ours = (BUILT / "notebooks" / "22_run_log.html").read_text()
        assert "mybinder" not in ours and "Suggest edit" not in ours


def test_built_pages_load_nothing_from_another_host():
    for page in built_pages():
        loads = Loads()
        loads.feed(page.read_text())
        for address in loads.found:
            assert not re.match(r"(https?:)?//", address), f"{page}: {address}"


def test_columns_of_words_have_room_and_others_are_left_alone(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "book" / "_ext")
    give_words_room = importlib.import_module("typeset").give_words_room
    frame = pd.DataFrame(
        {
            "at": ["q4"],
            "claim": ["more items gain an answer"],
            "n": [1200],
            "read": ["held: 1 (0 to 2)"],
        }
    )
    html = give_words_room(table_html(frame, {"n": "{:,.0f}".format}))
    cells = BeautifulSoup(html, "html.parser").find_all(["th", "td"])
    assert [cell.get("class") for cell in cells] == 2 * [None, ["words"], ["num"], None]
    assert give_words_room("<p>no table</p>") == "<p>no table</p>"


@by_name(REPORTS)
def test_no_sentence_is_broken_in_two_and_none_runs_into_the_next(path):
    for cell in code(path):
        for output in cell.outputs:
            text = output.get("data", {}).get("text/markdown", "")
            parts = re.split(r"\n[ ]*\n", text)
            for before, after in zip(parts, parts[1:], strict=False):
                ends = re.search(r"[^\w,;]\W*$", before) or re.match(r"\s*([-*|#:]|\d+\. )", after)
                assert ends, (before[-60:], after[:60])
            words = re.sub(r"`[^`]*`|\([^)]*\)|\w+\.\w+\.\w+", "", text)
            assert not re.search(r"[a-z0-9%)][.;][A-Z][a-z]", words), words
