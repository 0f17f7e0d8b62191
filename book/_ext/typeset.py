"""Equations as MathML, made when the book is built, and tables with a number of their own."""

import re
from itertools import count

from docutils import nodes
from docutils.parsers.rst import directives
from latex2mathml.converter import convert
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.math import get_node_equation_number


def write_math(self, node):
    """Write a formula in a line; browsers and screen readers know MathML, so no script is needed."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_equation(self, node):
    """Write an equation on lines of its own, with its number where it has a label."""
    self.body.append(self.starttag(node, "div", CLASS="math cba-equation"))
    self.body.append(convert(node.astext(), display="block"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


class TableFigure(nodes.figure):
    """A figure whose content is a table, counted with the tables."""


class TableCaption(nodes.caption):
    """Its caption, which stands above it and names it."""


def begin_figure(self, node):
    """Open the figure; what is in it follows."""
    self.body.append(self.starttag(node, "figure", CLASS="cba-numbered"))


def begin_caption(self, node):
    """Write the number, which is the parent's."""
    self.body.append(self.starttag(node, "figcaption"))
    self.add_fignumber(node.parent)
    self.body.append('<span class="caption-text">')


def end_caption(self, node):
    """Close the caption with a link to the table."""
    self.body.append("</span>")
    self.add_permalink_ref(node.parent, "Link to this table")
    self.body.append("</figcaption>\n")


def is_table(figure):
    """Whether a figure's name says that it is a table: ``tab-...``."""
    return any(name.startswith("tab-") for name in figure["names"])


class CountTables(SphinxTransform):
    """Make tables of the figures that are named so, before they are numbered."""

    default_priority = 600

    def apply(self):
        """Replace the nodes, and put their captions above them."""
        for old in [f for f in self.document.findall(nodes.figure) if is_table(f)]:
            new = TableFigure(**old.attributes)
            new.source, new.line = old.source, old.line
            text = next(old.findall(nodes.caption))
            old.remove(text)
            caption = TableCaption(text.rawsource, "", *text.children)
            caption["ids"] = [f"{new['ids'][0]}-caption"]
            caption.source, caption.line = text.source, text.line
            new.extend([caption, *old.children])
            old.replace_self(new)
            for name in new["ids"]:
                self.document.ids[name] = new


_CELL = re.compile(r'<(t[dh])((?: class="num")?)>([^<]*)<')
# A column whose longest cell has more letters holds words, which need room for some in a line.
SHORT = 18


def give_words_room(html):
    """Mark a table's columns of words without intervals, which others would press to one in a line."""
    rows = html.split("<tr>")
    columns = {}
    for row in rows:
        for column, cell in enumerate(_CELL.finditer(row)):
            if cell[1] == "td":
                columns.setdefault(column, []).append(cell[3])
    words = {
        column
        for column, cells in columns.items()
        if max(map(len, cells)) > SHORT and not re.search(r"\(\S+ to ", "".join(cells))
    }

    def marked(row):
        column = count()
        return _CELL.sub(
            lambda cell: (
                f'<{cell[1]} class="words">{cell[3]}<' if next(column) in words else cell[0]
            ),
            row,
        )

    return "<tr>".join(map(marked, rows))


class NameTables(SphinxPostTransform):
    """Let a screen reader call a table by its caption, and give its words room."""

    default_priority = 200  # what is glued is there

    def run(self):
        """Point from the table to the caption."""
        for table in self.document.findall(TableFigure):
            for raw in table.findall(nodes.raw):
                text = re.sub(
                    r'aria-label="[^"]*"',
                    f'aria-labelledby="{table["ids"][0]}-caption"',
                    raw.astext(),
                    count=1,
                )
                raw.children = [nodes.Text(give_words_room(text))]


class CaptionedTable(SphinxDirective):
    """A table that is glued from a notebook, with the caption that is the directive's argument."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"name": directives.unchanged_required}
    has_content = True

    def run(self):
        """Make the same figure as a notebook's cell with a caption would."""
        figure = nodes.figure("", *self.parse_content_to_nodes())
        text, messages = self.parse_inline(self.arguments[0])
        figure += nodes.caption(self.arguments[0], "", *text)
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure, *messages]


def caption_of(node):
    """The caption of a table, for references to it."""
    return next(node.findall(nodes.caption)).astext()


def setup(app):
    """Register it all."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_equation, None))
    app.add_enumerable_node(
        TableFigure,
        "table",
        caption_of,
        html=(begin_figure, lambda self, node: self.body.append("</figure>\n")),
    )
    app.add_node(TableCaption, html=(begin_caption, end_caption))
    app.add_directive("captioned-table", CaptionedTable)
    app.add_transform(CountTables)
    app.add_post_transform(NameTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
