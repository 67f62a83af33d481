"""How figures look: size, letters, colours, titles, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mil_zoo.report.load import Results

DPI = 200
WIDTH = 7.2  # inches: the text width of a page, so that the 8 pt letters stay 8 pt
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "0.15",
    "axes.labelcolor": "0.15",
    "axes.labelsize": 8,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.titlesize": 9,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: figures are the same on every machine
    "font.size": 8,
    "grid.color": "0.8",
    "legend.fontsize": 7,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "white",
    "patch.force_edgecolor": True,
    "text.color": "0.15",
    "xtick.color": "0.15",
    "xtick.labelsize": 7,
    "ytick.color": "0.15",
    "ytick.labelsize": 7,
}
# The colour-blind palette of seaborn, the pairs that are close on white paper put last.
_COLOURS = (
    "#0173b2", "#de8f05", "#029e73", "#cc78bc", "#56b4e9", "#949494", "#d55e00", "#ca9161", "#ece133", "#fbafe4",
)  # fmt: skip


def palette(labels: Sequence[str]) -> dict[str, Any]:
    """A colour for every aggregator of the run, the same in all figures, told apart by colour-blind readers too."""
    colours: list[Any] = [mpl.colors.to_rgb(colour) for colour in _COLOURS]
    colours += [tuple(0.55 * part for part in colour) for colour in colours]  # the whole zoo: each also in a dark shade
    if len(labels) > len(colours):
        colours = [tuple(colour) for colour in mpl.colormaps["viridis"](np.linspace(0, 1, len(labels) + 2))[1:-1, :3]]
    return dict(zip(labels, colours, strict=False))


def colours_of(results: Results) -> dict[str, Any]:
    """The colour of every ``aggregator[@grid]`` of a run."""
    return palette(list(results.groups))


def title(results: Results, what: str, width: int = 100) -> str:
    """``what`` and the dataset, marked where the slides are simulated."""
    return textwrap.fill(f"{what}: {results.dataset_title}", width)


def below(figure: Figure, handles: Sequence[Line2D], note: str, columns: int) -> None:
    """A legend under the panels with the note above it, or the note alone: as one thing, since two would overlap."""
    note = textwrap.fill(note, int(17 * figure.get_figwidth()))
    if handles:
        figure.legend(
            handles=handles, title=note, loc="outside lower center", ncols=columns, frameon=False, title_fontsize=7
        )
    else:
        figure.supxlabel(note, fontsize=7)


def legend(figure: Figure, colours: dict[str, Any], note: str) -> None:
    """The legend of several aggregators under the panels, with the note; of one the note alone."""
    lines = [Line2D([], [], color=colour, label=label) for label, colour in colours.items()] if len(colours) > 1 else []
    below(figure, lines, note, min(len(lines), 4 if len(lines) in (7, 8) else 5))


def line(axes: Axes, curve: Any, **style: Any) -> None:
    """A curve over its index; one of a single epoch has no length and needs a point to be seen."""
    axes.plot(curve, marker="o" if len(curve) == 1 else None, markersize=4, **style)


def band(axes: Axes, by_epoch: Any, colour: Any) -> None:
    """Mean over trials with a band from the smallest to the largest."""
    mean, low, high = by_epoch.mean(), by_epoch.min(), by_epoch.max()
    axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
    line(axes, mean, color=colour)
