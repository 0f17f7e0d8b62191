"""The item explorer: every item of a study beside what each model answered at each precision.

A page opened from disk (``file://``) may not fetch, so the data is a script that assigns one
object, and the same rows lie beside it as CSV. The table is Tabulator (MIT, vendored): it is
maintained, needs nothing else, draws only the rows in view, and escapes text by default. The rest
of the page, ``book/_static/explorer.js``, writes text as text and never as HTML.

A study of 45 models has a hundred thousand answers, so numbers are letters of a text (see
:func:`packed`): half the size of a list of numbers, and read faster.
"""

import gzip
import json
from html import escape

import numpy as np
import pandas as pd

from cba_utils.measures.frames import VERSION, item_table, pair_with
from cba_utils.measures.planted import STRENGTHS, planted_is_known, planted_templates
from cba_utils.measures.transitions import TRANSITIONS, observed_changes
from cba_utils.names import ROLES
from cba_utils.study.files import write_text, write_whole
from cba_utils.study.protocol import book_folder
from cba_utils.study.roles import template_ids
from cba_utils.telling.drawing import ROLE_COLOURS
from cba_utils.telling.numbers import percent
from cba_utils.telling.tables import table_html

REFERENCE = "bf16"
OUTCOMES = [*ROLES, "unparsed"]
OUTCOME_WORDS = {
    "stereotyped": "stereotyped",
    "anti_stereotyped": "anti-stereotyped",
    "unknown": "unknown",
    "unparsed": "no answer",
}
CHANGE_WORDS = {
    "became_biased": "gained stereotyped",
    "lost_bias": "lost stereotyped",
    "became_anti": "gained anti-stereotyped",
    "lost_anti": "lost anti-stereotyped",
    "unchanged": "unchanged",
}
CELL = ["model", "precision", "item_id"]
ITEM_TEXTS = [
    "item_id",
    "category",
    "question_polarity",
    "context_condition",
    "context",
    "question",
    "ans0",
    "ans1",
    "ans2",
]
# What items can be filtered by: a control's name, the items' column and a label. The first three always
# stand on the page, the others where they tell items apart.
ITEM_FILTERS = [
    ("category", "category", "Category"),
    ("polarity", "question_polarity", "Question polarity"),
    ("context", "context_condition", "Context"),
    ("version", "version", "Templates"),
    ("margin", "margin", "Planted margin, nats"),
    ("lean", "lean", "Planted lean"),
]
ALWAYS = 3
# Rows of the table that stands in where scripts do not run.
STATIC_ROWS = 12
# A packed number is the letter this far behind it: past the quotation mark, so few need escapes.
PACKED_FROM = 35
VENDOR = "vendor/tabulator-6.5.3"


def answer_shares(report):
    """What each model answered to each item: probabilities, or shares of draws without them.

    Parameters
    ----------
    report : cba_utils.telling.study.Study

    Returns
    -------
    DataFrame
        One row a model, precision and item: ``model, precision, item_id``, the four outcomes
        (``stereotyped, anti_stereotyped, unknown, unparsed``) to three decimals, and ``change``:
        which `metrics.TRANSITIONS` the item's draws made since BF16, joined by ``+``, or
        ``unchanged``. It is empty where the question does not arise: at BF16, and on
        disambiguated items.
    """
    table = item_table(report.best)
    shares = table[OUTCOMES].div(table["draws"], axis=0).round(3)
    shares = pd.concat([table[CELL].astype(str), shares], axis=1)
    paired = pair_with(report.drawn, REFERENCE)
    paired = paired[paired["context_condition"] == "ambig"]
    flags = observed_changes(paired)
    kinds = list(TRANSITIONS)
    seen = flags[[gained for gained, _ in TRANSITIONS.values()]].to_numpy(bool)
    named = [
        "+".join(k for k, on in zip(kinds, row, strict=True) if on) or "unchanged" for row in seen
    ]
    changes = paired[CELL].astype(str).assign(change=np.array(named, object))
    shares = shares.merge(changes, on=CELL, how="left", validate="one_to_one")
    places = {"model": shares["model"].unique().tolist(), "precision": report.precisions}
    return shares.assign(change=shares["change"].fillna("")).sort_values(
        list(places),
        key=lambda names: names.map(places[names.name].index),
        kind="stable",
        ignore_index=True,
    )


def measure(report):
    """What the shares of a study are, in words."""
    if report.exact:
        return "probability at the study's temperature"
    draws = report.samples["seed"].nunique()
    return f"share of the {draws} seeded draws (this study has no probabilities)"


def start(shares):
    """Model and precision that the page opens with: the middle one of the models, fewest bits.

    The models are ordered by how many items gained a stereotyped answer there. The one with most would
    show an outlier as if it were usual.

    Examples
    --------
    >>> start(pd.DataFrame({"model": ["a", "b", "c"], "precision": "q3",
    ...                     "change": ["became_biased", "lost_bias", "unchanged"]}))
    ('c', 'q3')
    """
    precision = shares["precision"].iloc[-1]
    there = shares[shares["precision"] == precision]
    gained = there["change"].str.contains("became_biased")
    counts = gained.groupby(there["model"], sort=False).sum().sort_values(kind="stable")
    return counts.index[(len(counts) - 1) // 2], precision


def packed(numbers):
    r"""Whole numbers as a text, one letter each; the page takes ``charCodeAt`` less `PACKED_FROM`.

    Letters up to 1035 take at most two bytes, and the small numbers, which are most, take one.

    Examples
    --------
    >>> packed([0, 1, 1000])
    '#$\u040b'
    """
    return "".join(map(chr, np.asarray(numbers).ravel() + PACKED_FROM))


def page_data(report, shares):
    """All that the page shows, as plain values: items by column, then one entry a cell.

    Probabilities are integers per mille, four an item, in the order of ``outcomes``; ``change`` is
    an index into ``changes``. Both are :func:`packed`.
    """
    items = items_of(report)
    filters = _filters(items)
    opens = dict(zip(("model", "precision"), start(shares), strict=True))
    # Only ambiguous items can change, and headline rates count the main templates alone.
    opens["context"] = "ambig"
    if any(name == "version" for name, _, _ in filters) and (items["version"] == VERSION).any():
        opens["version"] = VERSION
    changes = sorted(shares["change"].unique())
    cells = []
    for (model, precision), rows in shares.groupby(["model", "precision"], sort=False):
        rows = rows.set_index("item_id").loc[items["item_id"]]
        cells.append(
            {
                "model": model,
                "precision": precision,
                "p": packed((rows[OUTCOMES].to_numpy() * 1000).round().astype(int)),
                "change": packed(rows["change"].map(changes.index)),
            }
        )
    return {
        "study": report.study,
        "measure": measure(report),
        "reference": REFERENCE,
        "about": _about(report),
        "packedFrom": PACKED_FROM,
        "start": opens,
        "filters": filters,
        "outcomes": list(OUTCOME_WORDS.items()),
        "kinds": list(CHANGE_WORDS.items()),
        "changes": changes,
        "items": {name: items[name].tolist() for name in items},
        "cells": cells,
    }


def items_of(report):
    """Items with the role of each answer and what was planted in them, where it is known.

    Parameters
    ----------
    report : cba_utils.telling.study.Study

    Returns
    -------
    DataFrame
        What the records lack is empty (a label: -1), or no column where no item has it (``version``,
        ``margin``, ``lean``).
    """
    items = report.items.reindex(columns=[*report.items, *set(ITEM_TEXTS) - set(report.items)])
    roles = {}
    for k in range(3):
        places = [(items[f"{role}_index"] == k).fillna(False).astype(bool) for role in ROLES]
        roles[f"role{k}"] = np.select(places, ROLES, "")
    texts = items[ITEM_TEXTS].astype(object).fillna("").astype(str)
    label = items["label"] if "label" in items else pd.Series(-1, items.index)
    texts = texts.assign(**roles, label=label.astype(int))
    if "version" in items and items["version"].notna().any():
        texts["version"] = items["version"].fillna("").astype(str)
    if report.organisms and report.own_items and planted_is_known():
        known = planted_templates(pd.read_csv(STRENGTHS)).reindex(template_ids(items))
        for name in ("margin", "lean"):
            texts[name] = ["" if np.isnan(x) else f"{x:g}" for x in known[name]]
    return texts


def _filters(items):
    """Those of `ITEM_FILTERS` that the page has."""
    more = [f for f in ITEM_FILTERS[ALWAYS:] if f[1] in items and items[f[1]].nunique() > 1]
    return ITEM_FILTERS[:ALWAYS] + more


def _about(report):
    """What must be said wherever an item is shown without the rest of the book."""
    if not report.organisms:
        return ""
    groups = "; its groups are invented" if report.own_items else ""
    return (
        f"Toy models of at most {report.millions:.2g} million weights, trained for this study{groups}. "
        "Nothing here says what a model in use does."
    )


def script(data):
    r"""The data as a script that assigns it; no text in it can end a script element.

    Examples
    --------
    >>> script({"question": "</script>"})
    'window.cbaExplorer = {"question":"\\u003c/script>"};\n'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    # One cell a line, for readable differences; inside a text the quote would be escaped.
    text = text.replace('{"model"', '\n{"model"')
    return f"window.cbaExplorer = {text};\n"


def write(report, shares):
    """Write the data of the page into the static files of the study's book.

    Parameters
    ----------
    report : cba_utils.telling.study.Study
    shares : DataFrame
        From :func:`answer_shares`.

    Returns
    -------
    Path
        The folder: ``data.js``, and for other tools ``items.csv`` and ``answers.csv.gz``.
    """
    folder = book_folder(report.study) / "book" / "_static" / "explorer-data"
    write_text(script(page_data(report, shares)), folder / "data.js")
    write_text(items_of(report).to_csv(index=False), folder / "items.csv")
    text = shares.to_csv(index=False, float_format="%g").encode()
    write_whole(
        folder / "answers.csv.gz", lambda path: path.write_bytes(gzip.compress(text, mtime=0))
    )
    return folder


def page(report, shares, static="../_static"):
    """The page's HTML: controls that the script fills, and a plain table for where none runs.

    Parameters
    ----------
    report : cba_utils.telling.study.Study
    shares : DataFrame
        From :func:`answer_shares`.
    static : str
        Address of the book's static files.

    Returns
    -------
    str
    """
    colours = ";".join(f"--{role}:{colour}" for role, colour in ROLE_COLOURS.items())
    chosen = [("model", "Model"), ("precision", "Precision"), ("change", "Change since BF16")]
    chosen += [(name, label) for name, _, label in _filters(items_of(report))]
    selects = "".join(
        f'<label>{label} <select name="{name}"></select></label>' for name, label in chosen
    )
    answers = "".join(f'<option value="{k}">{word}</option>' for k, word in OUTCOME_WORDS.items())
    rows, said = _static_rows(report, shares)
    return f"""\
<link rel="stylesheet" href="{static}/{VENDOR}/tabulator_simple.min.css">
<link rel="stylesheet" href="{static}/explorer.css">
<div id="cba-explorer" style="{colours}" hidden>
<p class="cba-skips"><a href="#cba-list">Skip the filters</a> <a href="#cba-item">Skip to the item</a></p>
<p role="alert" class="cba-wrong"></p>
<form role="search" aria-label="Filters"><label>Words in the item
<input type="search" name="search" autocomplete="off" spellcheck="false"></label>{selects}
<button type="reset">Reset all filters</button></form>
<p role="status" class="cba-count"></p>
<p id="cba-keys" class="cba-keys">In the list, arrow keys go from item to item and Enter opens one.</p>
<div id="cba-list" class="cba-rows" aria-label="Items" aria-describedby="cba-keys"></div>
<section id="cba-item" class="cba-item" aria-label="The chosen item" tabindex="-1">
<p class="cba-steps"><button type="button" name="previous">Previous item</button>
<button type="button" name="next">Next item</button>
<button type="button" name="back">Back to the list</button>
<span role="status"></span></p>
<div class="cba-said"></div>
<p class="cba-picture">A picture of this item with this model's answers:
<button type="button" name="svg">SVG</button> <button type="button" name="png">PNG</button></p>
<div class="cba-all"><h4>Every model</h4>
<label>Answer shown <select name="answer">{answers}</select></label>
<div class="cba-table" role="region" tabindex="0" aria-label="Every model by precision"></div></div>
</section>
</div>
<div id="cba-explorer-static">
<p>{escape(said)}</p>
{table_html(rows, dict.fromkeys(rows.columns[3:], percent))}
</div>
<p class="cba-data">Everything as CSV:
<a download href="{static}/explorer-data/items.csv">items ({len(report.items):,} rows)</a>,
<a download href="{static}/explorer-data/answers.csv.gz">answers ({len(shares):,} rows, gzip)</a></p>
<script src="{static}/explorer-data/data.js"></script>
<script src="{static}/{VENDOR}/tabulator.min.js"></script>
<script src="{static}/explorer.js"></script>"""


def _static_rows(report, shares):
    """The items whose stereotyped answers rose most where the page starts, and what they are."""
    model, precision = start(shares)
    wide = shares[shares["model"] == model].pivot(
        index="item_id", columns="precision", values="stereotyped"
    )
    # Disambiguated items have no change: there a person can be the right answer.
    asked = shares.loc[shares["change"] != "", "item_id"].unique()
    rise = (wide[precision] - wide[REFERENCE])[asked]
    chosen = rise.sort_values(ascending=False, kind="stable").index[:STATIC_ROWS]
    items, wide = items_of(report).set_index("item_id").loc[chosen], wide.loc[chosen]
    rows = pd.DataFrame(
        {
            "item": chosen,
            "context and question": items["context"] + " " + items["question"],
            "stereotyped answer": [
                next((row[f"ans{k}"] for k in range(3) if row[f"role{k}"] == "stereotyped"), "")
                for _, row in items.iterrows()
            ],
            f"at {REFERENCE.upper()}": wide[REFERENCE],
            f"at {precision.upper()}": wide[precision],
        }
    )
    said = (
        f"Without scripts, this page shows {len(rows)} of {len(report.items):,} items: the "
        f"ambiguous ones whose stereotyped answers rose most in {model} at {precision.upper()}. "
        f"The last two columns are the {measure(report)} of the stereotyped answer. "
        "The files below hold everything."
    )
    return rows, said
