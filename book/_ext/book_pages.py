"""What this book adds to Sphinx: model cards, executed notebooks, buttons, a preview image."""

import json
import re
from pathlib import Path
from urllib.parse import urljoin

import pandas as pd
from sphinx.util.docutils import SphinxDirective

from cba_utils.answering.precisions import most_bits_first
from cba_utils.measures.published import load_published
from cba_utils.names import PROJECT
from cba_utils.study.notebooks import ROUNDING_NOTEBOOK, RUN_NOTEBOOK
from cba_utils.study.protocol import SHIPPED, documentation
from cba_utils.telling.drawing import families, preview
from cba_utils.telling.page import for_book
from cba_utils.telling.study import open_study

IMAGE = "_static/preview.png"


# What other packages write and a screen reader would stumble over.
REPAIRS = {
    # a list may hold list items only, and docutils puts links into this one
    '<div role="list" class="citation-list">': "<div>",
    ' role="doc-biblioentry"': "",
    # hides the words that say what is unfolded
    '<summary aria-label="Toggle hidden content">': "<summary>",
}


def study_folder(app):
    """Results of the study whose book this is: other books lie in their study's folder."""
    source = Path(app.srcdir)
    return source.parent if source.name == "book" else source / "results" / SHIPPED


class ModelCards(SphinxDirective):
    """A family's organisms: what each showed at full precision, and two of their cards."""

    required_arguments = 1
    # as the columns of the table, with their digits
    measures = {
        "margin error, nats": ("margin_error", 2),
        "margin beyond, nats": ("margin_beyond", 2),
        "lean error": ("lean_error", 3),
        "right answers, lowest": ("disambiguated_right_lowest", 3),
        "mass on letters": ("letter_mass", 4),
    }

    def run(self):
        """Write a table, and the cards of the first base and of its first alignment to be unfolded."""
        family = Path(self.env.srcdir, "organisms", self.arguments[0])
        # bases before alignments, these before the depth ladder
        tables = sorted(
            family.glob("*/acceptance.json"),
            key=lambda p: (p.parent.name.count("-"), p.parent.name),
        )
        lines = [
            "| organism | " + " | ".join(self.measures) + " | not met |",
            "| --- " * (len(self.measures) + 2) + "|",
        ]
        for path in tables:
            told = json.loads(path.read_text(encoding="utf-8"))
            aligned = "-" in path.parent.name
            numbers = (
                f"{told['main'][key]:.{digits}f}" if aligned or not key.startswith("margin") else ""
                for key, digits in self.measures.values()
            )
            # nothing is required of an alignment that was stopped early
            missed = ", ".join(told["missed"]).replace("_", " ") or "-"
            missed = "not required" if path.parent.name.count("-") > 1 else missed
            lines.append(f"| {path.parent.name} | {' | '.join(numbers)} | {missed} |")
        text = "\n".join(lines) + "\n\n"
        for name in ("b1", "b1-a1"):
            card = family / name / "README.md"
            text += (
                f":::{{dropdown}} The card of {name}\n"
                f"```{{include}} /{card.relative_to(self.env.srcdir).as_posix()}\n"
                f":start-line: 13\n:heading-offset: 1\n```\n:::\n\n"
            )
        return self.parse_text_to_nodes(text)


class StudyKeys(SphinxDirective):
    """The keys of a study file, from the models that read it."""

    def run(self):
        """Write a table a section."""
        return self.parse_text_to_nodes(documentation())


class ExecutedNotebooks(SphinxDirective):
    """Downloads of the executed run notebooks, in a book whose study was run beside it."""

    def run(self):
        """Write a list, one line a model, or why there is none."""
        study = study_folder(self.env.app)
        lines = []
        for model in sorted(
            {path.parent.parent for path in study.glob(f"*/*/{RUN_NOTEBOOK.name}")}
        ):
            found = most_bits_first(p.parent.name for p in model.glob(f"*/{RUN_NOTEBOOK.name}"))
            up = Path("..") if study == Path(self.env.srcdir).parent else Path("results", SHIPPED)
            paths = {p: Path(p, RUN_NOTEBOOK.name) for p in found}
            if (model / ROUNDING_NOTEBOOK.name).exists():
                paths["rounding"] = Path(ROUNDING_NOTEBOOK.name)
            links = (f"{{download}}`{p} </{up / model.name / path}>`" for p, path in paths.items())
            lines.append(f"- {model.name}: {', '.join(links)}")
        if not lines and not (PROJECT / "config" / f"{study.name}.yml").exists():
            lines = ["The records were imported: no notebook was executed for them."]
        elif not lines:
            lines = [
                "This copy of the book was built from the study's tables alone; the executed "
                f"notebooks are not beside them. `make book STUDY={study.name}` makes them, and "
                "lists them here."
            ]
        return self.parse_text_to_nodes("\n".join(lines))


def list_modules(app, docname, source):
    """Write the reference of every module of a folder where a page says ``modules: <folder>``."""
    if docname.startswith("book/api"):
        source[0] = re.sub(r"^modules: (\w+)$", lambda m: _reference(m[1]), source[0], flags=re.M)


def _reference(name):
    package = PROJECT / "cba_utils"
    folder = package / name
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    told = []
    for file in files:
        parts = file.relative_to(package).with_suffix("").parts
        if file.name == "__init__.py":
            parts = parts[:-1]
            if not re.search(r"^(def|class) ", file.read_text(encoding="utf-8"), flags=re.M):
                continue
        module = ".".join(parts)
        title = ".".join(parts[1:]) or module
        told.append(
            f"### `{title}`\n\n```{{eval-rst}}\n.. automodule:: cba_utils.{module}\n"
            "   :members:\n```"
        )
    return "\n\n".join(told)


def read_notebook(app, docname, source):
    """Give the parser a notebook whose displays are prose, numbered figures and tables."""
    if app.env.doc2path(docname).endswith(".ipynb"):
        source[0] = json.dumps(for_book(json.loads(source[0])))


def show_buttons(app, config):
    """Turn on everything that needs a repository, if the book knows one."""
    options = config.html_theme_options
    if options.get("repository_url"):
        buttons = ("repository", "issues", "edit_page", "source")
        options |= {f"use_{name}_button": True for name in buttons}
        options["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }


def complete_page(app, pagename, templatename, context, doctree):
    """Add what a link to the page shows elsewhere, and make the repairs."""
    base = app.config.html_baseurl
    image = urljoin(base, IMAGE) if base else context["pathto"](IMAGE, resource=True)
    tags = {
        "og:type": "website",
        "og:site_name": app.config.html_title,
        "og:title": context.get("title", app.config.html_title),
        "og:image": image,
        "og:image:alt": "Items that became biased, and perplexity change, by precision",
        "twitter:card": "summary_large_image",
    }
    context["metatags"] = context.get("metatags", "") + "".join(
        f'<meta property="{name}" content="{text}">\n' for name, text in tags.items()
    )
    body = context.get("body", "")
    for wrong, right in REPAIRS.items():
        body = body.replace(wrong, right)
    context["body"] = body


def draw_preview(app, error):
    """Draw the image that a link to the book shows, from the data behind the first figure."""
    study = study_folder(app)
    data = study / "figures" / "headline.csv"
    if error is None and app.builder.name == "html" and data.exists():
        note = "An executable paper, measured on\nsmall models made for the purpose"
        if study.name != SHIPPED:
            note = f"Study “{study.name}”"
        with families(open_study(study.name).families):
            figure = preview(pd.read_csv(data), app.config.html_title, note, load_published())
        figure.savefig(Path(app.outdir, IMAGE))


def setup(app):
    """Register it all."""
    app.add_directive("model-cards", ModelCards)
    app.add_directive("executed-notebooks", ExecutedNotebooks)
    app.add_directive("study-keys", StudyKeys)
    app.connect("config-inited", show_buttons)
    app.connect("source-read", read_notebook)
    app.connect("source-read", list_modules)
    app.connect("html-page-context", complete_page)
    app.connect("build-finished", draw_preview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
