"""Every figure of the book: one function a figure, one style for all.

A figure function takes a tidy frame of estimates (columns ``precision``, ``measure``, ``estimate``,
``low``, ``high``, ``n`` and the columns that group them) and returns a matplotlib figure.
:func:`show` displays it, and the book puts it on the page as inline vector graphics that take the page's
text colour (so they read in light and in dark), with alt text and the data behind it as a CSV download.
"""

import base64
import html
import io
import itertools
import re
import textwrap
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from cba_utils.answering.precisions import most_bits_first
from cba_utils.measures.measure import derived
from cba_utils.measures.measure import measure as facts
from cba_utils.telling.numbers import percent

# At least 3:1 against white and against the dark theme's background, and told apart by readers
# with any common colour vision (Okabe and Ito's set, less its two light colours).
PALETTE = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "grey": "#7f7f7f",
}
ROLE_COLOURS = {
    "stereotyped": PALETTE["orange"],
    "anti_stereotyped": PALETTE["blue"],
    "unknown": PALETTE["green"],
    "unparsed": PALETTE["grey"],
}
ROLE_HATCHES = {"stereotyped": "////", "anti_stereotyped": "....", "unknown": "", "unparsed": "xx"}
# How series look, in this order; beyond the last they begin again.
LOOKS = [
    {"color": PALETTE["blue"], "marker": "o", "linestyle": "-"},
    {"color": PALETTE["orange"], "marker": "s", "linestyle": "--"},
    {"color": PALETTE["green"], "marker": "^", "linestyle": "-."},
    {"color": PALETTE["purple"], "marker": "D", "linestyle": ":"},
    {"color": "#8a6d00", "marker": "v", "linestyle": "-"},
    {"color": "#7a5fd0", "marker": "P", "linestyle": "--"},
]
_FAMILIES: ContextVar[dict[str, str]] = ContextVar("families")
# A colour that nothing else uses: ``show`` swaps it for the page's own text colour.
INK = "#1b1f23"
# What a drawing stands on where the page's own background is not known.
CARD = '<rect width="100%" height="100%" rx="6" fill="#ffffff"/>'
WIDTH = 4.5  # inches; on a phone the page scales it by about 0.85, so 10 pt stays readable


def style():
    """Settings that every figure is drawn with, as a context manager.

    Examples
    --------
    >>> with style():
    ...     mpl.rcParams["svg.fonttype"]
    'none'
    """
    return mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": PALETTE["grey"],
            "grid.alpha": 0.25,
            "grid.linewidth": 0.8,
            "axes.facecolor": "none",
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "hatch.linewidth": 0.6,
            "svg.fonttype": "none",
            "svg.hashsalt": "cba",
        }
    )


@contextmanager
def families(names):
    """Draw in the looks of a study: its families have theirs by their order in it, in every figure.

    Parameters
    ----------
    names : dict of str to str
        How legends call each family.

    Examples
    --------
    >>> with families({"zulu": "Zulu (1M weights)", "alpha": "alpha"}):
    ...     (_look(["alpha", "zulu"])["zulu"]["color"] == PALETTE["blue"], called("zulu"))
    (True, 'Zulu (1M weights)')
    """
    token = _FAMILIES.set(dict(names))
    try:
        yield
    finally:
        _FAMILIES.reset(token)


def called(name):
    """What a legend calls a series: a family by its whole title."""
    return _FAMILIES.get({}).get(name, name)


def _look(names):
    """Colour, marker and line style for each name; a family always looks the same."""
    known = list(_FAMILIES.get({}))
    # What is no family begins with the look that three families leave.
    spare = itertools.chain(range(3, 4), itertools.count())
    return {
        name: LOOKS[(known.index(name) if name in known else next(spare)) % len(LOOKS)]
        for name in names
    }


def _panels(count, height):
    """A figure of ``count`` panels above each other that share their horizontal axis."""
    figure = Figure(figsize=(WIDTH, 0.7 + height * count), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(count, 1, sharex=True))


def _select(estimates, measure):
    rows = estimates[estimates["measure"] == measure]
    if rows.empty:
        known = ", ".join(sorted(estimates["measure"].unique()))
        raise ValueError(f"no estimates of measure {measure!r}; the frame has: {known}")
    return rows


def _precisions(estimates):
    return most_bits_first(estimates["precision"].unique())


def _errorbars(axes, rows, places, offset, **look):
    """Estimates with their intervals, one a precision, shifted by ``offset``."""
    rows = rows.assign(place=rows["precision"].map(places)).dropna(subset="place")
    rows = rows.sort_values("place")
    if rows[["low", "high"]].isna().all(axis=None):  # no bar in the legend where none is drawn
        axes.plot(rows["place"] + offset, rows["estimate"], markersize=5, linewidth=1.4, **look)
        return
    spread = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
    axes.errorbar(
        rows["place"] + offset,
        rows["estimate"],
        # an interval may miss its own estimate by a rounding error
        yerr=np.clip(np.nan_to_num(spread), 0, None),
        markersize=5,
        linewidth=1.4,
        elinewidth=1.2,
        capsize=2.5,
        **look,
    )


def _by_precision(axes, estimates, measure, by, places, label=True):
    """One dodged series for each level of ``by``."""
    rows = _select(estimates, measure)
    names = list(dict.fromkeys(rows[by]))
    for k, (name, look) in enumerate(_look(names).items()):
        offset = 0.2 * (k - (len(names) - 1) / 2)
        _errorbars(
            axes,
            rows[rows[by] == name],
            places,
            offset,
            label=called(name) if label else None,
            **look,
        )


def _placebo(axes, estimates, measure, by, places):
    """The placebo beside each series: the same measure where only the draws differ."""
    rows = estimates[estimates["measure"] == measure]
    names = list(dict.fromkeys(rows[by]))
    for k, (name, look) in enumerate(_look(names).items()):
        offset = 0.2 * (k - (len(names) - 1) / 2) + 0.08
        look = {**look, "linestyle": "none", "markerfacecolor": "none", "zorder": 5}
        _errorbars(axes, rows[rows[by] == name], places, offset, **look)
    if names:
        axes.plot(
            [], [], color=INK, marker="o", markerfacecolor="none", linestyle="none", markersize=5,
            label="hollow: placebo",
        )  # fmt: skip


def _published(axes, published, quantity, places):
    """Published ranges as grey bars, drawn at the right of their precision."""
    if published is None:
        return
    label = "grey: published, other models"
    for row in published[published["quantity"] == quantity].itertuples():
        if row.precision in places:
            low = 0.0 if np.isnan(row.low) else row.low / 100
            axes.bar(
                places[row.precision] + 0.38,
                row.high / 100 - low,
                bottom=low,
                width=0.16,
                color=PALETTE["grey"],
                alpha=0.6,
                label=label,
            )
            label = "_nolegend_"  # named once


def _precision_axis(axes, places):
    axes.set_xticks(list(places.values()), [p.upper() for p in places])
    axes.set_xlim(-0.55, len(places) - 0.45)
    axes.tick_params(length=0)


def _percent_axis(axis):
    """Percentages on an axis that spans at least one per cent, so that its ticks differ."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    low, high = axis.get_view_interval()
    if high - low < 0.01:
        axis.set_view_interval(low, low + 0.01, ignore=True)


def _finish(figure, panels, places):
    _precision_axis(panels[-1], places)
    panels[-1].set_xlabel("precision, from most to fewest bits")
    entries = {}
    for panel in panels:
        _percent_axis(panel.yaxis)
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    # series first, the two notes on how to read them last
    labels = sorted(entries, key=lambda label: label.startswith(("hollow:", "grey:")))
    handles = [entries[label] for label in labels]
    # notes are wide: with few series they get a row each
    columns = 2 if len(labels) > 3 else 1
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.0)
    return figure


def nothing(title):
    """A figure that says that the study holds nothing to draw."""
    with style():
        figure, (axes,) = _panels(1, 1.0)
        axes.text(0.5, 0.5, "not measured in this study", ha="center", va="center")
        axes.set_axis_off()
        axes.set_title(title)
        return figure


def dose_response(estimates, measures=("srs", "usr"), by="family"):
    """Role rates by precision, one panel a measure, one series a family.

    Parameters
    ----------
    estimates : pandas.DataFrame
        Tidy estimates with columns ``by``, ``precision``, ``measure``, ``estimate``, ``low``,
        ``high`` and ``n``; rates are fractions.
    measures : sequence of str
        The panels, from top to bottom.
    by : str
        The column whose levels become series.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("mistral", p, "srs", r, r - 0.02, r + 0.02, 5)
    ...         for p, r in [("bf16", 0.02), ("q4", 0.05), ("q3", 0.2)]]
    >>> columns = ["family", "precision", "measure", "estimate", "low", "high", "n"]
    >>> figure = dose_response(pd.DataFrame(rows, columns=columns), measures=["srs"])
    >>> len(figure.axes)
    1
    """
    places = {p: k for k, p in enumerate(_precisions(estimates))}
    with style():
        figure, panels = _panels(len(measures), 2.2)
        for axes, measure in zip(panels, measures, strict=True):
            _by_precision(axes, estimates, measure, by, places)
            axes.set_title(facts(measure).title)
        return _finish(figure, panels, places)


def transitions(estimates, published=None, by="family"):
    """Items that gained a stereotyped answer, with fresh draws and with the published seeds.

    Measures ``became_biased_expected`` (beside its placebo) and ``became_biased`` (beside the published
    ranges); those that the frame has become panels.
    """
    places = {p: k for k, p in enumerate(p for p in _precisions(estimates) if p != "bf16")}
    found = set(estimates["measure"])
    measures = [m for m in ("became_biased_expected", "became_biased") if m in found]
    with style():
        figure, panels = _panels(len(measures), 2.3)
        for axes, measure in zip(panels, measures, strict=True):
            _by_precision(axes, estimates, measure, by, places)
            if measure == "became_biased":
                _published(axes, published, "items_became_biased", places)
            else:
                placebo = derived(measure, "placebo").name
                _placebo(axes, estimates, placebo, by, places)
            axes.set_title(facts(measure).title)
        return _finish(figure, panels, places)


def headline(estimates, published=None, by="family"):
    """The whole story in two panels: bias emergence above, perplexity below, by precision.

    The same precisions, the same models; what the lower panel sees is what a usual quality
    check would have seen. Without fresh draws the upper panel has the observed rate and no placebo;
    without perplexity there is no lower panel.
    """
    found = set(estimates["measure"])
    changed = [m for m in ("became_biased_expected", "became_biased") if m in found][0]
    seen = "perplexity_change" in found
    places = {p: k for k, p in enumerate(p for p in _precisions(estimates) if p != "bf16")}
    with style():
        figure, panels = _panels(1 + seen, 2.4)
        _by_precision(panels[0], estimates, changed, by, places)
        _placebo(panels[0], estimates, "became_biased_placebo", by, places)
        _published(panels[0], published, "items_became_biased", places)
        panels[0].set_title("Gained a stereotyped answer, % of items")
        if seen:
            _by_precision(panels[1], estimates, "perplexity_change", by, places)
            _published(panels[1], published, "perplexity_change", places)
            panels[1].set_title(facts("perplexity_change").title)
        return _finish(figure, panels, places)


def perplexity_gap(points, by="family"):
    """Perplexity change against items that became biased, one panel a precision.

    Parameters
    ----------
    points : pandas.DataFrame
        Columns ``by``, ``precision``, ``perplexity_change`` and ``became_biased_expected``
        (fractions); one row a checkpoint. Without rows, the figure says so.
    """
    title = "Gained a stereotyped answer, % of items"
    if points.empty:
        return nothing(title)
    precisions = _precisions(points)
    columns = min(2, len(precisions))
    lines = -(-len(precisions) // columns)
    with style():
        figure = Figure(figsize=(WIDTH, 1.1 + 1.4 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        looks = _look(list(dict.fromkeys(points[by])))
        for axes, precision in zip(panels, precisions, strict=False):
            for name, look in looks.items():
                rows = points[(points["precision"] == precision) & (points[by] == name)]
                axes.plot(
                    rows["perplexity_change"],
                    rows["became_biased_expected"],
                    linestyle="none",
                    color=look["color"],
                    marker=look["marker"],
                    markersize=4.5,
                    label=called(name) if axes is panels[0] else None,
                )
            axes.set_title(precision.upper(), fontweight="bold")
            axes.axvline(0, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        for axes in panels[len(precisions) :]:
            axes.set_axis_off()
        # most changes are near zero and those at the lowest precision far away
        _change_axis(panels[0], points["perplexity_change"])
        _percent_axis(panels[0].yaxis)
        figure.supxlabel("perplexity, % change from BF16 (log beyond ±1 %)", fontsize=10)
        figure.supylabel(title, fontsize=10)
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def _change_axis(axes, values):
    """A horizontal axis of relative changes: linear up to ±1 %, logarithmic beyond."""
    axes.set_xscale("symlog", linthresh=0.01)
    reach = max(np.abs(values).max(), 0.01)
    decades = 0.01 * 10.0 ** np.arange(int(np.ceil(np.log10(reach / 0.01))) + 1)
    falls, rises = (decades[decades <= 10 * limit] for limit in (-values.min(), values.max()))
    # on a narrow panel a tick every other decade has room
    axes.set_xticks([*-falls[::2][::-1], 0, *rises[::2]])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(2 * values.min(), -0.01), max(2 * values.max(), 0.01))


def depth_curves(estimates, measure="became_biased_expected", by="depth"):
    """A measure by precision, one series for each depth at which alignment was stopped.

    A frame without the measure, from a study without probabilities, gives a figure that says so.
    """
    if measure not in set(estimates["measure"]):
        return nothing(facts(measure).title)
    rows = _select(estimates, measure)
    places = {p: k for k, p in enumerate(_precisions(rows))}
    depths = list(dict.fromkeys(rows[by]))
    with style():
        figure, (axes,) = _panels(1, 3.2)
        for k, (depth, look) in enumerate(_look(depths).items()):
            offset = 0.14 * (k - (len(depths) - 1) / 2)
            _errorbars(axes, rows[rows[by] == depth], places, offset, label=str(depth), **look)
        _placebo(axes, estimates, derived(measure, "placebo").name, by, places)
        axes.set_title(facts(measure).title)
        return _finish(figure, [axes], places)


def planted(estimates):
    """What organisms give at BF16 against what was planted: margins, leans, leans of the bases.

    Parameters
    ----------
    estimates : pandas.DataFrame
        Tidy estimates of ``margin_given`` and ``lean_given`` with ``planted``, ``aligned`` and
        ``held_out``; the last are drawn hollow.
    """
    shown = [
        ("margin_given", True, "Aligned: margin of “unknown”, nats"),
        ("lean_given", True, "Aligned: stereotyped, % of persons named"),
        ("lean_given", False, "Bases: stereotyped, % of persons named"),
    ]
    parts = [
        (title, estimates[(estimates["measure"] == name) & (estimates["aligned"] == aligned)])
        for name, aligned, title in shown
    ]
    parts = [(title, rows) for title, rows in parts if len(rows)]
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 2.7 * len(parts)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(parts), 1))
        for axes, (title, rows) in zip(panels, parts, strict=True):
            rungs = sorted(rows["planted"].dropna().unique())
            ends = [rungs[0], rungs[-1]]
            axes.plot(ends, ends, color=INK, linewidth=1, linestyle=":", label="as planted")
            step = 0.02 * (ends[1] - ends[0])
            for k, (name, look) in enumerate(_look(list(dict.fromkeys(rows["family"]))).items()):
                for held_out in (False, True):
                    part = rows[(rows["family"] == name) & (rows["held_out"] == held_out)]
                    part = part.dropna(subset="planted").assign(precision=lambda d: d["planted"])
                    if part.empty:
                        continue
                    places = {value: value for value in part["planted"]}
                    hollow = {"markerfacecolor": "none", "linestyle": ""} if held_out else {}
                    label = None if held_out else called(name)
                    offset = step * (k - 1) + 2 * step * held_out
                    _errorbars(axes, part, places, offset, label=label, **look | hollow)
            axes.set_title(title)
            axes.set_xticks(rungs)
            if rows["measure"].iloc[0] == "lean_given":
                axes.xaxis.set_major_formatter(PercentFormatter(1.0))
                _percent_axis(axes.yaxis)
            else:
                axes.set_xticks(rungs, [f"{value:g}" for value in rungs], fontsize=9)
        panels[-1].set_xlabel("planted")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        return figure


def cell_summary(shares, title=""):
    """Role shares of one cell, one stacked bar a row of ``shares``.

    Parameters
    ----------
    shares : pandas.DataFrame
        One row a category, one column a role; fractions that sum to one.
    title : str
        What the cell is, such as ``"mistral at q4"``.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.32 * len(shares)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(shares))
        for role in [r for r in ROLE_COLOURS if r in shares.columns]:
            axes.barh(
                shares.index.astype(str),
                shares[role],
                left=left,
                color=ROLE_COLOURS[role],
                hatch=ROLE_HATCHES[role],
                edgecolor=INK,
                linewidth=0.5,
                label=role.replace("_", "-"),
            )
            left = left + shares[role].to_numpy()
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title)
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def alt_text(what, estimates, measure, by="family", text=percent):
    r"""A sentence that says what a figure by precision shows, numbers included.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"family": "phi3", "precision": ["bf16", "q3"], "measure": "srs",
    ...                       "estimate": [0.01, 0.2], "low": 0, "high": 0.3, "n": 5})
    >>> alt_text("Stereotyped answers", frame, "srs")
    'Stereotyped answers: phi3 BF16 1.0\xa0%, Q3 20.0\xa0%.'
    """
    rows = _select(estimates, measure)
    parts = []
    for name, group in rows.groupby(by, sort=True):
        group = group.set_index("precision")["estimate"]
        values = [f"{p.upper()} {text(group[p])}" for p in _precisions(rows) if p in group]
        parts.append(f"{name} {', '.join(values)}")
    return f"{what}: {'; '.join(parts)}."


def told(what, frame, measure, by="family", text=percent):
    """Alt text of one measure, without the cells in which it is not defined."""
    rows = frame[(frame["measure"] == measure) & frame["estimate"].notna()]
    return alt_text(what, rows, measure, by, text) if len(rows) else f"{what}: nothing to show."


def alt_shares(shares):
    r"""A sentence a category that says how its answers divide over the roles.

    Examples
    --------
    >>> import pandas as pd
    >>> alt_shares(pd.DataFrame({"unknown": [0.9], "stereotyped": [0.1]}, index=["Age"]))
    'Age: unknown 90.0\xa0%, stereotyped 10.0\xa0%.'
    """
    return " ".join(
        f"{category}: {', '.join(f'{role} {percent(value)}' for role, value in row.items())}."
        for category, row in shares.iterrows()
    )


def preview(estimates, title, note, published=None):
    """The headline figure beside the book's title: what a link to the book shows elsewhere.

    Parameters
    ----------
    estimates : pandas.DataFrame
        As for :func:`headline`.
    title : str
    note : str
        Whose numbers they are.
    published : pandas.DataFrame, optional

    Returns
    -------
    matplotlib.figure.Figure
        1200 by 630 pixels when it is saved as PNG, the size that such previews have.
    """
    story = headline(estimates, published)
    buffer = io.BytesIO()
    with style():
        story.savefig(buffer, dpi=580 / story.get_figheight())
        image = mpl.image.imread(io.BytesIO(buffer.getvalue()))
        card = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
        card.figimage(image, 1150 - image.shape[1], 25)
        lines = "\n".join(textwrap.wrap(title, 16))
        card.text(0.05, 0.88, lines, size=38, va="top", weight="bold", linespacing=1.3)
        card.text(0.05, 0.09, note, size=20, linespacing=1.4)
    return card


def svg(figure, name):
    """The figure as deterministic SVG whose ids start with ``name``."""
    with style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # two decimals of a point are below a pixel, and the same on every machine
    text = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)


def show(figure, name, alt, data=None, folder=None, metadata=None):
    """Display a figure with alt text and the data behind it.

    It is displayed as vector graphics, which the book takes (see :func:`figure_html`), and as an image:
    viewers show no vector graphics of a notebook that they do not trust.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Short name, used for ids, files and the glue key.
    alt : str or list of str
        What the figure shows, in sentences, with the numbers that matter.
    data : pandas.DataFrame, optional
        The rows that the figure draws; none are offered where there are none.
    folder : path, optional
        Also write ``name.svg`` and ``name.csv`` there.
    metadata : dict, optional
        Of the display; by default, what lets any other page show the figure too.
    """
    alt = alt if isinstance(alt, str) else " ".join(alt)
    data = data if data is None or len(data) else None
    if not alt.strip():
        raise ValueError(f"figure {name!r} needs alt text")
    card = svg(figure, name).replace(">\n", f">\n{CARD}\n", 1)
    card = card.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
    shown = {"image/svg+xml": card, "image/png": png(figure), "text/plain": alt}
    if data is not None:
        shown["text/csv"] = data.to_csv(index=False, float_format="%.6g")
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.svg").write_text(card)
        if data is not None:
            Path(folder, f"{name}.csv").write_text(shown["text/csv"])
    metadata = metadata or {
        "cba": {"kind": "figure", "name": name},
        "scrapbook": {"name": name, "mime_prefix": ""},
    }
    display(shown, raw=True, metadata={**metadata, "image/png": {"alt": alt}})


def png(figure):
    """The figure as a PNG on white, in base64."""
    with style():
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=120, facecolor="white", metadata={"Software": None}
        )
    return base64.b64encode(buffer.getvalue()).decode()


def figure_html(shown, name):
    """What :func:`show` displayed, for a page of the book: in the page's ink, its data as a download.

    Parameters
    ----------
    shown : dict of mime type to str
    name : str
    """
    drawing = (
        "".join(shown["image/svg+xml"]).replace(f"{CARD}\n", "", 1).replace(INK, "currentColor")
    )
    drawing = re.sub(r' width="[^"]*"| height="[^"]*"', "", drawing, count=2)
    parts = [f'<div class="cba-figure" id="{name}">{drawing}']
    if "text/csv" in shown:
        table = "".join(shown["text/csv"])
        link = "data:text/csv;base64," + base64.b64encode(table.encode()).decode()
        rows = len(table.splitlines()) - 1
        parts.append(
            f'<p class="cba-data"><a download="{name}.csv" href="{link}">'
            f"Data behind this figure (CSV, {rows} rows)</a></p>"
        )
    return "\n".join([*parts, "</div>"])
