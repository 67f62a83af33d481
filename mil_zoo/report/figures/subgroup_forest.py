"""Forest plots: the score of every group of patients beside that of all."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mil_zoo.report.figures.look import WIDTH, colours_of, legend, plain, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.names import file_stem
from mil_zoo.report.subgroups import columns_of, group_scores, reason_of

MOST = 25  # groups of a plot


@register_figure(
    "subgroups",
    place=65,
    page=45,
    caption="The score of each group of patients with its 95 % bootstrap interval; a dotted line at the mean score "
    "over test sets. Groups below 10 patients or of one class are not scored.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``subgroups-<column>`` for each column of ``--by`` with two groups that are scored."""
    figures = {}
    for column in columns_of(results):
        own = [
            one
            for one in group_scores(results)
            if one.column == column and one.metric == results.lead.name and not reason_of(one)
        ]
        groups = list(dict.fromkeys(one.group for one in own))[:MOST]
        if len(groups) < 2:
            continue
        labels = [label for label in results.finished if any(one.label == label for one in own)]
        colours = {label: colours_of(results)[label] for label in labels}
        figure = Figure(figsize=(WIDTH, 1.4 + (0.16 * len(labels) + 0.14) * len(groups)), layout="constrained")
        axes = figure.subplots()
        offsets = np.linspace(-0.3, 0.3, len(labels)) if len(labels) > 1 else [0.0]
        for offset, label in zip(offsets, labels, strict=True):
            overall = results.estimate(label, results.lead.name).mean
            axes.axvline(overall, color=colours[label], linewidth=0.8, linestyle=":", zorder=0)
            for one in own:
                if one.label == label and one.group in groups:
                    row = groups.index(one.group) + offset
                    axes.hlines(row, one.drawn.low, one.drawn.high, color=colours[label], linewidth=1.2)
                    axes.plot(one.drawn.value, row, marker="s", markersize=3.5, color=colours[label])
        sizes = {one.group: one.patients for one in own}
        axes.set_yticks(range(len(groups)), [plain(f"{_short(group)} (n = {sizes[group]})") for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(results.lead.title)
        axes.grid(axis="x", color="0.92")
        figure.suptitle(title(results, f"By {_short(column)}"))
        legend(figure, colours, "Square: the group's score, line: its 95 % interval, dotted: all.")
        figures[f"subgroups-{file_stem(column)}"] = figure
    return figures


def _short(name: str) -> str:
    """The beginning and the end of a name that would leave no room for the plot."""
    return name if len(name) <= 36 else f"{name[:24]} ... {name[-8:]}"
