"""The attention of the test slides: its maximum, that of each head, and N times it."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mil_zoo.report.figures.look import WIDTH, colours_of, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.figures.series import attended, without_attention
from mil_zoo.report.load import Results


@register_figure(
    "skew",
    place=20,
    page=75,
    caption="How large the attention of the most attended instance of each test slide is. Averaging heads lowers the "
    "maximum: compare the maximum of each head. N times the maximum is 1 for uniform attention.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``skew``: a row an aggregator with attention, a point a test slide of a trial."""
    shown, colours, note = attended(results), colours_of(results), without_attention(results)
    if not shown:
        return {}
    panels = {"max_attention": "maximum attention", "head_max": "maximum of each head", "n_x_max": "N x maximum"}
    figure = Figure(
        figsize=(WIDTH, 1.4 + sum(0.42 + 0.12 * wrapped(label).count("\n") for label in shown)), layout="constrained"
    )
    heads = {label: int(part.test["heads"].max()) for label, part in shown.items()}
    names = [f"{wrapped(label)}\n({heads[label]} head{'s' * (heads[label] != 1)})" for label in shown]
    row_of_axes = figure.subplots(1, 3, sharey=True)
    for axes, (name, xlabel) in zip(row_of_axes, panels.items(), strict=True):
        for row, (label, part) in enumerate(shown.items()):
            columns = [name]
            if name == "head_max":
                columns = [column for column in map(str, part.test) if column.startswith("head_max_")] or [name]
            _strip(axes, row, part.test[columns].to_numpy().ravel(), colours[label])
        axes.set(xscale="log", xlabel=xlabel)
    # The two maxima on one scale, so that what averaging heads takes away can be read off.
    smallest = min(1e-3, *(axes.get_xlim()[0] for axes in row_of_axes[:2]))
    for maxima in row_of_axes[:2]:
        maxima.set_xlim(smallest, 1.3)
    axes.set_xlim(min(axes.get_xlim()[0], 0.7), max(axes.get_xlim()[1], 15))
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title(results, "Attention of the test slides"))
    explained = (
        "One point a slide (second panel: a slide and head); circle and bar: median and quartiles; dashed: uniform. "
    )
    figure.supxlabel(textwrap.fill(explained + note, 130), fontsize=7)
    return {"skew": figure}


def _strip(axes: Axes, row: int, values: np.ndarray, colour: Any) -> None:
    """Points of one row, jittered, under their median and quartiles."""
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
    axes.scatter(values, row + jitter, s=4, color=colour, alpha=0.5, linewidths=0)
    low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75])
    axes.hlines(row, low, high, color="0.1", linewidth=1.2)
    axes.plot(middle, row, marker="o", markersize=3.5, color="white", markeredgecolor="0.1", markeredgewidth=1)
