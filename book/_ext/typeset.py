"""Equations as MathML, made when the book is built, and tables with a number of their own."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
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


def is_table(figure):
    """Whether a figure's name says that it is a table: ``tab-...``."""
    return any(name.startswith("tab-") for name in figure["names"])


class CountTables(SphinxTransform):
    """Make tables of the figures that are named so, before they are numbered."""

    default_priority = 600

    def apply(self):
        """Replace the nodes, and put their captions above them."""
        for old in [f for f in self.document.findall(nodes.figure) if is_table(f)]:
            new = TableFigure("", *old.children, **old.attributes)
            new.source, new.line = old.source, old.line
            caption = next(new.findall(nodes.caption))
            caption["ids"] = [f"{new['ids'][0]}-caption"]
            new.remove(caption)
            new.insert(0, caption)
            old.replace_self(new)
            for name in new["ids"]:
                self.document.ids[name] = new


class NameTables(SphinxPostTransform):
    """Let a screen reader call a table by its caption."""

    default_priority = 200  # what is glued is there

    def run(self):
        """Point from the table to the caption."""
        for table in self.document.findall(TableFigure):
            for raw in table.findall(nodes.raw):
                text = re.sub(r'aria-label="[^"]*"', f'aria-labelledby="{table["ids"][0]}-caption"',
                              raw.astext(), count=1)
                raw.children = [nodes.Text(text)]


def caption_of(node):
    """The caption of a table, for references to it."""
    return next(node.findall(nodes.caption)).astext()


def setup(app):
    """Register it all."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_equation, None))
    app.add_enumerable_node(
        TableFigure, "table", caption_of,
        html=(lambda self, node: self.visit_figure(node), lambda self, node: self.depart_figure(node)),
    )
    app.add_transform(CountTables)
    app.add_post_transform(NameTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
