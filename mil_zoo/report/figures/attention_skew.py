"""The attention-skew figure of the SRMIL paper (figure 3): how attention sharpens while an aggregator trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mil_zoo.metrics import Metric, inside
from mil_zoo.report.figures.look import MARKED, WIDTH, band, carried, colours_of, legend, level, line, title, widths
from mil_zoo.report.figures.registry import Captioned, register_figure
from mil_zoo.report.figures.series import Series, attended, band_note, majority, without_attention
from mil_zoo.report.load import Results
from mil_zoo.report.names import file_stem
from mil_zoo.report.skew_rows import TINY_BAGS

POSITIVES: dict[str, tuple[str, Any]] = {
    "top1_positive": ("top-1", "-"),
    "top5_positive": ("top-5", "--"),
    "high_positive": ("attention ≥ 0.5", ":"),
}


@register_figure(
    "figure3",
    place=10,
    page=70,
    caption="How attention gathers on few instances while the aggregators train (figure 3 of the SRMIL paper): "
    "training accuracy; the share of training slides in which one instance holds half of the attention or more; with "
    "instance labels, how many of the most attended instances are positive; and on the test slides, how large the "
    "largest attention is.",
)
def draw(results: Results) -> dict[str, Figure | Captioned]:
    """``figure3`` of all aggregators with attention, and ``figure3-<aggregator>`` of each."""
    shown = attended(results)
    if not shown:
        return {}
    figures: dict[str, Figure | Captioned] = {"figure3": _figure(results, shown, without_attention(results))}
    for label, series in shown.items():
        alone = Captioned(_figure(results, {label: series}, ""), f"As figure3, of {label} alone.", len(shown) > 1)
        figures[f"figure3-{file_stem(label, '@=,')}"] = alone
    return figures


def _figure(results: Results, shown: dict[str, Series], note: str) -> Figure:
    colours, labelled = colours_of(results), any(_labelled(part) for part in shown.values())
    width = widths(list(shown))
    figure = Figure(figsize=(WIDTH, 6.4 if labelled else 3.4), layout="constrained")
    if labelled:
        halves = figure.add_gridspec(2, 1)
        upper, lower = halves[0], halves[1]
        pair: Any = upper.subgridspec(1, 2).subplots()  # an array of two
        accuracy, high = pair
        quarters = lower.subgridspec(1, 2)
        left, right = quarters[0], quarters[1]
        stacked = left.subgridspec(2, 1, height_ratios=(3, 1), hspace=0.05)
        pair = stacked.subplots(sharex=True)
        positives, counted = pair
        maxima = figure.add_subplot(right)
    else:
        accuracy, high, maxima = figure.subplots(1, 3)
    for label, part in shown.items():
        colour = colours[label]
        band(accuracy, part.epochs, f"train_{results.metrics[0].name}", colour, width[label])
        shares = part.attention[part.attention["name"] == "high_count"]
        if len(shares):
            band(high, shares.assign(share=shares["sum"] / shares["count"]), "share", colour, width[label])
        if labelled:
            _positives(positives, counted, part.attention, colour, width[label])
        _shares(maxima, part.large["max_attention"], colour, width[label])
    _dress(accuracy, high, maxima, results.metrics[0], labelled)
    share = majority(results)
    if share is not None and results.metrics[0].name == "accuracy":
        level(accuracy, share, "majority class")
    if labelled:
        _dress_positives(positives, counted)
    what = "Attention skew" + (f" of {next(iter(shown))}" if len(shown) == 1 else "")
    figure.suptitle(title(results, what))
    below = "(c) below: share of the positive training slides that hold an instance of attention ≥ 0.5. " * labelled
    note = band_note(shown.values(), "(a), (b): ") + below + _tiny_note(shown, labelled) + note
    legend(figure, {label: colours[label] for label in shown}, note)
    return figure


def _labelled(part: Series) -> bool:
    return bool((part.attention["name"] == "top1_positive").any()) if len(part.attention) else False


def _tiny_note(shown: dict[str, Series], labelled: bool) -> str:
    """What share of the bags is too small to say anything, where there are some."""
    counted = [part.attention[part.attention["name"] == TINY_BAGS] for part in shown.values() if len(part.attention)]
    counts = [part[["sum", "count"]].sum() for part in counted if len(part)]
    share = max((float(each["sum"] / each["count"]) for each in counts if each["count"]), default=0.0)
    if not share:
        return ""
    return (
        f"(b), ({'d' if labelled else 'c'}): without the bags of one or two instances ({share:.0%} of the training "
        "slides), one of which always holds half of the attention. "
    )


def _positives(positives: Axes, counted: Axes, rows: pd.DataFrame, colour: Any, width: float) -> None:
    """Panel (c) of one aggregator: means over the positive slides of all trials, and how many slides the third has."""
    table = carried(rows).pivot_table(index="epoch", columns="name", values=["sum", "count"], aggfunc="sum")
    sums, counts = table["sum"], table["count"]
    if "top1_positive" not in counts:
        return
    if "high_positive" not in counts:
        counts = counts.assign(high_positive=0)
    for name, (_, style) in POSITIVES.items():
        if name in sums:
            # The third may exist at scattered epochs only, where a line alone would not be seen.
            marked = name == "high_positive" or len(table) <= MARKED
            positives.plot(
                sums[name] / counts[name], color=colour, linestyle=style, marker="." if marked else None, markersize=4
            )
    line(counted, counts["high_positive"].fillna(0) / counts["top1_positive"], colour, width)


def _shares(axes: Axes, values: pd.Series, colour: Any, width: float) -> None:
    """The share of values at or below each."""
    x = np.sort(values.to_numpy())
    axes.plot(
        np.append(-np.inf, x), np.arange(len(x) + 1) / len(x), color=colour, linewidth=width, drawstyle="steps-post"
    )


def _dress(accuracy: Axes, high: Axes, maxima: Axes, metric: Metric, labelled: bool) -> None:
    score = inside(metric.title)
    accuracy.set(title=f"(a) training {score}", xlabel="epoch", ylabel=score)
    high.set(title="(b) slides with an instance\nof attention ≥ 0.5", xlabel="epoch", ylabel="training slides")
    maxima.set(
        title=f"({'d' if labelled else 'c'}) maximum attention\nof the test slides",
        xlabel="maximum attention",
        ylabel="slides at or below",
        xscale="log",
    )
    for axes in [accuracy] * (metric.bounds == (0, 1)) + [high, maxima]:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (accuracy, high):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for value in (0.1, 0.5):
        maxima.axvline(value, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        above = maxima.get_xaxis_transform()  # of the panel: within it the curves run
        maxima.text(value, 1.01, f"{value:g}", transform=above, ha="center", va="bottom", fontsize=6.5, color="0.35")
    maxima.set_title(maxima.get_title(), pad=13)
    maxima.set_xlim(min(maxima.get_xlim()[0], 1e-3), 1.15)


def _dress_positives(positives: Axes, counted: Axes) -> None:
    positives.set(title="(c) positives among\nthe attended instances", ylabel="positive instances")
    counted.set(xlabel="epoch", ylabel="slides\nwith ≥ 0.5")
    for axes in (positives, counted):
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    counted.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    counted.set_yticks([0, 1])
    keys = [Line2D([], [], color="0.2", linestyle=style, label=name) for name, style in POSITIVES.values()]
    positives.legend(handles=keys, loc="best", frameon=True, framealpha=0.8, handlelength=2.2)
