"""What a reader is told, frozen: texts, tables and figures' data of notebooks and results.

    python tests/golden.py freeze FOLDER          writes them, one file a notebook, one a table or figure
    python tests/golden.py compare FOLDER         what differs between these and the present ones

A change that is not meant to alter what the book says keeps them equal. Texts are compared by their
words: markup, quotes and line breaks do not count. `ROOT` may be given after FOLDER: the project, or a
folder with copies of its ``notebooks`` and ``results``.
"""

import ast
import difflib
import html
import json
import re
import sys
from pathlib import Path

from bs4 import BeautifulSoup

PROJECT = Path(__file__).parents[1]
_GLUE = "application/papermill.record/"


def _joined(text):
    return "".join(text)


def _glued(notebook):
    """Glued texts by name."""
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            text = output.get("data", {}).get(f"{_GLUE}text/plain")
            if name and text:
                text = _joined(text)  # myst_nb glues the representation of a string
                found[name] = ast.literal_eval(text) if text[:1] in "'\"" else text
    return found


def words(text, titles=()):
    """Markdown as words: no markup, straight quotes, one space."""
    text = re.sub(r"\{(?:doc|numref)\}`([^`<]*?)\s*<[^`>]*>`", r"\1", text)
    text = re.sub(r"\{doc\}`([^`]*)`", lambda m: dict(titles).get(Path(m[1]).name, m[1]), text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\\([\\`*_{}\[\]<>|~$])", r"\1", html.unescape(text))
    text = re.sub(r"[*`]|^#+ |^[-:]{3}.*$|^- ", "", text, flags=re.MULTILINE)
    text = text.translate(str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "\u00a0": " "}))
    return re.sub(r"\s+", " ", text).strip()


def told(path, titles=()):
    """What a notebook tells, one line a paragraph, caption, alt text or row, in reading order.

    Lines are sorted within nothing: the order is the reader's. Glued text stands where it is shown.
    """
    notebook = json.loads(Path(path).read_text())
    glued = _glued(notebook)

    def spelled(text):
        return re.sub(r"\{glue:text\}`(\w+)`", lambda m: glued[m[1]], _joined(text))

    lines = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            lines += re.split(r"\n\n|\n(?=- )", spelled(cell["source"]))
        figure = cell["metadata"].get("mystnb", {}).get("figure")
        if figure:
            lines.append("caption: " + spelled(figure["caption"]))
        for output in cell.get("outputs", []):
            data, facts = output.get("data", {}), output.get("metadata", {}).get("cba", {})
            if "caption" in facts:
                lines.append("caption: " + facts["caption"])
            if "text/markdown" in data and facts.get("kind") == "text":
                lines += re.split(r"\n\n|\n(?=- )", _joined(data["text/markdown"]))
            page = BeautifulSoup(_joined(data.get("text/html", "")), "html.parser")
            lines += [" | ".join(c.text for c in row.select("th, td")) for row in page.select("tr")]
            drawing = page.select_one("svg[aria-label]")
            if drawing or "image/svg+xml" in data:
                lines.append(
                    "alt: " + (drawing["aria-label"] if drawing else _joined(data["text/plain"]))
                )
    lines += [
        f"cited {name}: {text}"
        for name, text in sorted(glued.items())
        if (Path(path).stem, name) in CITED
    ]
    return [line for line in (words(line, titles) for line in lines) if line]


CITED = set(
    re.findall(
        r"(\w+)\.ipynb::(\w+)",
        "".join(page.read_text() for page in (PROJECT / "book").glob("*.md")),
    )
)


def freeze(root=PROJECT):
    """All that is told: a mapping of file name to lines."""
    root = Path(root)
    paths = sorted(p for p in (root / "notebooks").glob("*.ipynb") if p.name[0] in "23456789")
    titles = {}
    for path in [*paths, *(root / "book").glob("*.md")]:
        first = re.search(r"(?:^|\")# (.*?)(?:\\n\"|\"|\n)", path.read_text())
        if first:
            titles[path.stem] = first[1]
    found = {f"{path.stem}.txt": told(path, titles) for path in paths}
    for path in sorted((root / "results").glob("*/figures/*.csv")):
        found[f"figures.{path.parent.parent.name}.{path.name}"] = path.read_text().splitlines()
    return found


def compare(frozen, now):
    """Lines of a difference, in the form of a patch; none where both tell the same.

    Paragraphs may be cut in another way: a text is compared word by word.
    """
    lines = []
    for name in sorted({*frozen, *now}):
        before, after = ([*frozen.get(name, [])], [*now.get(name, [])])
        if name.endswith(".txt"):
            before, after = (" ".join(part).split(" ") for part in (before, after))
        for tag, a, b, c, d in difflib.SequenceMatcher(
            None, before, after, autojunk=False
        ).get_opcodes():
            if tag != "equal":
                joint = " " if name.endswith(".txt") else "\n"
                near = joint.join(before[max(0, a - 4) : a])
                lines.append(
                    f"{name}: ... {near} [-{joint.join(before[a:b])}-] {{+{joint.join(after[c:d])}+}}"
                )
    return lines


def main(step, folder, root=PROJECT):
    """Freeze or compare."""
    folder, now = Path(folder), freeze(root)
    if step == "freeze":
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in now.items():
            (folder / name).write_text("\n".join(lines) + "\n")
        return 0
    found = compare({p.name: p.read_text().splitlines() for p in sorted(folder.iterdir())}, now)
    print("\n".join(found) or "nothing differs")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
