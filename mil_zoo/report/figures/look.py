"""How figures look: size, letters, colours, titles, legends."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
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


MARKED = 25  # values of a curve; more marks would be a band
FEW = 5  # trials: fewer are drawn one by one, since a band would look like knowledge of many


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made and saved inside look the same whatever style, LaTeX or notebook the user has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]  # whose keys are names of settings
        yield


def plain(text: str) -> str:
    """``text`` as it is: a pair of dollars does not make it a formula."""
    return text.replace("$", r"\$")


def wrapped(label: str, width: int = 26) -> str:
    """An ``aggregator[@grid]`` on as many lines as it needs, broken between its settings."""
    lines = [""]
    for part in re.findall(r"[^@,]+[@,]?", label):
        pieces = [part[i : i + width] for i in range(0, len(part), width)]
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += "\n".join(pieces)
    return plain("\n".join(lines))


def grid_shape(panels: int, most: int) -> tuple[int, int]:
    """Rows and columns that hold ``panels``, at most ``most`` side by side, the last row as full as can be."""
    rows = -(-panels // most)
    return rows, -(-panels // rows)


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
    return plain(textwrap.fill(f"{what}: {results.dataset_title}", width))


def below(figure: Figure, handles: Sequence[Line2D], note: str, columns: int) -> None:
    """A legend under the panels with the note above it, or the note alone: as one thing, since two would overlap."""
    note = plain(textwrap.fill(note, int(17 * figure.get_figwidth())))
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(columns, int(15 * figure.get_figwidth() / (longest + 8))))  # as many as stand side by side
        figure.set_figheight(figure.get_figheight() + 0.14 * max(0, -(-len(handles) // columns) - 2))
        figure.legend(
            handles=handles, title=note, loc="outside lower center", ncols=columns, frameon=False, title_fontsize=7
        )
    else:
        figure.supxlabel(note, fontsize=7)


def legend(figure: Figure, colours: dict[str, Any], note: str, points: bool = False) -> None:
    """The legend of several aggregators under the panels, with the note; of one the note alone.

    Args:
        figure: with its panels.
        colours: of the aggregators.
        note: below the panels.
        points: whether the panels show points and no lines.
    """
    style: dict[str, Any] = {"marker": "o", "markersize": 5, "linestyle": "none"} if points else {}
    lines = [Line2D([], [], color=colour, label=plain(label), **style) for label, colour in colours.items()]
    lines = lines if len(lines) > 1 else []
    below(figure, lines, note, min(len(lines), 4 if len(lines) in (7, 8) else 5))


def widths(labels: Sequence[str]) -> dict[str, float]:
    """A width of line for every aggregator, the first one's the largest: each is seen around those that cover it."""
    narrow = STYLE["lines.linewidth"]
    return dict(zip(labels, np.linspace(narrow + 0.7 * min(len(labels) - 1, 2), narrow, len(labels)), strict=True))


def line(axes: Axes, curve: Any, colour: Any, width: float) -> None:
    """A curve over its index, with a mark at each value where these are few: between them nothing was measured."""
    mark = "o" if len(curve) <= MARKED else None
    axes.plot(curve, color=colour, linewidth=width, marker=mark, markersize=2 * width, clip_on=False)


def band(axes: Axes, table: pd.DataFrame, column: str, colour: Any, width: float) -> None:
    """A column of ``table`` over its epochs: the mean of the trials, with a band from the smallest to the largest.

    Fewer than ``FEW`` trials are thin lines of their own instead of the band. See :func:`carried` for trials that
    stopped early.
    """
    table = table.dropna(subset=column)  # not every epoch is recorded
    by_epoch = carried(table).groupby("epoch")[column]
    mean = by_epoch.mean()
    trials = table["trial"].nunique()
    if 1 < trials < FEW:
        for _, part in table.groupby("trial"):
            axes.plot(part.groupby("epoch")[column].mean(), color=colour, linewidth=0.6, alpha=0.5)
    elif trials > 1:
        axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.15, linewidth=0)
    line(axes, mean, colour, width)


def carried(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the epochs that every trial has, where one that stopped early has its last rows from there on.

    A mean over the trials that happen to have recorded an epoch would be one of other trials at each.

    Args:
        table: columns ``trial`` and ``epoch``, and others.
    """
    last = table.groupby("trial")["epoch"].transform("max")
    ends = table[table["epoch"] == last].rename(columns={"epoch": "last"})
    later = ends.merge(table[["epoch"]].drop_duplicates(), how="cross")
    whole = pd.concat([table, later[later["epoch"] > later["last"]].drop(columns="last")])
    trials = whole.groupby("epoch")["trial"].transform("nunique")
    return whole[trials == table["trial"].nunique()]


def level(axes: Axes, value: float, name: str) -> None:
    """A dashed line at ``value``, named at its right end."""
    axes.axhline(value, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.annotate(
        name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=6.5, color="0.35"
    )
