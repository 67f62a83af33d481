"""The attention-skew figure of the SRMIL paper (figure 3): how attention sharpens while an aggregator trains."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mil_zoo.report.figures.look import WIDTH, band, colours_of, legend, line, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.figures.series import Series, attended, band_note, without_attention
from mil_zoo.report.load import Results

POSITIVES = {
    "top1_positive": ("top-1", "-"),
    "top5_positive": ("top-5", "--"),
    "high_positive": ("attention ≥ 0.5", ":"),
}


@register_figure("figure3", place=10, page=10)
def draw(results: Results) -> dict[str, Figure]:
    """``figure3`` of all aggregators with attention, and ``figure3-<aggregator>`` of each."""
    shown = attended(results)
    if not shown:
        return {}
    figures = {"figure3": _figure(results, shown, without_attention(results))}
    for label, series in shown.items():
        figures[f"figure3-{quote(label, safe='@=,')}"] = _figure(results, {label: series}, "")
    return figures


def _figure(results: Results, shown: dict[str, Series], note: str) -> Figure:
    colours = colours_of(results)
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    upper, lower = figure.add_gridspec(2, 1)
    fitted, high = upper.subgridspec(1, 2).subplots()
    left, right = lower.subgridspec(1, 2)
    positives, counted = left.subgridspec(2, 1, height_ratios=(3, 1), hspace=0.05).subplots(sharex=True)
    maxima = figure.add_subplot(right)
    for label, part in shown.items():
        colour = colours[label]
        band(fitted, part.epochs.groupby("epoch")[_trained_on(results)[0]], colour)
        shares = part.attention[part.attention["name"] == "high_count"]
        band(high, (shares["sum"] / shares["count"]).groupby(shares["epoch"]), colour)
        _positives(positives, counted, part.attention, colour)
        _shares(maxima, part.test["max_attention"], colour)
    fitted.set(title=f"(a) training {_trained_on(results)[1]}", xlabel="epoch", ylabel=_trained_on(results)[1])
    _dress_figure3(high, positives, counted, maxima)
    _count_epochs(fitted)
    if _trained_on(results)[2]:
        _show_shares(fitted)
    what = "Attention skew" + (f" of {next(iter(shown))}" if len(shown) == 1 else "")
    figure.suptitle(title(results, what))
    below = "(c) below: share of the positive training slides that hold an instance of attention ≥ 0.5. "
    note = band_note(shown.values(), "(a), (b): ") + below * bool(positives.lines) + note
    legend(figure, {label: colours[label] for label in shown}, note)
    return figure


def _positives(positives: Axes, counted: Axes, rows: pd.DataFrame, colour: Any) -> None:
    """Panel (c) of one aggregator: means over the positive slides of all trials, and how many slides the third has."""
    table = rows.pivot_table(index="epoch", columns="name", values=["sum", "count"], aggfunc="sum")
    sums, counts = table["sum"], table["count"]
    if "top1_positive" not in counts:
        return
    if "high_positive" not in counts:
        counts = counts.assign(high_positive=0)
    for name, (_, style) in POSITIVES.items():
        if name in sums:
            # The third may exist at scattered epochs only, where a line alone would not be seen.
            dotted = name == "high_positive" or len(table) == 1
            positives.plot(
                sums[name] / counts[name], color=colour, linestyle=style, marker="." if dotted else None, markersize=4
            )
    line(counted, counts["high_positive"].fillna(0) / counts["top1_positive"], color=colour, linewidth=0.9)


def _shares(axes: Axes, values: pd.Series, colour: Any) -> None:
    """The share of values at or below each."""
    x = np.sort(values.to_numpy())
    axes.plot(
        np.append(-np.inf, x), np.arange(len(x) + 1) / len(x), color=colour, linewidth=1.4, drawstyle="steps-post"
    )


def _trained_on(results: Results) -> tuple[str, str, bool]:
    """What panel (a) shows: a column of ``epochs.csv``, its name in words, and whether it is a share."""
    for metric in results.task.metrics[:1]:
        return f"train_{metric.name}", metric.title.lower(), metric.bounds == (0, 1)
    return "loss", "loss", False


def _show_shares(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _count_epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _dress_figure3(high: Axes, positives: Axes, counted: Axes, maxima: Axes) -> None:
    high.set(title="(b) slides with an instance of attention ≥ 0.5", xlabel="epoch", ylabel="training slides")
    positives.set(title="(c) positives among the attended instances", ylabel="positive instances")
    counted.set(xlabel="epoch", ylabel="slides\nwith ≥ 0.5")
    maxima.set(
        title="(d) maximum attention of the test slides", xlabel="maximum attention", ylabel="slides at or below"
    )
    for axes in (high, positives, counted, maxima):
        _show_shares(axes)
    for axes in (high, counted):
        _count_epochs(axes)
    counted.set_yticks([0, 1])
    if positives.lines:
        keys = [Line2D([], [], color="0.2", linestyle=style, label=name) for name, style in POSITIVES.values()]
        positives.legend(handles=keys, loc="best", frameon=True, framealpha=0.8, handlelength=2.2)
    else:
        positives.text(0.5, 0.5, "no instance labels", ha="center", va="center", transform=positives.transAxes)
        positives.set_xticks([])
        counted.set_axis_off()
    maxima.set_xscale("log")
    for value in (0.1, 0.5):
        maxima.axvline(value, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        maxima.text(value, 1.03, f"{value:g} ", ha="right", va="top", fontsize=6.5, color="0.35")
    maxima.set_xlim(min(maxima.get_xlim()[0], 1e-3), 1.15)
