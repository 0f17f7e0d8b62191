"""The item explorer: what the data say is what the page shows, as text and never as HTML."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

from cba_utils.study.protocol import book_folder
from cba_utils.telling import explorer
from cba_utils.telling.page import open_page
from cba_utils.telling.study import Study
from studies import PROVENANCE
from test_browser import BUILT, CHROMIUM, FLAGS

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from hypothesis import given
from hypothesis import strategies as st

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
    return Study(
        "made", items, answers if probabilities else answers[:0], samples, None, PROVENANCE
    )


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
    p, change = ([ord(letter) - data["packedFrom"] for letter in cell[k]] for k in ("p", "change"))
    last = (1000 * shares[explorer.OUTCOMES]).round().astype(int)[-12:]
    assert p == last.to_numpy().ravel().tolist()
    assert [data["changes"][k] for k in change] == shares["change"].tolist()[-12:]
    assert {data["changes"][k] for k in change[3::4]} == {""}


def test_a_study_without_probabilities_shows_shares_of_draws_and_says_so():
    report = make_study(6, ["m"], ["bf16", "q3"], probabilities=False)
    shares = explorer.answer_shares(report)
    assert set(np.unique(shares[ROLES])) == {0.0, 1.0}
    assert "share of the 2 seeded draws" in explorer.page(report, shares)
    bare = report.items[["item_id", "category", *(f"{role}_index" for role in ROLES)]]
    report.items = bare  # imported records hold no texts
    assert explorer.page_data(report, shares)["items"]["question"] == [""] * 6


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_packed_numbers_come_back_whole_through_the_script(numbers):
    text = assigned(explorer.script({"p": explorer.packed(numbers)}))["p"]
    assert [ord(letter) - explorer.PACKED_FROM for letter in text] == numbers


def test_the_page_opens_with_the_middle_model_and_not_with_an_outlier():
    changed = {"a": 9, "b": 0, "c": 1, "d": 4, "e": 0}
    rows = [
        (m, p, "became_biased" if k < n else "unchanged")
        for m, n in changed.items()
        for p in ("q4", "q3")
        for k in range(10)
    ]
    shares = pd.DataFrame(rows, columns=["model", "precision", "change"])
    assert explorer.start(shares) == ("c", "q3")


def test_what_was_planted_is_told_of_the_bank_alone(tmp_path, monkeypatch):
    report = make_study(12, ["m"], ["bf16", "q3"])
    known = pd.DataFrame(
        {
            "group": "g",
            "category": ["Cat0 plain", "Cat1 plain"],
            "question_index": 1,
            "margin": [0.7, None],
            "lean": [0.65, 0.95],
            "version": ["main", "heldout-template"],
        }
    )
    known.to_csv(tmp_path / "strengths.csv")
    monkeypatch.setattr(explorer, "STRENGTHS", tmp_path / "strengths.csv")
    monkeypatch.setattr(explorer, "planted_is_known", lambda: True)
    assert "margin" not in explorer.items_of(report), "these models are no organisms"
    monkeypatch.setattr(Study, "organisms", True)
    items = explorer.items_of(report)
    assert items["margin"].tolist()[:3] == ["0.7", "", ""]
    assert items["lean"].tolist()[:3] == ["0.65", "0.95", ""]
    report.items["version"] = ["main"] * 6 + ["heldout-template"] * 6
    monkeypatch.setattr(Study, "millions", 1.0)
    data = explorer.page_data(report, explorer.answer_shares(report))
    assert [name for name, _, _ in data["filters"]][3:] == ["version", "margin", "lean"]
    assert data["start"]["version"] == "main"


def test_forty_five_models_at_five_precisions_stay_light():
    report = make_study(488, [f"m{k}" for k in range(45)], ["bf16", "q8", "q6", "q4", "q3"])
    data = explorer.page_data(report, explorer.answer_shares(report))
    # random answers are the worst: of real ones most are near nought or one
    assert len(explorer.script(data).encode()) < 1e6


def test_shipped_data_is_that_of_the_shipped_records(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "book_folder", lambda name: tmp_path)
    report = open_page("items", "organisms").study
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
        page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:", "blob:")) or problems.append(r.url),
        )
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
    return int(page.locator("#cba-explorer .cba-count").inner_text().split()[0])


@pytest.mark.parametrize("kind", ["made", "built"])
def test_filters_choice_and_link(kind, made_page, visit):
    page = visit(address(kind, made_page))
    page.wait_for_selector(".tabulator-row a")
    assert not page.is_visible("#cba-explorer-static")
    start = count(page)
    last = page.locator("select[name=model] option").last.get_attribute("value")
    page.select_option("select[name=model]", last)
    for name in ("context", "version"):
        if page.locator(f"select[name={name}]").count():
            page.select_option(f"select[name={name}]", "all")
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
    page.wait_for_selector(f".cba-item h3:focus:text-is('{chosen}')")
    assert page.locator("[aria-selected=true] a").inner_text() == chosen
    # a link to a heading is no choice: what is chosen stays so
    page.evaluate("location.hash = '#a-heading'")
    page.select_option("select[name=polarity]", "all")
    assert page.locator(".cba-item h3").inner_text() == chosen
    text = page.locator(".cba-said").inner_text()
    assert "negative question" in text and f"What {last} answers" in text
    precisions = page.locator("select[name=precision] option").count()
    assert page.locator(".cba-said tbody tr").count() == precisions + 1
    models = page.locator("select[name=model] option").count()
    assert page.locator(".cba-all tbody tr").count() == models
    assert page.locator(".cba-all tbody td").count() == models * (precisions + 1)
    again = visit(page.url)
    again.wait_for_selector(f".cba-item h3:text-is('{chosen}')")
    assert count(again) == count(page)
    assert again.locator(".cba-said").inner_text() == text
    for name in ("model", "precision", "category", "polarity", "context", "change"):
        select = f"select[name={name}]"
        assert again.input_value(select) == page.input_value(select)


def listed(page):
    return page.locator(".tabulator-row a").all_inner_texts()


def test_change_filter_keeps_only_items_that_changed_so(made_page, visit):
    page = visit(made_page(24, ["one"], ["bf16", "q3"]))
    page.select_option("select[name=change]", "became_biased")
    shown = page.locator(".tabulator-cell[tabulator-field=change]").all_inner_texts()
    assert shown and all("gained stereotyped" in text for text in shown)


def test_search_finds_words_anywhere_in_an_item_and_reset_takes_all_back(made_page, visit):
    page = visit(made_page(24, ["one", "two"], ["bf16", "q3"]))
    page.wait_for_selector(".tabulator-row a")
    start = count(page), listed(page), page.input_value("select[name=model]")
    page.fill("[name=search]", "PLAIN  question 12")
    page.wait_for_function("document.querySelector('.cba-count').innerText.startsWith('1 ')")
    assert listed(page) == ["Cat0plain/12"]
    assert "search=PLAIN" in page.url
    page.select_option("select[name=model]", "one" if start[2] == "two" else "two")
    page.fill("[name=search]", "no such word")
    page.wait_for_selector("text=No item is left by these filters >> visible=true")
    page.click("text=Reset all filters")
    page.wait_for_function("!document.querySelector('[name=search]').value")
    page.wait_for_selector(".tabulator-row a")
    assert (count(page), listed(page), page.input_value("select[name=model]")) == start


def test_next_and_previous_walk_the_list_as_it_is_sorted(made_page, visit):
    page = visit(made_page(24, ["one"], ["bf16", "q3"]))
    page.click("[tabulator-field=id] button")
    page.wait_for_selector("[tabulator-field=id][aria-sort=ascending]")
    ids = sorted(listed(page), key=lambda name: (name[:4], int(name.split("/")[1])))
    assert listed(page) == ids, "9 comes before 10"
    page.locator(".tabulator-row a").nth(0).click()
    page.wait_for_selector("text=item 1 of 18.")
    page.click("text=Previous item", force=True)  # says that it is disabled, and leads nowhere
    for k in (1, 2):
        page.click("text=Next item")
        page.wait_for_selector(f".cba-item h3:text-is('{ids[k]}')")
    page.click("text=Previous item")
    page.wait_for_selector(f"text={ids[1]}: item 2 of 18.")


def test_one_item_in_every_model_is_what_each_model_answered(made_page, visit):
    page = visit(made_page(8, ["one", "two"], ["bf16", "q4", "q3"]) + "#model=two&item=Cat1plain/4")
    page.select_option("select[name=answer]", "unknown")
    page.wait_for_selector("caption:has-text('“unknown” in every model')")
    cells = page.locator(".cba-all tbody tr").nth(1).locator("td").all_inner_texts()
    own = page.locator(".cba-said tbody tr td:nth-of-type(3)").all_inner_texts()
    assert cells == own and len(cells) == 3
    page.locator(".cba-all a:text-is('one')").click()
    page.wait_for_selector("text=What one answers")
    assert page.locator(".cba-item h3").inner_text() == "Cat1plain/4"


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_picture_of_an_item_is_made_in_the_page(made_page, visit, tmp_path, ending):
    page = visit(made_page(8, ["<b>m</b>"], ["bf16", "q3"], PLANTED))
    page.wait_for_selector(".tabulator-row a")
    with page.expect_download() as wanted:
        page.click(f"button[name={ending}]")
    page.wait_for_selector("text=Saved made-")
    assert wanted.value.suggested_filename.endswith("." + ending)
    content = Path(wanted.value.path()).read_bytes()
    if ending == "png":
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 10_000
        return
    drawing = ElementTree.fromstring(content)
    names = {node.tag.split("}")[1] for node in drawing.iter()}
    assert names == {"svg", "title", "rect", "text"}, "what data hold is text in the picture too"
    words = " ".join(node.text for node in drawing.iter() if node.tag.endswith("text"))
    assert "What <b>m</b> answers" in words and "<script>" in words


def test_an_address_of_another_study_says_so_and_breaks_nothing(made_page, visit):
    bad = "#model=other&precision=q9&item=%3Cb%3Ex/1&modell=m&toString=1"
    page = visit(made_page(4, ["m"], ["bf16"]) + bad)
    page.wait_for_selector("section >> text=This study has no item “<b>x/1”.")
    said = page.locator(".cba-wrong").inner_text()
    for part in (
        "no model “other”",
        "no precision “q9”",
        "no item “<b>x/1”",
        "“modell”",
        "“toString”",
    ):
        assert part in said
    assert page.input_value("select[name=model]") == "m"
    page.click("text=Next item")
    page.wait_for_selector(".cba-wrong:empty", state="attached")
    assert page.locator(".cba-item h3").count() == 1


# What a screen reader would say: where focus is, by the browser's accessibility tree, and live regions.
HEARD = """() => {
  window.heard = [];
  for (const region of document.querySelectorAll("#cba-explorer :is([role=status], [role=alert])")) {
    new MutationObserver(() => heard.push(region.textContent)).observe(region, {childList: true});
  }
}"""


def focused(page):
    """Role and name of what has the focus, as the browser tells assistive technology."""
    client = page.context.new_cdp_session(page)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    client.detach()
    for node in reversed(nodes):
        about = {p["name"]: p["value"].get("value") for p in node.get("properties", [])}
        if about.get("focused") and node["role"]["value"] != "RootWebArea":
            return node["role"]["value"], node["name"]["value"]
    return None


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(80)
    return focused(page)


def test_a_keyboard_and_a_screen_reader_get_through(made_page, visit):
    page = visit(made_page(24, ["one", "two"], ["bf16", "q3"]))
    page.wait_for_selector(".tabulator-row a")
    page.evaluate(HEARD)
    ids = listed(page)
    assert press(page, "Tab") == ("link", "Skip the filters")
    # the list is one stop; arrows walk it, and Enter opens an item
    assert press(page, "Enter") == ("link", ids[0])
    assert press(page, "ArrowDown") == ("link", ids[1])
    assert press(page, "End") == ("link", listed(page)[-1])
    assert press(page, "Home", "ArrowDown", "Enter") == ("heading", ids[1])
    assert page.evaluate("heard.at(-1)") == f"{ids[1]}: item 2 of 18."
    # back to the list and on by Tab: no row stands between the list and the item
    assert press(page, "Shift+Tab") == ("button", "Back to the list")
    assert press(page, "Enter") == ("link", ids[1])
    assert press(page, "Tab") == ("button", "Previous item")
    assert press(page, "Tab") == ("button", "Next item")
    assert press(page, "Enter") == ("button", "Next item"), "focus stays where the hand is"
    assert page.evaluate("heard.at(-1)") == f"{ids[2]}: item 3 of 18."
    page.focus("[name=search]")
    page.keyboard.type("nothing has this")
    page.wait_for_function("heard.some(text => text.startsWith('0 of 24 items'))")
    assert focused(page) == ("searchbox", "Words in the item")


def test_the_accessibility_tree_names_every_part(made_page, visit):
    page = visit(made_page(8, ["one", "two"], ["bf16", "q3"]) + "#model=one&item=Cat1plain/4")
    page.wait_for_selector(".tabulator-row a")
    tree = page.locator("#cba-explorer").aria_snapshot()
    for part in (
        'search "Filters"',
        'searchbox "Words in the item"',
        'combobox "Context"',
        'button "Reset all filters"',
        'grid "Items"',
        'region "The chosen item"',
        'heading "Cat1plain/4" [level=3]',
        'region "Every model by precision"',
        'rowheader "two"',
    ):
        assert part in tree, tree
    found = Axe().run(page, options={"preload": False}).response["violations"]
    ours = [
        f"{v['id']}: {node['html'][:120]}"
        for v in found
        for node in v["nodes"]
        if v["id"] not in ("landmark-one-main", "page-has-heading-one", "region", "heading-order")
    ]
    assert not ours  # those four are of the page around it, which test_browser.py looks at


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
