"""The item explorer: what the data say is what the page shows, as text and never as HTML."""

import json
import shutil
from pathlib import Path

from cba_utils.study.protocol import book_folder
from cba_utils.telling import explorer
from cba_utils.telling.study import Study, open_study
from test_browser import BUILT, CHROMIUM, FLAGS

import numpy as np
import pandas as pd
import pytest

STATIC = Path(__file__).parents[1] / "book" / "_static"
PLANTED = (
    "<script>window.planted = 1</script><img src=x onerror='window.planted = 1'> & \"quoted\" "
    "</script> **bold** [link](javascript:planted) `code`\n# heading $x^2$"
)
ROLES = ["stereotyped", "anti_stereotyped", "unknown"]


def make_study(n, models, precisions, text="plain", probabilities=True):
    """A study of n items, the first ambiguous and all texts ending in ``text``."""
    rng = np.random.default_rng(0)
    number = np.arange(n)
    items = pd.DataFrame(
        {
            "item_id": [f"Cat{k % 3}{text[:8]}/{k}" for k in number],
            "category": [f"Cat{k % 3} {text}" for k in number],
            "question_index": 1,
            "question_polarity": np.where(number % 2, "nonneg", "neg"),
            "context_condition": np.where(number % 4 == 3, "disambig", "ambig"),
            **{name: [f"{name} {k} {text}" for k in number] for name in explorer.ITEM_TEXTS[4:]},
            "label": 2,
            **{f"{role}_index": k for k, role in enumerate(ROLES)},
        }
    )
    cells = items[["item_id", "category", "context_condition"]].assign(template_id="T/1")
    grid = pd.DataFrame(
        [(m, p) for m in models for p in precisions], columns=["model", "precision"]
    )
    cells = grid.merge(cells, how="cross").assign(family=lambda d: d["model"], replicate=1)
    p = rng.dirichlet([1, 1, 1], len(cells)).round(3)
    answers = cells.assign(
        **{f"p_{role}": p[:, k] for k, role in enumerate(ROLES)}, p_other=0.0, p_correct=p[:, 2]
    )
    samples = cells.merge(pd.DataFrame({"seed": [42, 123]}), how="cross")
    role = np.repeat(p.argmax(axis=1), 2)
    samples = samples.assign(role=np.array(ROLES)[role], correct=role == 2)
    return Study("made", items, answers if probabilities else answers[:0], samples, None, None)


def assigned(text):
    return json.loads(text.removeprefix("window.cbaExplorer = ").removesuffix(";\n"))


def test_planted_markup_stays_text_in_data_files_and_static_table(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "book_folder", lambda name: tmp_path)
    report = make_study(8, ["m"], ["bf16", "q3"], PLANTED)
    shares = explorer.answer_shares(report)
    folder = explorer.write(report, shares)
    script = (folder / "data.js").read_text()
    assert "<" not in script
    data = assigned(script)
    assert data["items"]["context"] == report.items["context"].tolist()
    assert data["items"]["ans1"][3] == f"ans1 3 {PLANTED}"
    assert (
        pd.read_csv(folder / "items.csv")["question"].tolist() == report.items["question"].tolist()
    )
    page = explorer.page(report, shares)
    assert page.count("<script") == page.count("</script>") == 3
    assert "&lt;script&gt;window.planted = 1&lt;/script&gt;" in page
    assert "<img" not in page and "&amp; &#34;quoted&#34;" in page
    assert "\n\n" not in page.split("cba-explorer-static")[1], "a blank line would end raw HTML"


def test_shares_are_the_answers_and_changes_those_of_the_draws():
    report = make_study(12, ["b", "a"], ["bf16", "q4", "q3"])
    shares = explorer.answer_shares(report)
    assert list(dict.fromkeys(zip(shares["model"], shares["precision"], strict=True))) == [
        (m, p) for m in "ba" for p in ("bf16", "q4", "q3")
    ]
    for role in ROLES:
        assert shares[role].tolist() == report.answers[f"p_{role}"].tolist()
    first = report.samples.drop_duplicates(["model", "precision", "item_id"])
    role = first.pivot(index=["model", "item_id"], columns="precision", values="role")
    shown = shares.pivot(index=["model", "item_id"], columns="precision", values="change")
    became = (role["bf16"] != "stereotyped") & (role["q3"] == "stereotyped")
    number = shown.index.get_level_values("item_id").str.split("/").str[1].astype(int)
    ambiguous = number % 4 != 3
    assert shown["q3"].str.contains("became_biased").tolist() == (became & ambiguous).tolist()
    data = explorer.page_data(report, shares)
    cell = data["cells"][-1]
    assert (cell["model"], cell["precision"]) == ("a", "q3")
    assert cell["p"][:3] == [round(1000 * p) for p in shares.loc[shares.index[-12], ROLES]]
    assert {data["changes"][k] for k in cell["change"][3::4]} == {""}


def test_a_study_without_probabilities_shows_shares_of_draws_and_says_so():
    report = make_study(6, ["m"], ["bf16", "q3"], probabilities=False)
    shares = explorer.answer_shares(report)
    assert set(np.unique(shares[ROLES])) == {0.0, 1.0}
    assert "share of the 2 seeded draws" in explorer.page(report, shares)
    bare = report.items[["item_id", "category", *(f"{role}_index" for role in ROLES)]]
    report.items = bare  # imported records hold no texts
    assert explorer.page_data(report, shares)["items"]["question"] == [""] * 6


def test_shipped_data_is_that_of_the_shipped_records(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "book_folder", lambda name: tmp_path)
    report = open_study("organisms")
    folder = explorer.write(report, explorer.answer_shares(report))
    committed = book_folder("organisms") / "book" / "_static" / "explorer-data"
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page in a context of its own; what goes wrong on any of them fails the test."""
    problems, contexts = [], []

    def opened(address, **options):
        contexts.append(browser.new_context(viewport={"width": 390, "height": 844}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(f"script error {error}"))
        page.on(
            "console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else 0
        )
        page.on("requestfailed", lambda r: problems.append(f"not loaded {r.url}"))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def made_page(tmp_path, monkeypatch):
    """Address of the explorer of a made study, with the book's static files beside it."""

    def make(*study):
        monkeypatch.setattr(explorer, "book_folder", lambda name: tmp_path)
        report = make_study(*study)
        shares = explorer.answer_shares(report)
        explorer.write(report, shares)
        for name in ("explorer.js", "explorer.css"):
            shutil.copy(STATIC / name, tmp_path / "book" / "_static" / name)
        shutil.copytree(STATIC / "vendor", tmp_path / "book" / "_static" / "vendor")
        page = tmp_path / "book" / "notebooks" / "60_explorer.html"
        page.parent.mkdir()
        page.write_text(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Made</title>'
            f"<body>{explorer.page(report, shares)}"
        )
        return page.as_uri()

    return make


def address(kind, made_page):
    if kind == "made":
        return made_page(24, ["one", "two"], ["bf16", "q4", "q3"])
    page = BUILT / "notebooks" / "60_explorer.html"
    if not page.exists():
        pytest.skip("no built book: run `make book`")
    return page.as_uri()


def count(page):
    return int(page.locator("#cba-explorer [role=status]").inner_text().split()[0])


@pytest.mark.parametrize("kind", ["made", "built"])
def test_filters_choice_and_link(kind, made_page, visit):
    page = visit(address(kind, made_page))
    page.wait_for_selector(".tabulator-row a")
    assert not page.is_visible("#cba-explorer-static")
    start = count(page)
    last = page.locator("select[name=model] option").last.get_attribute("value")
    page.select_option("select[name=model]", last)
    page.select_option("select[name=context]", "all")
    assert count(page) > start
    page.select_option("select[name=polarity]", "neg")
    page.select_option("select[name=category]", index=1)
    page.select_option("select[name=precision]", "q3")
    assert 0 < count(page) < start
    # the keyboard reaches the sort buttons and the items, and keeps its place
    page.focus("[tabulator-field=after] button")
    page.keyboard.press("Enter")
    shown = page.locator(".tabulator-cell[tabulator-field=after]").all_inner_texts()
    values = [float(text.split("\u00a0")[0]) for text in shown]
    assert values == sorted(values, reverse=True)
    row = page.locator(".tabulator-row a").nth(1)
    chosen = row.inner_text()
    row.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f".cba-item h3:text-is('{chosen}')")
    assert page.evaluate("document.activeElement.textContent") == chosen
    assert page.locator("[aria-selected=true] a").inner_text() == chosen
    # a link to a heading is no choice: what is chosen stays so
    page.evaluate("location.hash = '#a-heading'")
    page.select_option("select[name=polarity]", "all")
    assert page.locator(".cba-item h3").inner_text() == chosen
    text = page.locator(".cba-item").inner_text()
    assert "negative question" in text and f"What {last} answers" in text
    precisions = page.locator("select[name=precision] option").count()
    assert page.locator(".cba-item tbody tr").count() == precisions + 1
    again = visit(page.url)
    again.wait_for_selector(f".cba-item h3:text-is('{chosen}')")
    assert count(again) == count(page)
    assert again.locator(".cba-item").inner_text() == text
    for name in ("model", "precision", "category", "polarity", "context", "change"):
        select = f"select[name={name}]"
        assert again.input_value(select) == page.input_value(select)


def test_change_filter_keeps_only_items_that_changed_so(made_page, visit):
    page = visit(made_page(24, ["one"], ["bf16", "q3"]))
    page.select_option("select[name=change]", "became_biased")
    shown = page.locator(".tabulator-cell[tabulator-field=change]").all_inner_texts()
    assert shown and all("became biased" in text for text in shown)


def test_an_address_of_another_study_says_so_and_breaks_nothing(made_page, visit):
    page = visit(made_page(4, ["m"], ["bf16"]) + "#model=other&precision=q9&item=%3Cb%3Ex/1")
    page.wait_for_selector("text=This study has no item “<b>x/1”.")
    assert page.input_value("select[name=model]") == "m"


def test_planted_markup_is_shown_and_not_run(made_page, visit):
    uri = made_page(8, ["<img src=x onerror='window.planted = 1'>"], ["bf16", "q3"], PLANTED)
    page = visit(uri)
    page.locator(".tabulator-row [tabulator-field=after]").nth(1).click()
    page.wait_for_selector(".tabulator-row:nth-child(2)[aria-selected=true]")
    detail = page.locator(".cba-item").text_content()
    assert detail.count(PLANTED) == 6  # category, context, question and three answers
    assert "What <img src=x onerror" in detail
    assert page.evaluate("window.planted") is None
    assert page.locator("#cba-explorer :is(script, img, strong, code)").count() == 0


def test_without_scripts_the_static_table_stands_in(made_page, visit):
    uri = made_page(8, ["m"], ["bf16", "q3"], PLANTED)
    page = visit(uri, java_script_enabled=False)
    assert not page.is_visible("#cba-explorer")
    assert "shows 6 of 8 items" in page.locator("#cba-explorer-static").inner_text()
    assert page.locator("#cba-explorer-static td").nth(1).text_content().count(PLANTED) == 2


def test_a_study_of_the_published_size_opens_and_filters(made_page, visit):
    page = visit(made_page(1500, ["a", "b", "c"], ["bf16", "q8", "q6", "q4", "q3"]))
    page.select_option("select[name=context]", "all")
    assert count(page) == 1500
    page.select_option("select[name=category]", index=2)
    assert count(page) == 500
    assert 0 < page.locator(".tabulator-row").count() < 100, "only rows in view are drawn"
