"""The built book as one file for reading on paper: ``cba pdf``.

The pages are those of the built book, put into one document in the order of its contents and
printed by a browser. Code, buttons and pages that only work on a screen are left out.
"""

import re
from contextlib import contextmanager
from html import escape
from pathlib import PurePosixPath
from posixpath import normpath

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter

from cba_utils.names import PROJECT
from cba_utils.study.browser import find_browser

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# For a screen: filters, downloads, and long lists to search in.
ON_SCREEN = ("60_explorer", "11_one_cell", "book/models", "book/api")
LEFT_OUT = "script, .headerlink, .cell_input, .cell_output details, .cba-data, details, .copybtn"
WIDEST = 86  # characters of code that fit into a line on paper
STYLES = ("pygments.css", "custom.css", "print.css")
ABOUT = yaml.safe_load((PROJECT / "CITATION.cff").read_text())


def authors():
    """Names of the authors, as CITATION.cff gives them.

    Returns
    -------
    str
    """
    return ", ".join(
        a.get("name") or f"{a['given-names']} {a['family-names']}" for a in ABOUT["authors"]
    )


@contextmanager
def open_browser():
    """A headless browser that makes no request of its own.

    Yields
    ------
    playwright.sync_api.Browser

    Raises
    ------
    FileNotFoundError
        If there is no browser.
    """
    path = find_browser()
    if path is None:
        raise FileNotFoundError(
            "no Chromium or Chrome was found; install one (Debian: apt-get install chromium) and "
            "put it on the PATH"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def chapters(built):
    """Pages of a built book that can be printed, in the order of its contents.

    Parameters
    ----------
    built : Path
        Folder of the built pages.

    Returns
    -------
    list of (str, str)
        Part of the book and address of a page.
    """
    soup = BeautifulSoup((built / "book" / "index.html").read_text(), "html.parser")
    found = [("", "book/index.html")]
    part = ""
    for node in soup.select_one("nav.bd-links").select("p.caption, a.reference.internal"):
        if node.name == "p":
            part = node.get_text(strip=True)
        elif node["href"] != "#" and not node["href"].startswith("http"):
            address = normpath(f"book/{node['href']}")
            if not any(name in address for name in ON_SCREEN):
                found.append((part, address))
    return found


def one_page(built, address, printed):
    """The article of a page; its ids start with the page's name, so that none occurs twice.

    Parameters
    ----------
    built : Path
    address : str
    printed : list of str
        Addresses of all pages in the document; a link to another page is left as words.

    Returns
    -------
    bs4.Tag
    """
    soup = BeautifulSoup((built / address).read_text(), "html.parser")
    article = soup.select_one("article.bd-article")
    for node in article.select(LEFT_OUT):
        node.decompose()
    for cell in article.select("div.cell"):
        if not cell.get_text(strip=True) and not cell.find("svg"):
            # what a sentence leads up to with a colon was in the cell
            said = cell.find_previous_sibling()
            if said and said.name == "p" and said.get_text(strip=True).endswith(":"):
                said.decompose()
            cell.decompose()
    for block in article.select("pre"):
        if max(map(len, block.get_text().splitlines()), default=0) > WIDEST:
            block["class"] = [*block.get("class", []), "wide"]
    for link in article.select("a[href]"):
        if re.match(r"https?:", link["href"]):
            continue
        path, _, anchor = link["href"].partition("#")
        target = normpath(PurePosixPath(address).parent / path) if path else address
        if target in printed:
            link["href"] = f"#{slug(target)}{'-' + anchor if anchor else ''}"
        else:
            link.unwrap()
    name = slug(address)
    for node in article.select("[id]"):
        node["id"] = f"{name}-{node['id']}"
    for node in article.select("[aria-labelledby]"):
        node["aria-labelledby"] = f"{name}-{node['aria-labelledby']}"
    for drawing in article.select("svg"):
        fixed = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", str(drawing))
        drawing.replace_with(BeautifulSoup(fixed, "html.parser"))
    article.name = "section"
    del article["class"]
    article["id"] = name
    return article


def slug(address):
    """A page's address as the beginning of an id.

    Examples
    --------
    >>> slug("notebooks/20_dose_response.html")
    'notebooks-20_dose_response'
    """
    return address.removesuffix(".html").replace("/", "-")


def lead(article):
    """Take what stands before the first heading out of the first page: the finding, for the abstract.

    Examples
    --------
    >>> page = BeautifulSoup("<article><h1>T</h1><p>One.</p><section><h2>H</h2></section></article>",
    ...                      "html.parser").article
    >>> lead(page), str(page)
    ('<p>One.</p>', '<article><h1>T</h1><section><h2>H</h2></section></article>')
    """
    said = [p for p in article.find("h1").find_next_siblings("p")]
    return "".join(str(p.extract()) for p in said)


def document(built, numbers=None):
    """The whole book as one HTML document.

    Parameters
    ----------
    built : Path
    numbers : dict of str to int, optional
        Page numbers of the ids in the contents.

    Returns
    -------
    str
    """
    listed = chapters(built)
    printed = [address for _, address in listed]
    articles = [one_page(built, address, printed) for address in printed]
    # the first page has the answer, and its title stands on the cover already
    title = articles[0].find("h1").get_text(strip=True)
    articles[0].find("h1").string = "In short"
    abstract = lead(articles[0])
    lines, last = [], ""
    for (part, address), article in zip(listed, articles, strict=True):
        if part != last:
            lines.append(f'<li class="part">{escape(part)}</li>')
            last = part
        name = slug(address)
        number = (numbers or {}).get(name, "")
        heading = escape(article.find("h1").get_text(strip=True))
        lines.append(f'<li><a href="#{name}">{heading}</a><span>{number}</span></li>')
    styles = "".join(
        f'<link rel="stylesheet" href="{(built / "_static" / s).as_uri()}">' for s in STYLES
    )
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>{styles}</head><body>"
        f'<header class="cover"><h1>{escape(title)}</h1><p class="kind">An executable paper</p>'
        f"<p>{escape(authors())}</p><p>Version {escape(str(ABOUT['version']))}</p>"
        f"<h2>Abstract</h2>{abstract}"
        f'<p class="licence">Text and data: CC BY 4.0. Code: MIT. Every number was computed by a '
        f"notebook of the repository; the book in the browser also has the code, the data behind "
        f"each figure, the item explorer, the model cards and the API reference.</p></header>"
        f'<nav class="listing"><h2>Contents</h2><ul>{"".join(lines)}</ul></nav>'
        f'<main class="bd-article">{"".join(map(str, articles))}</main></body></html>'
    )


def write_pdf(browser, built, target):
    """Print the built book.

    The page numbers of the contents are known only after printing, so it is printed twice.

    Parameters
    ----------
    browser : playwright.sync_api.Browser
    built : Path
        Folder of the built pages.
    target : Path
        The PDF.
    """
    if not (built / "book" / "index.html").exists():
        raise FileNotFoundError(f"{built} holds no built book; run `make pages` first")
    page_file = target.with_suffix(".html")
    target.parent.mkdir(parents=True, exist_ok=True)
    page = browser.new_page()
    numbers = None
    for _ in range(2):
        page_file.write_text(document(built.resolve(), numbers))
        page.goto(page_file.resolve().as_uri())
        page.pdf(
            path=target, prefer_css_page_size=True, print_background=True, outline=True, tagged=True
        )
        reader = PdfReader(target)
        numbers = {
            name.lstrip("/"): reader.get_destination_page_number(place) + 1
            for name, place in reader.named_destinations.items()
        }
    page.close()
    page_file.unlink()
    writer = PdfWriter(clone_from=target)
    writer.add_metadata({"/Author": authors()})
    writer.write(target)
