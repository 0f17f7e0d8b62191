"""Tables of a page: numbers stay numbers until the last step, which is this one."""

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

_NUMBER = Markup(' class="num"')
_TABLE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
    """\
{% macro row(tag, values) %}
<tr>{% for value in values %}<{{ tag }}{{ numeric[loop.index0] }}>{{ value }}</{{ tag }}>{% endfor %}</tr>
{%- endmacro %}
<div class="cba-table" role="group" aria-label="{{ name }}" tabindex="0">\
<table><thead>{{ row("th", heads) }}</thead>\
<tbody>{% for values in rows %}{{ row("td", values) }}{% endfor %}</tbody></table></div>"""
)


def table_html(frame, formats=None):
    r"""A frame as a plain table; every text is escaped, numbers are aligned at the right.

    Parameters
    ----------
    frame : pandas.DataFrame
        What is in it may be anything that its column's format takes: a number, or an estimate as a
        row with its interval.
    formats : mapping of column to callable, optional
        How a column's values are printed. A column that has one is one of numbers, the others are
        text; a value that is text already (such as "none left") is printed as it is.

    Returns
    -------
    str

    Examples
    --------
    >>> import pandas as pd
    >>> html = table_html(pd.DataFrame({"category": ["<Age>"], "n": [1200.0]}), {"n": "{:,.0f}".format})
    >>> "<td>&lt;Age&gt;</td><td class=\"num\">1,200</td>" in html
    True
    """
    formats = formats or {}
    unknown = set(formats) - set(frame)
    if unknown:
        raise ValueError(f"formats are given for {sorted(unknown)}; the table has {list(frame)}")

    def printed(column, value):
        if column not in formats:
            return str(value)
        return _held(value if isinstance(value, str) else formats[column](value))

    return _TABLE.render(
        name=f"table of {', '.join(map(str, frame.columns))}",
        heads=frame.columns,
        numeric=[_NUMBER if column in formats else "" for column in frame],
        rows=[
            [printed(c, v) for c, v in zip(frame, row, strict=True)]
            for row in frame.astype(object).to_numpy()
        ],
    )


def _held(text):
    r"""A number whose line may break before its interval and nowhere else.

    Examples
    --------
    >>> _held("3.1 % (2.0 to 5.0)").split(" ")
    ['3.1\xa0%', '(2.0\xa0to\xa05.0)']
    """
    return text.replace(" ", "\u00a0").replace("\u00a0(", " (")
