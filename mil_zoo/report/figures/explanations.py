"""How far every explainer of every aggregator can be trusted: areas of flipping, and the curves that they are of."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mil_zoo.report.figures.look import WIDTH, below, grid_shape, palette, plain, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.explanations_table import TITLES, explained, explanations_table, in_order


@register_figure(
    "explanations",
    place=95,
    page=85,
    caption="How far the scores of each explainer can be trusted. Left: area of flipping with its 95 % interval over "
    "patients; at 0 are scores that say nothing of what the prediction needs. Right, where instance labels are known: "
    "the scores as detectors of positive instances, medians over slides.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``explanations``: a row an aggregator, a colour an explainer; {} where ``--explain`` was not given."""
    table = explanations_table(results)
    if table.empty:
        return {}
    labels, colours = table["aggregator"].unique().tolist(), _colours(table)
    columns = ["area", *["auroc"] * bool(table["auroc"].notna().any())]
    step = 0.055 * len(colours) + 0.07  # inches of a row
    figure = Figure(figsize=(WIDTH, 1.2 + step * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False, width_ratios=[1.6, 1][: len(columns)])[0]
    offsets = dict(zip(colours, (np.arange(len(colours)) - (len(colours) - 1) / 2) * 0.055 / step, strict=True))
    for row in table.to_dict("records"):
        place, colour = labels.index(row["aggregator"]) + offsets[row["explainer"]], colours[row["explainer"]]
        panels[0].hlines(place, row["area_low"], row["area_high"], color=colour, linewidth=0.9)
        panels[0].plot(row["area_mean"], place, "o", markersize=3, color=colour)
        if "auroc" in columns:
            panels[1].plot(row["auroc"], place, "o", markersize=3, color=colour)
    for axes, name, level in zip(
        panels, (f"area of flipping, {results.task.explains}", "AUROC against instance labels"), (0, 0.5), strict=False
    ):
        axes.axvline(level, color="0.5", linewidth=0.6, zorder=0)
        for band in range(0, len(labels), 2):
            axes.axhspan(band - 0.5, band + 0.5, color="0.95", linewidth=0, zorder=-1)
        axes.set(xlabel=name, ylim=(len(labels) - 0.5, -0.5))
    panels[0].set_yticks(range(len(labels)), [wrapped(label, 20) for label in labels])
    handles = [
        Line2D([], [], color=colours[name], marker="o", markersize=3, label=plain(TITLES.get(name, name)))
        for name in colours
    ]
    below(figure, handles, "", 5)
    figure.suptitle(title(results, "Explanations"))
    return {"explanations": figure}


@register_figure(
    "explanation_curves",
    place=95.5,
    page=85.5,
    caption="How much of the prediction is lost as instances are removed: the most relevant first (solid) or the least "
    "relevant first (dashed), mean over test slides. The area between is how far an explainer can be trusted.",
)
def draw_curves(results: Results) -> dict[str, Figure]:
    """``explanation-curves``: a panel an aggregator, a colour an explainer; {} where ``--explain`` was not given."""
    rows = explained(results)
    if rows.empty:
        return {}
    curves = rows[rows["name"].str.startswith("flip_")]
    means = curves.groupby(["aggregator", "explainer", "name"])["value"].mean()
    labels, colours = rows["aggregator"].unique().tolist(), _colours(rows)
    shape = grid_shape(len(labels), 5)
    figure = Figure(figsize=(WIDTH, 0.9 + 1.3 * shape[0]), layout="constrained")
    panels: list[Axes] = list(figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel())
    for axes, label in zip(panels, labels, strict=False):
        axes.axhline(0, color="0.8", linewidth=0.6)
        for explainer in means[label].index.unique("explainer"):
            for kind, line in (("least", "--"), ("most", "-")):
                shares, values = _curve(means[label, explainer], kind)
                axes.plot(100 * shares, values, line, color=colours[explainer], linewidth=1 if kind == "most" else 0.7)
        axes.tick_params(labelsize=6)
        axes.set_title(wrapped(label, 22), fontsize=7)
    for axes in panels[len(labels) :]:
        axes.set_axis_off()
    figure.supylabel(textwrap.fill(f"lost of the {results.task.explains}", 28), fontsize=7)
    handles = [Line2D([], [], color=colours[name], label=plain(TITLES.get(name, name))) for name in colours]
    note = "Over the share of instances removed (%): solid, the most relevant first; dashed, the least relevant first."
    below(figure, handles, note, 5)
    figure.suptitle(title(results, "Explanations by patch flipping"))
    return {"explanation-curves": figure}


def _colours(rows: pd.DataFrame) -> dict[str, Any]:
    """A colour an explainer; that of random scores is grey."""
    names = in_order(rows["explainer"].tolist())
    colours = palette([name for name in names if name != "random"])
    return {name: colours.get(name, "0.6") for name in names}


def _curve(means: pd.Series, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares removed, from 0, and what is lost."""
    prefix = f"flip_{kind}_"
    names = [str(name) for name in means.index if str(name).startswith(prefix)]
    points = sorted((float(name.removeprefix(prefix)), float(means[name])) for name in names)
    shares, values = np.array([(0.0, 0.0), *points]).T
    return shares, values
