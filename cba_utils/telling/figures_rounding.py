"""Figures of the pages on rounding, in the book's one style."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cba_utils.measures.measure import measure
from cba_utils.telling.figures import INK, PALETTE, WIDTH, _look, _panels, _percent_axis, nothing, style
from cba_utils.telling.figures_controls import ladder


def rounding(weights):
    """What is left of an alignment in rounded weights, and the noise beside it (log scale).

    Parameters
    ----------
    weights : DataFrame
        Estimates of ``left`` and ``noise`` by family and precision; without rows, the figure says
        that there is nothing.
    """
    if weights.empty:
        return nothing(measure("left").title)
    figure = ladder(weights, ["left", "noise"], line={"left": 1.0})
    noise = figure.axes[1]
    noise.set_yscale("log")
    noise.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    return figure


def options(frame, title, line=None, note=None):
    """Estimates one row a name, the first on top; ``line`` is a reference such as the placebo."""
    if frame.empty:
        return nothing(title)
    rows = frame.iloc[::-1].reset_index(drop=True)
    with style():
        figure = Figure(figsize=(WIDTH, 1.0 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        reach = np.clip([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], 0, None)
        axes.errorbar(rows["estimate"], rows.index, xerr=np.nan_to_num(reach), linestyle="none",
                      marker="s", markersize=5, capsize=2.5, color=PALETTE["blue"])
        if line is not None:
            axes.axvline(line, color=INK, linestyle=(0, (4, 3)), linewidth=1, label=note)
            figure.legend(loc="outside lower right")
        axes.set_yticks(rows.index, rows["label"])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="x")
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_title(title)
        return figure


def bits_and_bias(frame, title, line=None):
    """A rate against bits per weight; one marker for each kind of option.

    Parameters
    ----------
    frame : DataFrame
        Estimates with the columns ``bits``, ``kind`` and ``label``.
    """
    if frame.empty:
        return nothing(title)
    with style():
        figure, (axes,) = _panels(1, 3.0)
        for name, look in _look(list(dict.fromkeys(frame["kind"]))).items():
            rows = frame[frame["kind"] == name]
            reach = np.clip([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], 0, None)
            axes.errorbar(rows["bits"], rows["estimate"], yerr=np.nan_to_num(reach), markersize=5,
                          capsize=2.5, label=name, **{**look, "linestyle": "none"})
            # labels of neighbours of different kinds would run into each other at one height
            place = {"xytext": (0, 4), "ha": "center"}
            if name == "groups of 32":
                place["xytext"] = (0, 13)
            elif name != "groups of 64":
                place = {"xytext": (6, 4), "ha": "right"}
            for row in rows.itertuples():
                axes.annotate(row.label, (row.bits, row.high), fontsize=8,
                              textcoords="offset points", **place)
        if line is not None:
            axes.axhline(line, color=INK, linestyle=(0, (4, 3)), linewidth=1, label="placebo")
        axes.margins(y=0.09)
        _percent_axis(axes.yaxis)
        axes.set_xlabel("bits per weight, scales included")
        axes.set_title(title)
        figure.legend(loc="outside upper left", ncols=2)
        return figure
