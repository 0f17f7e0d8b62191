"""The built book in a real browser: no error, no request leaves the machine, all can read it."""

import os
import re
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cba_utils.telling.pdf import FLAGS, find_browser, open_browser, write_pdf  # noqa: F401

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from pypdf import PdfReader

BUILT = Path(os.environ.get("BOOK_HTML", Path(__file__).parents[1] / "_build" / "html"))
CHROMIUM = find_browser()
MUST_RUN = bool(os.environ.get("CI"))  # there, what is missing fails
PAGES = sorted(
    str(p.relative_to(BUILT))
    for p in BUILT.rglob("*.html")
    # the outermost page only forwards to the first one
    if "_static" not in p.parts and p != BUILT / "index.html"
)
# Pages of docstrings are set alike, and some are very long: colours are asked of the shortest.
DOCSTRINGS = sorted(
    (name for name in PAGES if name.startswith("book/api")),
    key=lambda name: (BUILT / name).stat().st_size,
)
# relative luminance, so that contrast is measured as WCAG does
CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  // what is painted under a text: the last filled shape drawn before it, else the page
  const behind = text => {
    const box = text.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    const shapes = [...text.ownerSVGElement.querySelectorAll('path, rect, image')].filter(shape =>
      shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING
      && !shape.closest('defs'));
    for (const shape of shapes.reverse()) {
      const c = shape.getBoundingClientRect(), style = getComputedStyle(shape);
      if (c.x > x || c.right < x || c.y > y || c.bottom < y) continue;
      if (shape.tagName === 'image') return null;
      if (style.fill !== 'none' && style.fillOpacity > 0.5) return rgb(style.fill);
    }
    for (let node = text.ownerSVGElement; node; node = node.parentElement) {
      const c = rgb(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('.cba-figure svg text')].map(node => {
    const under = behind(node);
    if (under === null) return 21;
    const [a, b] = [light(rgb(getComputedStyle(node).fill)), light(under)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""

# Off by default in this release of axe, on in later ones; headings must nest.
AXE = {
    "resultTypes": ["violations"],
    "preload": False,  # it would fetch style sheets, which a page opened from disk may not
}
COLOURS = AXE | {"runOnly": ["color-contrast"]}
REST = AXE | {
    "rules": {
        "label-content-name-mismatch": {"enabled": True},
        "color-contrast": {"enabled": False},
    }
}
GRAVE = ("serious", "critical")
WIDE, NARROW = 1280, 390

pytestmark = [
    pytest.mark.skipif(not MUST_RUN and CHROMIUM is None, reason="no browser on this machine"),
    pytest.mark.skipif(not MUST_RUN and not PAGES, reason="no built book: run `make pages`"),
]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


def barriers(page, options, context=None):
    """What axe-core finds that keeps someone from using the page."""
    return [
        f"{v['id']}: {node['html'][:120]}"
        for v in Axe().run(page, context, options).response["violations"]
        if v["impact"] in GRAVE or v["id"] == "heading-order"
        for node in v["nodes"]
    ]


def test_there_is_a_book_to_look_at():
    assert PAGES, f"{BUILT} holds no built book"


def test_pages_open_whole_offline_and_readable(browser):
    # Without motion, colours are those of a theme at once.
    context = browser.new_context(reduced_motion="reduce")
    context.add_init_script("localStorage.setItem('mode', 'light')")
    problems = []
    for name in PAGES:
        page = context.new_page()

        def note(what, name=name):
            problems.append(f"{name}: {what}")

        page.on("pageerror", lambda error, note=note: note(f"script error {error}"))
        page.on(
            "console",
            lambda m, note=note: note(f"console {m.text}") if m.type == "error" else None,
        )
        page.on("requestfailed", lambda r, note=note: note(f"not loaded {r.url}"))
        page.on(
            "request",
            lambda r, note=note: (
                None
                if r.url.startswith(("file:", "data:", "blob:"))
                else note(f"request leaves the machine: {r.url}")
            ),
        )
        for width in (NARROW, WIDE):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto((BUILT / name).as_uri())
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                note(f"wider than a screen of {width} pixels")
            for barrier in barriers(page, REST):
                note(f"at {width} pixels: {barrier}")
            # Colours of a text are the same at every width, and looking at them takes most of the time.
            text = width == WIDE and name not in DOCSTRINGS[1:]
            for theme in ("light", "dark"):
                page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
                for barrier in barriers(
                    page, COLOURS, None if text else {"exclude": [["article"]]}
                ):
                    note(f"{theme}, at {width} pixels: {barrier}")
                if width == WIDE and min(page.evaluate(CONTRAST), default=21) < 4.5:
                    note(f"{theme}: a figure's text has too little contrast")
        unnamed = (
            "img:not([alt]), "
            "svg[role=img]:not([aria-label]):not([aria-labelledby]):not([aria-hidden=true])"
        )
        if page.locator(unnamed).count():
            note("an image without alt text")
        page.close()
    context.close()
    assert not problems


class Hosted(SimpleHTTPRequestHandler):
    """The book below /sub/, as a host of project pages shows it; its 404 page for the rest."""

    def translate_path(self, path):
        return super().translate_path(
            path.removeprefix("/sub") if path.startswith("/sub/") else "/-"
        )

    def send_error(self, code, *_):
        body = (BUILT / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def hosted():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hosted, directory=BUILT))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/sub/"
    server.shutdown()


def test_a_page_that_is_not_there_leads_back_from_any_depth(browser):
    page = browser.new_page()
    with hosted() as book:
        for missing in ("gone.html", "notebooks/gone.html", "notebooks/deep/er/gone"):
            page.goto(book + missing)
            page.wait_for_function("document.querySelector('a').href.includes('/sub/index.html')")
            page.click("a >> nth=0")
            page.wait_for_url("**/book/index.html")
    page.close()


def test_data_behind_a_figure_can_be_downloaded(browser):
    page = browser.new_page()
    names = [name for name in PAGES if "dose_response" in name]
    page.goto((BUILT / names[0]).as_uri())
    with page.expect_download() as wanted:
        page.locator("p.cba-data a").first.click()
    text = Path(wanted.value.path()).read_text()
    assert text.startswith("family") or text.startswith("model")
    assert "became_biased" in text or "srs" in text
    page.close()


def test_the_book_prints_with_its_figures_and_page_numbers(browser, tmp_path):
    target = tmp_path / "book.pdf"
    write_pdf(browser, BUILT, target)
    reader = PdfReader(target)
    assert len(reader.pages) > 20 and reader.metadata.author
    first = BeautifulSoup((BUILT / "book" / "index.html").read_text(), "html.parser")
    finding = first.select_one("article h1 ~ p strong").get_text()
    cover = "".join(reader.pages[0].extract_text().split())
    assert "".join(finding.split()) in cover, "the abstract has the finding"
    contents = reader.pages[1].extract_text()
    assert "What happens with precision" in contents
    text = "".join(page.extract_text() for page in reader.pages)
    figures = {int(n) for n in re.findall(r"Figure (\d+)", text)}
    assert figures and figures == set(range(1, max(figures) + 1))
