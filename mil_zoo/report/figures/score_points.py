"""The test metrics of every trial, and their mean with its interval."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mil_zoo.report.figures.look import WIDTH, below, colours_of, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.figures.series import trained
from mil_zoo.report.load import Results
from mil_zoo.report.tables.scores import score_table
from mil_zoo.report.tables.sentences import bounds


@register_figure(
    "metrics",
    place=30,
    page=10,
    caption="The test scores of every trial (points), their mean (diamond) and its 95 % interval, which is that of the "
    "table.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``metrics``: a panel a metric, a row an aggregator, a point a trial."""
    if not trained(results) or not results.shown:
        return {}
    table, colours = score_table(results), colours_of(results)
    metrics = [metric for metric in results.shown if table[f"{metric.name}_mean"].notna().any()]
    if not metrics:
        return {}
    names = [wrapped(label) for label in table["aggregator"]]
    row_height = max(0.3, 0.06 + 0.13 * max(name.count("\n") + 1 for name in names))
    figure = Figure(figsize=(WIDTH, 1.2 + row_height * len(table)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False).ravel()
    for axes, metric in zip(panels, metrics, strict=True):
        for row, (label, trials) in enumerate(results.finished.items()):
            values = np.array([trial.metrics.get(metric.name) for trial in trials], dtype=float)
            offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
            axes.scatter(values, row + offsets, s=10, color=colours[label], alpha=0.8, linewidths=0)
            mean, low, high = (table.loc[row, f"{metric.name}_{part}"] for part in ("mean", "low", "high"))
            axes.hlines(row, *np.clip([low, high], *metric.bounds), color="0.1", linewidth=1.2)
            axes.plot(mean, row, marker="D", markersize=3.5, color="white", markeredgecolor="0.1", markeredgewidth=1)
        axes.set(title=textwrap.fill(metric.title, 72 // len(metrics)))
        axes.xaxis.set_major_locator(MaxNLocator(4 if len(metrics) < 5 else 2))
        left, right = axes.get_xlim()
        if right - left < 0.001:  # equal values, of which rounding would make a scale
            left, right = left - 0.02, right + 0.02
        lowest, highest = metric.bounds
        axes.set_xlim(max(left, lowest - 0.02), min(right, highest + 0.02))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    axes.set_yticks(range(len(table)), names)
    axes.set_ylim(len(table) - 0.5, -0.5)
    figure.suptitle(title(results, "Test metrics"))
    several = table["splits"].max() > 1
    how = f"corrected resampled t, cut to {bounds(results)}" if several else "over the patients of the one test set"
    lows = table[[f"{metric.name}_low" for metric in metrics]]
    means = table[[f"{metric.name}_mean" for metric in metrics]]
    missing = several and (lows.isna().to_numpy() & means.notna().to_numpy()).any()
    note = f"One point a trial; diamond: mean, line: its 95 % interval ({how})."
    note += " No line: all test sets have the same value, or only one has any." * bool(missing)
    undefined = [metric.title for metric in results.shown if metric not in metrics]
    note += f" Undefined in every trial, so not shown: {', '.join(undefined)}." if undefined else ""
    below(figure, (), note, 1)
    return {"metrics": figure}
