"""Charts of single chapters, in the book's one style, from the helpers of `drawing`."""

from __future__ import annotations

import itertools
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from cba_utils.answering.precisions import most_bits_first
from cba_utils.measures.measure import SHARE
from cba_utils.measures.measure import measure as facts
from cba_utils.measures.measure import titles as known
from cba_utils.telling.drawing import (
    INK,
    LOOKS,
    PALETTE,
    WIDTH,
    _by_precision,
    _errorbars,
    _finish,
    _look,
    _panels,
    _percent_axis,
    _precisions,
    called,
    nothing,
    style,
)
from cba_utils.telling.numbers import power_of_ten

LEANS = ("log_gap", "d_log_gap")
# One colour a bar of a group, where there are more of them than families; each also has a hatch.
BARS = [*PALETTE.values(), "#8a6d00", "#7a5fd0"]
HATCHES = ["", "////", "....", "xx", "\\\\\\\\", "++", "oo"]


def ladder(frame, measures, by="family", line=None, titles=None):
    """Measures by precision, one panel each, one series for each level of ``by``.

    Parameters
    ----------
    frame : DataFrame
        Tidy estimates; rates are fractions.
    line : float or mapping of measure to float, optional
        Where a dashed line shows what no effect would be.

    A frame without the measures, from a study that cannot answer the question, gives a figure
    that says so.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("mistral", q, "left_unknown", r, r, r, 3) for q, r in [("q4", .1), ("q3", .2)]]
    >>> columns = ["family", "precision", "measure", "estimate", "low", "high", "n"]
    >>> len(ladder(pd.DataFrame(rows, columns=columns), ["left_unknown"]).axes)
    1
    """
    shown = frame[frame["measure"].isin(measures)]
    places = {p: k for k, p in enumerate(_precisions(shown))}
    titles = titles or known(*measures)
    if shown.empty:
        return nothing(titles[measures[0]])
    with style():
        figure, panels = _panels(len(measures), 2.2)
        for axes, measure in zip(panels, measures, strict=True):
            null = line.get(measure) if isinstance(line, dict) else line
            if null is not None:
                axes.axhline(null, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            _by_precision(axes, shown, measure, by, places)
            if facts(measure).bounds == SHARE:
                # a t interval over few checkpoints may pass what a share can be
                axes.set_ylim(max(axes.get_ylim()[0], -0.03), min(axes.get_ylim()[1], 1.03))
            axes.set_title(titles[measure])
        return _finish(figure, panels, places)


def changes(frame, titles):
    """Changes of rates since BF16, in points; ``titles`` maps measure to the title of its panel."""
    figure = ladder(frame, [*titles], line=0, titles=titles)
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}".replace("-", "−"))
    return figure


def lean_and_own_odds(frame, lean):
    """How the lean changed since BF16, above, and what goes beyond each item's own odds, below."""
    beyond, shown = "beyond_own_odds", ["estimate", "low", "high"]
    logs = frame["measure"] == LEANS[1]
    rows = frame.assign(**{name: frame[name].where(~logs, np.exp(frame[name])) for name in shown})
    titles = {
        LEANS[1]: "Odds of the stereotyped person, times those of BF16",
        "d_named_share": "Share of the stereotyped person, change in points",
        beyond: "Named beyond each item's own BF16 odds, points",
    }
    line = {LEANS[1]: 1, "d_named_share": 0, beyond: 0}
    figure = ladder(rows, [lean, beyond], line=line, titles=titles)
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}".replace("-", "−"))
    if lean == LEANS[1]:
        _odds_axis(figure.axes[0])
    return figure


def factors(frame, titles):
    """Changes of log odds as factors by precision, one panel a measure of ``titles``."""
    shown = ["estimate", "low", "high"]
    figure = ladder(frame.assign(**np.exp(frame[shown])), [*titles], line=1, titles=titles)
    for axes in figure.axes:
        _odds_axis(axes)
    return figure


def _odds_axis(axes):
    """A logarithmic axis of odds, labelled with the odds themselves."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter("")


def together(frame, labels, title, line=None, scale=1.0, points=True):
    """Several measures of one pooled frame as series in one panel by precision.

    ``labels`` maps measure to the name of its series. ``points`` labels the axis in points.
    """
    rows = frame[frame["measure"].isin(labels)]
    rows = rows.assign(series=rows["measure"].map(labels), measure="one")
    rows = rows.sort_values("series", key=lambda s: s.map(list(labels.values()).index))
    rows[["estimate", "low", "high"]] *= scale
    places = {p: k for k, p in enumerate(_precisions(rows))}
    with style():
        figure, panels = _panels(1, 2.8)
        if line is not None:
            panels[0].axhline(line, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        _by_precision(panels[0], rows, "one", "series", places)
        panels[0].set_title(title)
        _finish(figure, panels, places)
        if points:
            panels[0].yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}".replace("-", "−"))
        return figure


def stacked(panels):
    """Shares by precision, several series in each of several panels, drawn from zero.

    Parameters
    ----------
    panels : list of (str, DataFrame, dict of str to str, float or None)
        Title, tidy estimates, the name of the series of each measure, and where a line shows what no
        effect would be. A series of one name looks the same in all panels, and like no other.

    Examples
    --------
    >>> columns = ["precision", "measure", "estimate", "low", "high", "n"]
    >>> frame = pd.DataFrame([("q4", "srs", 0.1, 0.0, 0.2, 9)], columns=columns)
    >>> len(stacked([("One", frame, {"srs": "one"}, None), ("Two", frame, {"srs": "two"}, 0.3)]).axes)
    2
    """
    looks = dict(
        zip(
            dict.fromkeys(n for _, _, series, _ in panels for n in series.values()),
            itertools.cycle(LOOKS),
        )
    )
    places = {
        p: k for k, p in enumerate(_precisions(pd.concat([frame for _, frame, _, _ in panels])))
    }
    with style():
        figure, axes = _panels(len(panels), 2.3)
        for one, (title, frame, series, line) in zip(axes, panels, strict=True):
            if line is not None:
                one.axhline(line, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            for k, (measure, name) in enumerate(series.items()):
                offset = 0.14 * (k - (len(series) - 1) / 2)
                _errorbars(
                    one,
                    frame[frame["measure"] == measure],
                    places,
                    offset,
                    label=name,
                    **looks[name],
                )
            one.set_ylim(bottom=0)
            one.set_title(title)
        return _finish(figure, axes, places)


def seed_ranges(frame, measure="became_biased"):
    """What fresh seeds would draw (bars) and what the study's own seeds gave (crosses)."""
    rows = frame[frame["measure"] == measure]
    places = {p: k for k, p in enumerate(_precisions(rows))}
    names = sorted(rows["model"].unique())
    with style():
        figure, panels = _panels(1, 3.0)
        step = 0.7 / max(len(names), 1)
        for k, name in enumerate(names):
            part = rows[rows["model"] == name]
            at = part["precision"].map(places) + step * (k - (len(names) - 1) / 2)
            panels[0].bar(
                at,
                part["high"] - part["low"],
                bottom=part["low"],
                width=step * 0.8,
                color=PALETTE["grey"],
                alpha=0.55,
                label=None if k else "95 % of fresh sets of five draws",
            )
            panels[0].plot(
                at,
                part["observed"],
                marker="x",
                linestyle="none",
                color=PALETTE["orange"],
                markersize=5,
                label=None if k else "the study's five seeds",
            )
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        panels[0].set_title("Items that gained a stereotyped answer, % of those without one")
        return _finish(figure, panels, places)


def flip_curve(frame, precisions):
    """Flip rate against BF16 entropy by bin, with the mean of the fitted curve (hollow)."""
    with style():
        figure, (axes,) = _panels(1, 3.2)
        for name, look in _look(list(precisions)).items():
            rows = frame[(frame["precision"] == name) & (frame["bin"] > 0)]
            wide = rows.pivot(index="bin", columns="measure", values=["estimate", "low", "high"])
            x = wide["estimate", "entropy"]
            y = wide["estimate", "flip_rate"]
            reach = np.clip([y - wide["low", "flip_rate"], wide["high", "flip_rate"] - y], 0, None)
            axes.errorbar(
                x,
                y,
                yerr=np.nan_to_num(reach),
                markersize=5,
                linewidth=1.4,
                capsize=2.5,
                label=name.upper(),
                **look,
            )
            axes.plot(
                x,
                wide["estimate", "predicted"],
                linestyle="none",
                markersize=7,
                markerfacecolor="none",
                marker=look["marker"],
                color=look["color"],
            )
        axes.plot(
            [],
            [],
            color=INK,
            marker="o",
            markerfacecolor="none",
            linestyle="none",
            label="hollow: logistic curve on entropy",
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_xlabel("entropy of the BF16 answer, bits")
        axes.set_title(facts("flip_rate").title)
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def specification(frame):
    """The headline number under every combination of choices, sorted, with the choices below."""
    known = ("counting", "temperature", "letters", "families", "without", "undefined")
    choices = [c for c in known if c in frame and frame[c].nunique() > 1]
    rows = frame.sort_values("estimate").reset_index(drop=True)
    levels = [(c, v) for c in choices for v in dict.fromkeys(frame[c])]
    with style():
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 2.4])
        reach = np.clip([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], 0, None)
        top.errorbar(
            rows.index,
            rows["estimate"],
            yerr=np.nan_to_num(reach),
            linestyle="none",
            marker="o",
            markersize=4,
            capsize=2,
            color=PALETTE["blue"],
        )
        top.axhline(0, color=INK, linewidth=0.8)
        top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        top.set_title("Items that gained a stereotyped answer, %")
        for k, (choice, value) in enumerate(levels):
            at = rows.index[rows[choice] == value]
            bottom.plot(
                at, np.full(len(at), k), marker="s", linestyle="none", markersize=4, color=INK
            )
        bottom.set_yticks(range(len(levels)), [f"{c}: {v}" for c, v in levels])
        bottom.invert_yaxis()
        bottom.set_xticks([])
        bottom.set_xlabel("one column a combination")
        return figure


def odds(table, title="Odds ratio against BF16 (log scale)"):
    """Odds ratios with intervals, one row a precision, and one for the trend."""
    rank = {name: k for k, name in enumerate(most_bits_first(set(table["term"]) - {"trend"}))}
    rows = table.sort_values(
        "term", key=lambda t: t.map(rank).fillna(len(rank)), ascending=False
    ).reset_index(drop=True)
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(rows)), layout="constrained")
        axes = figure.subplots()
        reach = np.clip([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], 0, None)
        axes.errorbar(
            rows["estimate"],
            rows.index,
            xerr=np.nan_to_num(reach),
            linestyle="none",
            marker="s",
            markersize=5,
            capsize=2.5,
            color=PALETTE["blue"],
        )
        axes.axvline(1, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_yticks(rows.index, [t.upper() if t in rank else t for t in rows["term"]])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(title)
        return figure


def power_curve(curve, power=0.8):
    """Power against the true rise of SRS."""
    with style():
        figure, (axes,) = _panels(1, 2.6)
        axes.axhline(power, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        for name, look in _look(sorted(curve["family"].unique())).items():
            part = curve[curve["family"] == name]
            axes.plot(part["effect"], part["power"], markersize=5, label=called(name), **look)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("true rise of the stereotyped rate, points")
        axes.set_title("Chance that the rise is found, %")
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def verdict_rates(rows, level):
    """How often each verdict says yes, one row a verdict and one marker a truth.

    Parameters
    ----------
    rows : DataFrame
        ``title`` of the verdict, ``should`` ("yes" or "no"), ``estimate``, ``low`` and ``high``.
    level : float
        The share of wrong answers that a verdict promises, where a dotted line stands.
    """
    worst = rows[rows["should"] == "no"].groupby("title")["estimate"].max().sort_values()
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.62 * len(worst)), layout="constrained")
        axes = figure.subplots()
        looks = {
            "no": ("nothing grew: should say no", LOOKS[1], 0.14),
            "yes": ("it grew: should say yes", LOOKS[0], -0.14),
        }
        for should, (label, look, aside) in looks.items():
            part = rows[rows["should"] == should]
            at = part["title"].map({title: k for k, title in enumerate(worst.index)}) + aside
            # Truths beside each other, so that markers of like rates do not hide one another.
            within = part.groupby("title")["title"]
            at = at + 0.16 * (within.cumcount() / within.transform("size") - 0.5)
            axes.errorbar(
                part["estimate"],
                at,
                # an interval may miss its own estimate by a rounding error
                xerr=np.clip(
                    [part["estimate"] - part["low"], part["high"] - part["estimate"]], 0, None
                ),
                linestyle="",
                marker=look["marker"],
                color=look["color"],
                markersize=4,
                elinewidth=0.8,
                alpha=0.8,
                label=label,
            )
        axes.axvline(level, color=INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(worst)), [fill(title, 24) for title in worst.index])
        axes.invert_yaxis()
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_title("Studies in which it says yes")
        figure.legend(loc="outside upper left", ncols=1)
        return figure


# The published analysis


def by_bits(table, rates=("srs", "usr")):
    """SRS and USR against bit width, one line a model, without intervals as published."""
    long = table.melt(["model", "precision"], list(rates), "measure", "estimate")
    return ladder(
        long.assign(low=np.nan, high=np.nan),
        list(rates),
        by="model",
        titles={
            "srs": "Stereotyped answers (SRS), % of parsed answers",
            "usr": "“Unknown” answers (USR), % of parsed answers",
        },
    )


def amplification_curve(table):
    """SRS as a multiple of BF16's."""
    rows = table.assign(
        measure="amplification", estimate=table["amplification"], low=np.nan, high=np.nan
    )
    figure = ladder(rows, ["amplification"], by="model", line=1.0)
    figure.axes[0].yaxis.set_major_formatter(lambda x, _: f"{x:g}×")
    return figure


def srs_heat_map(table):
    """SRS of every model and precision as a heat map with its numbers."""
    wide = table.pivot(index="model", columns="precision", values="srs")
    wide = wide[_precisions(table)]
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.4 * len(wide)), layout="constrained")
        axes = figure.subplots()
        top = max(float(wide.max().max()), 1e-9)
        axes.imshow(wide, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        for i in range(wide.shape[0]):
            for j in range(wide.shape[1]):
                value = wide.iloc[i, j]
                axes.text(
                    j,
                    i,
                    f"{100 * value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if value < 0.55 * top else "black",
                )
        axes.set_xticks(range(wide.shape[1]), [p.upper() for p in wide.columns])
        axes.set_yticks(range(wide.shape[0]), wide.index)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.set_title("Stereotyped answers (SRS), % of parsed answers")
        return figure


def _bars(axes, table, x, precisions, value):
    """Grouped bars of ``value``, one group a level of ``x``, one bar a precision."""
    names = list(dict.fromkeys(table[x]))
    width = 0.8 / len(precisions)
    for k, precision in enumerate(precisions):
        part = table[table["precision"] == precision].set_index(x)[value].reindex(names)
        at = np.arange(len(names)) + width * (k - (len(precisions) - 1) / 2)
        axes.bar(
            at,
            part,
            width * 0.92,
            color=BARS[k % len(BARS)],
            hatch=HATCHES[k % len(HATCHES)],
            edgecolor=INK,
            linewidth=0.4,
            label=precision.upper(),
        )
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def before_and_after(table, precision, reference="bf16"):
    """SRS at BF16 and at a low precision, side by side for each model."""
    with style():
        figure, (axes,) = _panels(1, 2.6)
        _bars(axes, table, "model", [reference, precision], "srs")
        axes.set_title("Stereotyped answers (SRS), % of parsed answers")
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def category_facets(table):
    """SRS by precision in every category, one panel a category, one line a model."""
    names = sorted(table["category"].unique())
    places = {p: k for k, p in enumerate(_precisions(table))}
    rows = table.assign(measure="srs", estimate=table["srs"], low=np.nan, high=np.nan)
    with style():
        figure, panels = _panels(len(names), 1.5)
        for axes, name in zip(panels, names, strict=True):
            _by_precision(axes, rows[rows["category"] == name], "srs", "model", places)
            axes.set_title(f"{name}: stereotyped answers, %")
        return _finish(figure, panels, places)


def transition_chart(table):
    """Items that became biased, by model and precision."""
    precisions = _precisions(table)
    with style():
        figure, (axes,) = _panels(1, 2.8)
        _bars(axes, table, "model", precisions, "rate")
        axes.set_title("Items that gained a stereotyped answer, % of those without one")
        figure.legend(loc="outside upper left", ncols=4)
        return figure


def rates(found, by="precision"):
    """Answers a second of every contender on a logarithmic scale, ours marked.

    Parameters
    ----------
    found : DataFrame
        From `cba_utils.chapters.speed.ratios`.
    by : str
        Column that tells the groups apart.
    """
    groups = list(dict.fromkeys(found[by]))
    ours = found.drop_duplicates(by).assign(
        contender="this project", per_second=lambda d: d["ours"]
    )
    both = pd.concat([ours, found], ignore_index=True)
    with style():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        looks = _look(list(dict.fromkeys(both["contender"])))
        for k, (name, look) in enumerate(looks.items()):
            rows = both[both["contender"] == name]
            axes.plot(
                rows[by].map(groups.index) + 0.1 * (k - len(looks) / 2),
                rows["per_second"],
                label=name,
                markersize=6,
                **{**look, "linestyle": "none"},
            )
        axes.set_yscale("log")
        axes.set_title("Answers a second (log scale)")
        axes.set_xticks(range(len(groups)), [str(g).upper() for g in groups])
        axes.set_xlim(-0.5, len(groups) - 0.5)
        figure.legend(loc="outside lower center", ncols=1)
    return figure


# Rounding


def rounding(weights):
    """What is left of an alignment in rounded weights, and the noise beside it (log scale).

    Parameters
    ----------
    weights : DataFrame
        Estimates of ``left`` and ``noise`` by family and precision; without rows, the figure says
        that there is nothing.
    """
    if weights.empty:
        return nothing(facts("left").title)
    figure = ladder(weights, ["left", "noise"], line={"left": 1.0})
    noise = figure.axes[1]
    noise.set_yscale("log")
    noise.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    return figure


def options(frame, title):
    """Estimates one row a label, the first on top, one mark a family; dashed where there is none.

    Parameters
    ----------
    frame : DataFrame
        Estimates with the columns ``label`` and ``family``.
    """
    if frame.empty:
        return nothing(title)
    places = {label: -k for k, label in enumerate(dict.fromkeys(frame["label"]))}
    names = list(dict.fromkeys(frame["family"]))
    with style():
        height = 1.1 + (0.22 + 0.14 * len(names)) * len(places)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        for k, (name, look) in enumerate(_look(names).items()):
            rows = frame[frame["family"] == name]
            reach = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
            axes.errorbar(
                rows["estimate"],
                rows["label"].map(places) - 0.2 * (k - (len(names) - 1) / 2),
                xerr=np.clip(np.nan_to_num(reach), 0, None),
                markersize=5,
                capsize=2.5,
                label=called(name),
                **{**look, "linestyle": "none"},
            )
        axes.set_yticks(list(places.values()), [fill(label, 24) for label in places])
        axes.set_ylim(0.6 - len(places), 0.6)
        axes.grid(axis="x")
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}".replace("-", "−"))
        axes.set_title(title, x=1, ha="right")
        figure.legend(loc="outside upper left", ncols=2)
        return figure


# Hazards of the published run


def differences(frame, by, series, title, label):
    """Positive differences on a logarithmic scale, one dot a row, one column a level of ``by``.

    Parameters
    ----------
    frame : DataFrame
    by : str
    series : mapping of column to str
        The differences and how the legend names them.
    title, label : str
        Of the panel and of its horizontal axis.
    """
    places = {value: k for k, value in enumerate(dict.fromkeys(frame[by]))}
    with style():
        figure, (axes,) = _panels(1, 2.6)
        for (column, name), look in zip(series.items(), _look(list(series)).values(), strict=True):
            rank = frame.groupby(by)[column].rank(method="first", pct=True)
            axes.plot(
                frame[by].map(places) + 0.6 * (rank - 0.5),
                frame[column],
                linestyle="none",
                markersize=2.5,
                marker=look["marker"],
                color=look["color"],
                label=name,
            )
        axes.set_yscale("log")
        # Powers of ten: the two decimals that a drawing keeps would make a small number zero.
        axes.yaxis.set_major_formatter(
            lambda y, _: f"{y:g}" if 0.01 <= y < 1000 else power_of_ten(y)
        )
        axes.set_xticks(range(len(places)), [str(1 + k) for k in places.values()])
        axes.set_xlabel(label)
        axes.set_title(title)
        figure.legend(loc="outside upper left", ncols=1, markerscale=2)
        return figure


def added_points(frame, rates):
    """Points added to each rate by share of items, one panel a rate, one line a truth."""
    with style():
        figure, panels = _panels(len(rates), 1.5)
        looks = _look(list(dict.fromkeys(frame["truth"])))
        for axes, rate in zip(panels, rates, strict=True):
            axes.axhline(0, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            for truth, look in looks.items():
                rows = frame[(frame["truth"] == truth) & (frame["rate"] == rate)].sort_values(
                    "share"
                )
                axes.plot(rows["share"], rows["added"], markersize=5, label=truth, **look)
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}".replace("-", "−"))
            axes.set_title(f"{rate}: points added")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_xlabel("share of items without a target")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        return figure


def letter_shares(shares, title):
    """Stacked bars, one a row of ``shares``, one segment a column."""
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.32 * len(shares)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(shares))
        for k, letter in enumerate(shares):
            axes.barh(
                shares.index.astype(str),
                shares[letter],
                left=left,
                color=BARS[k],
                hatch=HATCHES[k],
                edgecolor=INK,
                linewidth=0.5,
                label=letter,
            )
            left = left + shares[letter].to_numpy()
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title)
        figure.legend(loc="outside upper left", ncols=len(shares.columns))
        return figure


def forest(frame, section, label, told, title):
    """Factors since BF16 in rows: one a label, under the heads of their sections, a marker a precision.

    Parameters
    ----------
    frame : DataFrame
        Logarithms ``estimate``, ``low`` and ``high`` with ``precision`` and the columns below.
    section, label : str
        The columns of the heads and of the rows.
    told : str
        A column of booleans: what is told apart from no change is filled, all else hollow.
    title : str

    Examples
    --------
    >>> frame = pd.DataFrame({"kind": "Clan", "group": ["zorb", "velk"], "precision": "q3",
    ...     "estimate": [0.1, -0.1], "low": -0.2, "high": 0.2, "told": [True, False]})
    >>> [text.get_text() for text in forest(frame, "kind", "group", "told", "Lean").axes[0].get_yticklabels()]
    ['Clan', 'zorb', 'velk']
    """
    rows = frame[[section, label]].drop_duplicates()
    heads = []
    for name, part in rows.groupby(section, sort=False):
        heads += [(name, None), *((name, one) for one in part[label])]
    places = {key: k for k, key in enumerate(heads)}
    precisions = _precisions(frame)
    with style():
        figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(heads)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(1, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        for k, (precision, look) in enumerate(_look(precisions).items()):
            part = frame[frame["precision"] == precision]
            row = [places[key] for key in zip(part[section], part[label], strict=True)]
            at = np.array(row) + 0.26 * (k - (len(precisions) - 1) / 2)
            x, low, high = (
                np.exp(part[name].to_numpy(float)) for name in ("estimate", "low", "high")
            )
            reach = np.nan_to_num(np.clip([x - low, high - x], 0, None))
            axes.errorbar(x, at, xerr=reach, fmt="none", ecolor=look["color"], elinewidth=1.2)
            shown = {
                "linestyle": "none",
                "markersize": 4.5,
                "color": look["color"],
                "marker": look["marker"],
            }
            filled = part[told].to_numpy(bool)
            axes.plot(x[~filled], at[~filled], markerfacecolor="none", **shown)
            axes.plot(x[filled], at[filled], **shown)
            axes.plot([], [], label=precision.upper(), **shown)
        axes.set_yticks(range(len(heads)), [head if one is None else one for head, one in heads])
        for text, (_, one) in zip(axes.get_yticklabels(), heads, strict=True):
            text.set_fontweight("bold" if one is None else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(heads) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(axis="x")
        axes.set_xlabel(title)
        figure.legend(loc="outside upper left", ncols=len(precisions))
        return figure


# Margins and drift


def plain_axis(axes):
    """Numbers on a vertical axis that are no percentages."""
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.3g}".replace("-", "−"))


def dots(frame, rows, by, panels, label, series="family", line=0.0, percentages=True):
    """Estimates with intervals along one axis: a panel a level of ``by``, a row a measure.

    Parameters
    ----------
    frame : DataFrame
        Tidy estimates.
    rows : mapping of measure to str
        The rows from top to bottom.
    by : str
    panels : mapping of level to str
        The panels' titles, from top to bottom.
    label : str
        Of the horizontal axis.
    series : str
        The column whose levels are drawn beside each other in a row.
    line : float
        Where a dashed line stands.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"family": ["a", "b"], "precision": "q3", "measure": "srs",
    ...                       "estimate": [0.1, 0.2], "low": 0.0, "high": 0.3})
    >>> len(dots(frame, {"srs": "SRS"}, "precision", {"q3": "At Q3"}, "rate").axes)
    1
    """
    places = {measure: k for k, measure in enumerate(rows)}
    looks = _look(list(dict.fromkeys(frame[series])))
    with style():
        figure, axes = _panels(len(panels), 0.5 + 0.36 * len(rows))
        for panel, (level, title) in zip(axes, panels.items(), strict=True):
            shown = frame[(frame[by] == level) & frame["measure"].isin(places)]
            for k, (name, look) in enumerate(looks.items()):
                part = shown[shown[series] == name]
                reach = [part["estimate"] - part["low"], part["high"] - part["estimate"]]
                panel.errorbar(
                    part["estimate"],
                    part["measure"].map(places) + 0.22 * (k - (len(looks) - 1) / 2),
                    xerr=np.clip(np.nan_to_num(reach), 0, None),
                    markersize=4.5,
                    capsize=2.5,
                    elinewidth=1.2,
                    label=called(name) if panel is axes[0] else None,
                    **{**look, "linestyle": "none"},
                )
            panel.axvline(line, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            panel.set_yticks(list(places.values()), [fill(text, 22) for text in rows.values()])
            panel.set_ylim(len(rows) - 0.4, -0.6)
            panel.grid(axis="x")
            panel.grid(axis="y", visible=False)
            panel.tick_params(axis="y", length=0)
            panel.set_title(title)
        axes[-1].xaxis.set_major_locator(MaxNLocator(5))
        if percentages:
            axes[-1].xaxis.set_major_formatter(lambda x, _: f"{100 * x:.4g}%".replace("-", "−"))
        else:
            axes[-1].xaxis.set_major_formatter(lambda x, _: f"{x:.4g}".replace("-", "−"))
        axes[-1].set_xlabel(label)
        figure.legend(loc="outside upper left", ncols=2 if len(looks) > 3 else 1)
        return figure


def curves(panels, x, label, by="family"):
    """Shares along a number, such as the temperature: panels above each other, a line a series.

    Parameters
    ----------
    panels : list of (str, DataFrame)
        Title, and tidy estimates with the columns ``x`` and ``by``. A column ``hollow`` of booleans sets
        apart what is drawn hollow.
    x, label : str
        The column along which, and its name on the axis.

    Examples
    --------
    >>> frame = pd.DataFrame({"family": "a", "t": [0.0, 1.0], "estimate": 0.1, "low": 0.0, "high": 0.2})
    >>> len(curves([("One", frame), ("Two", frame)], "t", "temperature").axes)
    2
    """
    with style():
        figure, axes = _panels(len(panels), 2.1)
        for one, (title, frame) in zip(axes, panels, strict=True):
            hollow = frame["hollow"] if "hollow" in frame else pd.Series(False, frame.index)
            for name, look in _look(list(dict.fromkeys(frame[by]))).items():
                for empty in (False, True):
                    part = frame[(frame[by] == name) & (hollow == empty)].sort_values(x)
                    if part.empty:
                        continue
                    reach = np.clip(
                        [part["estimate"] - part["low"], part["high"] - part["estimate"]], 0, None
                    )
                    drawn = {**look, "markerfacecolor": "none"} if empty else look
                    one.errorbar(
                        part[x], part["estimate"], yerr=np.nan_to_num(reach), markersize=5,
                        linewidth=1.0 if empty else 1.4, elinewidth=1.0, capsize=2,
                        label=None if empty else called(name), **drawn,
                    )  # fmt: skip
            _percent_axis(one.yaxis)
            one.set_title(title)
        axes[-1].set_xlabel(label)
        entries = {}
        for one in axes:
            handles, labels = one.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        figure.legend(entries.values(), entries, loc="outside upper left", ncols=2)
        return figure


def pareto(frame, title):
    """A harm against size, a number beside each recipe, and a line through those that no smaller one beats.

    Parameters
    ----------
    frame : DataFrame
        Estimates with the columns ``bits``, ``kind``, ``label`` and ``frontier``.
    title : str

    Examples
    --------
    >>> frame = pd.DataFrame({"estimate": [0.1, 0.2], "low": 0.0, "high": 0.3, "bits": [4.5, 3.5],
    ...                       "kind": "a", "label": ["1", "2"], "frontier": True})
    >>> len(pareto(frame, "Harm").axes)
    1
    """
    with style():
        figure, (axes,) = _panels(1, 3.4)
        rows = frame.sort_values(["bits", "label"]).reset_index(drop=True)
        # Recipes of one size stand beside each other, so that their numbers can be read.
        step = 0.022 * max(np.ptp(rows["bits"]), 1.0)
        near = rows["bits"].diff().abs().fillna(np.inf) < step
        group = (~near).cumsum()
        place = rows.groupby(group).cumcount()
        size = rows.groupby(group)["bits"].transform("size")
        rows["at"] = rows.groupby(group)["bits"].transform("mean") + step * (place - (size - 1) / 2)
        best = rows[rows["frontier"]].sort_values("at")
        axes.plot(best["at"], best["estimate"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for name, look in _look(list(dict.fromkeys(frame["kind"]))).items():
            part = rows[rows["kind"] == name]
            reach = np.clip(
                [part["estimate"] - part["low"], part["high"] - part["estimate"]], 0, None
            )
            axes.errorbar(
                part["at"],
                part["estimate"],
                yerr=np.nan_to_num(reach),
                markersize=5,
                capsize=2,
                elinewidth=1,
                label=name,
                **{**look, "linestyle": "none"},
            )
        for k, row in enumerate(rows.itertuples()):
            axes.annotate(
                row.label,
                (row.at, np.nanmax([row.high, row.estimate])),
                fontsize=8,
                textcoords="offset points",
                xytext=(0, 4 + 7 * (k % 2)),
                ha="center",
            )
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.margins(y=0.09)
        _percent_axis(axes.yaxis)
        axes.set_xlabel("bits a weight, scales included")
        axes.set_title(fill(title, 46))
        figure.legend(loc="outside upper left", ncols=2)
        return figure
