"""Figure 5 of the SRMIL paper, and its like for any grid: metrics and attention skew against a setting."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mil_zoo.metrics import inside
from mil_zoo.report.figures.look import WIDTH, below, palette, plain, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.names import file_stem
from mil_zoo.report.tables.sentences import bounds
from mil_zoo.report.tables.variants import Axis, axes_of, variant_table

SKEW = {
    "max_attention": "maximum attention",
    "n_x_max": "N x maximum",
    "effective_fraction": "effective share of instances",
    "mass_ratio": "mass ratio on positives",
}
_LOGARITHMIC = ("max_attention", "n_x_max")


@register_figure(
    "ablation",
    place=80,
    page=60,
    caption="Scores and attention against the setting that the grid varies. Scores: mean over test folds; attention: "
    "median over test slides, where N x maximum is 1 for uniform attention.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``ablation-<aggregator>-<option>`` of each grid; a mask ratio's is ``figure5``, and encoders have their own."""
    figures = {}
    titles = {metric.name: inside(metric.title) for metric in results.headline} | SKEW
    for axis in axes_of(variant_table(results)):
        if axis.option == "features" and results.config.dataset.several_encoders:
            continue  # the figure "encoders"
        name = f"ablation-{file_stem(axis.model)}-{file_stem(axis.option)}"
        name = "figure5" if axis.option == "mask_rate" else name
        figures[name] = _figure(axis, titles, bounds(results))
        what = f"{axis.model} against {axis.option.replace('_', ' ')}"
        figures[name].suptitle(title(results, what, int(14 * figures[name].get_figwidth())))
    return figures


def _figure(axis: Axis, titles: dict[str, str], cut: str) -> Figure:
    """A panel a number against the values of one grid; a line for every setting of the others."""
    names = [name for name in titles if name in set(axis.rows["name"])]
    columns = 2 if len(names) in (2, 4) else min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = list(dict.fromkeys(axis.rows["value"]))
    numeric = _numeric(values)
    logarithmic = _spans_decades(numeric)
    places = dict(zip(values, numeric or range(len(values)), strict=True))
    rests = list(dict.fromkeys(axis.rows["rest"]))
    colours = palette(rests)
    for axes, name in zip(panels, names, strict=False):
        for i, rest in enumerate(rests):
            part = axis.rows[(axis.rows["name"] == name) & (axis.rows["rest"] == rest)]
            x = np.array([places[value] for value in part["value"]], dtype=float)
            _line(axes, x, part, colours[rest], numeric is not None, (i - (len(rests) - 1) / 2) * 0.12)
        axes.set_title(titles[name])
        _dress(axes, name, axis.option, values, numeric)
        if logarithmic:
            axes.set_xscale("log")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    note = (
        f"Metrics: mean over test folds, band its 95 % interval (corrected resampled t, cut to {cut}). "
        "Attention: median over test slides, band its quartiles; N x maximum is 1 for uniform attention."
    )
    lines = [Line2D([], [], color=colours[rest], marker="o", markersize=3, label=plain(rest)) for rest in rests if rest]
    below(figure, lines, note, min(len(lines), 3))
    return figure


def _numeric(values: list[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _spans_decades(values: list[float] | None) -> bool:
    """Whether a logarithmic axis suits: learning rates of 1e-5 to 1e-3, say."""
    return values is not None and min(values) > 0 and max(values) >= 50 * min(values)


def _line(axes: Axes, x: np.ndarray, part: pd.DataFrame, colour: Any, numeric: bool, shift: float) -> None:
    mean, low, high = (part[name].to_numpy() for name in ("mean", "low", "high"))
    if numeric:
        order = np.argsort(x)
        axes.fill_between(x[order], low[order], high[order], color=colour, alpha=0.15, linewidth=0)
        axes.plot(x[order], mean[order], color=colour, marker="o", markersize=3)
    else:
        axes.vlines(x + shift, low, high, color=colour, linewidth=1.2)
        axes.plot(x + shift, mean, color=colour, marker="o", markersize=4, linestyle="none")


def _dress(axes: Axes, name: str, option: str, values: list[str], numeric: list[float] | None) -> None:
    axes.set_xlabel(option.replace("_", " ") if numeric else "")
    if numeric is None:
        axes.set_xticks(range(len(values)), [textwrap.fill(value, 14) for value in values], rotation=35, ha="right")
        axes.set_xlim(-0.5, len(values) - 0.5)
    if name in _LOGARITHMIC:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if name in ("n_x_max", "mass_ratio"):
        axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
