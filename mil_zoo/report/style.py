"""How figures of a run look: size, letters, colours, titles, files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mil_zoo.report.results import dataset_title

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

DPI = 200
WIDTH = 7.2  # inches: the text width of a page, so that the 8 pt letters stay 8 pt
STYLE = (
    sns.axes_style("ticks")
    | {"axes.spines.right": False, "axes.spines.top": False}
    | {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "figure.titlesize": 9,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "lines.linewidth": 1.4,
        "axes.linewidth": 0.8,
    }
)


def palette(labels: list[str]) -> dict[str, Any]:
    """A colour for every aggregator of the run, the same in all figures, told apart by colour-blind readers too."""
    # seaborn's colour-blind palette, the pairs that are close on white paper put last.
    colours = [sns.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 9, 7, 3, 5, 8, 6)]
    colours += [tuple(0.55 * part for part in colour) for colour in colours]  # the whole zoo: each also in a dark shade
    if len(labels) > len(colours):
        colours = sns.color_palette("viridis", len(labels))
    return dict(zip(labels, colours, strict=False))


def title(run: RunDirectory, what: str, width: int = 100) -> str:
    """``what`` and the dataset, marked where the slides are simulated."""
    return textwrap.fill(f"{what}: {dataset_title(run)}", width)


def below(figure: Figure, handles: Sequence[Line2D], note: str, columns: int) -> None:
    """A legend under the panels with the note above it, or the note alone: as one thing, since two would overlap."""
    note = textwrap.fill(note, int(17 * figure.get_figwidth()))
    if handles:
        figure.legend(
            handles=handles, title=note, loc="outside lower center", ncols=columns, frameon=False, title_fontsize=7
        )
    else:
        figure.supxlabel(note, fontsize=7)


def save(run: RunDirectory, name: str, figure: Figure) -> Path:
    """Writes ``figures/<name>.png`` of the run."""
    path = Path(run.path) / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path
