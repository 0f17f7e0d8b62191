"""A chapter opened on a study: its figures, tables and sentences, displayed in its notebook.

A chapter is a class in ``cba_utils/chapters/`` that computes, and a template beside it that says. The
notebook opens it and displays its parts, so that a reader of the bare ``.ipynb`` sees them:

>>> page = open_page("noise", "organisms")
>>> page.text("records")[:32]
'Records of the study "organisms"'

The book shows the same displays: :func:`for_book` makes prose, numbered figures and tables of them
when Sphinx reads the notebook.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path

import jinja2
from IPython.display import display

from cba_utils.instrument.trust import trust
from cba_utils.measures.controls import is_balanced
from cba_utils.measures.planted import planted_is_known
from cba_utils.study.rounding import read_rounding
from cba_utils.telling import drawing
from cba_utils.telling.numbers import FILTERS
from cba_utils.telling.study import Study, open_study
from cba_utils.telling.tables import table_html
from cba_utils.telling.words import FILTERS as PHRASES

CHAPTERS = Path(__file__).parents[1] / "chapters"


@dataclass(frozen=True)
class Need:
    """Something that the records of a study may lack.

    ``name`` is also the block of ``common.md.j2`` that says so, after ``no_``.
    """

    name: str
    met: Callable


LETTERS = Need("letters", lambda study: not study.speechless)
PROBABILITIES = Need("probabilities", lambda study: study.exact)
PERPLEXITY = Need("perplexity", lambda study: len(study.perplexity) > 0)
PUBLISHED_PERPLEXITY = Need(
    "published_perplexity",
    lambda study: (
        "nll_published" in study.perplexity and study.perplexity["nll_published"].notna().any()
    ),
)
SEVERAL_DEPTHS = Need("several_depths", lambda study: len(study.depths) > 1)
BASES = Need("bases", lambda study: (study.answers["depth"] == "base").any())
BALANCED_ORDERS = Need("balanced_orders", lambda study: is_balanced(study.answers))
ROUNDING = Need("rounding", lambda study: study.exact and read_rounding(study.study) is not None)
GROUPS = Need(
    "groups",
    lambda study: (
        study.exact
        and "target_group" in study.answers
        and bool(study.answers["target_group"].notna().any())
    ),
)
HELD_OUT = Need("held_out", lambda study: study.held_out is not None)
PLANTED = Need(
    "planted",
    lambda study: study.exact and study.organisms and study.own_items and planted_is_known(),
)
ANNOUNCED = Need("announced", lambda study: study.exact and study.announced)
BOTH_CONTEXTS = Need(
    "both_contexts",
    lambda study: study.exact and set(study.items["context_condition"]) == {"ambig", "disambig"},
)


class Page:
    """What every chapter can do. A chapter is a subclass with the facts below and its parts.

    A figure ``name`` is a method ``figure_<name>`` that returns the drawing, its alt text and the data
    behind it; a table a method ``table_<name>`` that returns a frame and the formats of its columns (see
    `tables.table_html`). Sentences are blocks of the chapter's template, ``<module>.md.j2``, and so are
    captions, ``fig_<name>`` and ``tab_<name>``; a block ``msg_<name>`` says what a figure shows, before its
    caption and in its alt text. A template sees the chapter as ``page`` and its study as ``study``. Names
    are unique in the book, because other pages refer to ``fig-<name>`` and ``tab-<name>`` (with hyphens).

    Attributes
    ----------
    keep, version : str
        Which models and which items the chapter is about, see `open_study`.
    needs : dict of str to Need
        What a figure, a table or a sentence needs from the records. Where they lack it, the page says
        so in one sentence in its place, and the part is not asked. The empty name stands for all parts.
    without_letters : tuple of str
        What the chapter can tell of models that give no letter: figures, tables and sentences, or
        ``("all",)``.
    """

    keep, version = "main", "main"
    needs: dict[str, Need] = {}
    without_letters: tuple[str, ...] = ()

    def __init__(self, study: Study):
        self.study = study

    @classmethod
    def open(cls, study):
        """The chapter on the records of a study, by its name: on the models and items that it is about."""
        return cls(open_study(study, cls.keep, cls.version))

    def lacks(self, name):
        """The need of a part that the records do not meet; None if they meet all."""
        free = name in self.without_letters or "all" in self.without_letters
        for need in (None if free else LETTERS, self.needs.get(""), self.needs.get(name)):
            if need is not None and not need.met(self.study):
                return need
        return None

    @property
    def folder(self):
        """Where drawings and their data are kept."""
        return self.study.folder

    def foot_cells(self):
        """Rows of the study's provenance that the chapter's numbers come from."""
        return self.study.provenance

    def foot_more(self):
        """Provenance of models whose rounding was taken apart, if the chapter uses that; else None."""
        return None

    # What a notebook calls

    def say(self, *names):
        """Display sentences, a paragraph a name; what the records lack is said once."""
        text = "\n\n".join(dict.fromkeys(map(self.text, names)))
        display({"text/markdown": text}, raw=True, metadata={"cba": {"kind": "text"}})

    def figure(self, name, cited=False):
        """Display a figure with its caption, and keep its drawing and data with the study's results.

        ``cited`` is for a figure that another page shows too.
        """
        if self.lacks(name):
            caption = self.text(name)
            figure, alt, data = drawing.nothing(""), caption, None
        else:
            caption, message = self.text(f"fig_{name}"), self._message(name)
            with drawing.families(self.study.families):
                figure, alt, data = self._part("figure", name)()
            if message:
                caption = f"**{message}** {caption}"
                alt = [plain(message), *([alt] if isinstance(alt, str) else alt)]
        metadata = {"cba": {"kind": "figure", "name": name, "caption": caption}}
        if cited:
            metadata["scrapbook"] = {"name": name, "mime_prefix": ""}
        drawing.show(figure, name, alt, data, self.folder, metadata)
        _display_caption("Figure", caption)

    def table(self, name):
        """Display a table under its caption; instead, a sentence where the records cannot fill it."""
        if self.lacks(name):
            return self.say(name)
        frame, formats = self._part("table", name)()
        caption = self.text(f"tab_{name}")
        _display_caption("Table", caption)
        metadata = {"cba": {"kind": "table", "name": name, "caption": caption}}
        display({"text/html": table_html(frame, formats)}, raw=True, metadata=metadata)

    def cite(self, *names):
        """Glue sentences for other pages, as plain text and without displaying them here."""
        for name in names:
            _glue(name, "text/plain", plain(self.text(name)))

    def cite_table(self, name):
        """Glue a table for another page, under ``tab_<name>``; that page gives it its caption."""
        found = (
            f"<p>{escape(self.text(name))}</p>"
            if self.lacks(name)
            else table_html(*self._part("table", name)())
        )
        _glue(f"tab_{name}", "text/html", found)

    def cite_code(self, name):
        """Glue a text whose lines count, from a method ``code_<name>``, for another page."""
        text = self.text(name) if self.lacks(name) else self._part("code", name)()
        _glue(name, "text/html", f'<pre class="cba-prompt">{escape(text)}</pre>')

    # What makes it

    def instrument(self, verdict, alone=False):
        """What the instrument says of a verdict in a study like this one, see `instrument.trust`.

        Parameters
        ----------
        verdict : str
            One of `instrument.verdicts.VERDICTS`, such as ``"lean_grew"``.
        alone : bool
            Whether the sentence is about one checkpoint, where the study has one of each family.
        """
        if self.study.several:
            return trust(verdict, "bases")
        lone = alone or self.study.samples["model"].nunique() == 1
        return trust(verdict, "one" if lone else "three")

    def trust(self, verdict, alone=False):
        """The same as a sentence: how often the verdict errs where nothing grew, and what it sees."""
        return self.text("trust", judged=self.instrument(verdict, alone))

    def text(self, name, **more):
        """A block of the chapter's template, or of the common one, as Markdown.

        ``more`` names what the block may speak of besides the chapter and its study.
        """
        own, common = map(
            _TEMPLATES.get_template,
            (f"{type(self).__module__.rpartition('.')[2]}.md.j2", "common.md.j2"),
        )
        # What all chapters say, such as whose answers these are, can always be said.
        always = name in common.blocks and name not in own.blocks and name not in self.needs
        lacking = None if always else self.lacks(name)
        if lacking:
            name = f"no_{lacking.name}"
        for found in (own, common):
            if name in found.blocks:
                context = found.new_context(
                    {"page": self, "study": self.study, "common": _Common(self), **more}
                )
                return Rendered(_tidy("".join(found.blocks[name](context))))
        raise ValueError(
            f"neither the template of {type(self).__name__} nor common.md.j2 has a block {name!r}"
        )

    def _message(self, name):
        """What a figure shows, in a sentence, where the template has a block ``msg_<name>``."""
        own = _TEMPLATES.get_template(f"{type(self).__module__.rpartition('.')[2]}.md.j2")
        return self.text(f"msg_{name}") if f"msg_{name}" in own.blocks else ""

    def _part(self, kind, name):
        part = getattr(self, f"{kind}_{name}", None)
        if part is None:
            known = sorted(n.partition("_")[2] for n in dir(self) if n.startswith(f"{kind}_"))
            raise ValueError(f"{type(self).__name__} has no {kind} {name!r}; it has {known}")
        return part


def open_page(chapter, study):
    """Open a chapter on the records of a study.

    Parameters
    ----------
    chapter : str
        A module of ``cba_utils.chapters``.
    study : str
        A study's name, see ``config/``.

    Returns
    -------
    Page
    """
    return import_module(f"cba_utils.chapters.{chapter}").Chapter.open(study)


# Words


class Rendered(str):
    """Text that is Markdown already."""


class _Common:
    """The blocks of ``common.md.j2`` as attributes, for phrases inside a sentence."""

    def __init__(self, page):
        self._page = page

    def __getattr__(self, name):
        return self._page.text(name)


_MARKS = re.compile(r"([\\`*_{}\[\]<>|~$])")
_GLUE = "application/papermill.record/"


def _printed(value):
    """What a template prints: text from data is text, never markup; numbers come formatted."""
    if isinstance(value, float):
        raise TypeError(
            f"a template prints the number {value!r} as it is; give it a filter, such as percent"
        )
    return value if isinstance(value, Rendered) else _MARKS.sub(r"\\\1", str(value))


def _tidy(text):
    r"""Paragraphs of a block, each on one line as far as it is not a list or code.

    Examples
    --------
    >>> _tidy(" one\n  two, three \n\n- four\n- five ")
    'one two, three\n\n- four\n- five'
    """
    kept, fenced = [], False
    for line in text.strip().splitlines():
        line = line.rstrip() if fenced else re.sub(r" +", " ", line.strip())
        opens = line.startswith("```")
        new = (
            fenced
            or opens
            or not line
            or not kept
            or not kept[-1]
            or line.startswith(("- ", "```"))
        )
        fenced ^= opens
        if new:
            kept.append(line)
        else:
            kept[-1] += f" {line}"
    return "\n".join(kept)


_MARKUP = re.compile(
    r"(?<!\\)\[((?:[^\]\\]|\\.)*)\]\([^)]*\)|(?<![\\\w])(\*{1,2})(?=\S)(.*?)(?<=\S)(?<!\\)\2"
)


def plain(text):
    r"""Markdown of a sentence as plain text, without its links, emphasis and escapes.

    Examples
    --------
    >>> plain(r"**Not** *so*, see [the \*page\*](40.ipynb): a\_b 2 * 3 * 4")
    'Not so, see the *page*: a_b 2 * 3 * 4'
    """
    while (bare := _MARKUP.sub(lambda m: m[1] if m[1] is not None else m[3], text)) != text:
        text = bare
    return re.sub(r"\\([\\`*_{}\[\]<>|~$])", r"\1", text)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(CHAPTERS),
    undefined=jinja2.StrictUndefined,
    finalize=_printed,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= FILTERS | PHRASES


def _display_caption(kind, caption):
    display(
        {"text/markdown": f"*{kind}.* {caption}"}, raw=True, metadata={"cba": {"kind": "caption"}}
    )


def _glue(name, kind, text):
    display(
        {f"{_GLUE}{kind}": text},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": _GLUE}},
    )


# The book


def for_book(notebook):
    """What the book's parser is given of a notebook: its displays as prose, numbered figures and tables.

    Parameters
    ----------
    notebook : dict
        A notebook as it lies in its file; it is changed.

    Returns
    -------
    dict
    """
    cells = []
    for cell in notebook["cells"]:
        kinds = [_fact(output, "kind") for output in cell.get("outputs", [])]
        if kinds and set(kinds) == {"text"}:
            text = "\n\n".join("".join(o["data"]["text/markdown"]) for o in cell["outputs"])
            cells.append(
                {"cell_type": "markdown", "id": cell["id"], "metadata": {}, "source": text}
            )
            continue
        cells.append(cell)
        for output in cell.get("outputs", []):
            if _fact(output, "caption"):
                short = {"figure": "fig", "table": "tab"}[_fact(output, "kind")]
                cell["metadata"]["mystnb"] = {
                    "figure": {
                        "caption": _fact(output, "caption"),
                        "name": f"{short}-{_fact(output, 'name').replace('_', '-')}",
                    }
                }
            if _fact(output, "kind") == "figure":
                output["data"] = {
                    "text/html": drawing.figure_html(output["data"], _fact(output, "name"))
                }
        if kinds:
            cell["outputs"] = [o for o in cell["outputs"] if _fact(o, "kind") != "caption"]
    notebook["cells"] = cells
    return notebook


def _fact(output, name):
    return output.get("metadata", {}).get("cba", {}).get(name)
