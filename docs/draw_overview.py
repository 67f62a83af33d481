"""Draws ``_static/overview.svg``: bag -> graph -> aggregator -> tables and maps, as a schema. Run it from anywhere.

Patches, graph and map are computed from one made-up piece of tissue; the table and its bars are a drawing.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

import mil_zoo

INK, FAINT, ACCENT = "#26323d", "#8a97a3", "#b3395b"
OUT = Path(__file__).parent / "_static" / "overview.svg"


def tissue() -> tuple[np.ndarray, np.ndarray]:
    """Patches ``[N, 2]`` on a grid inside a rounded outline, and how near each lies to a lesion, ``[N]`` in [0, 1]."""
    x, y = np.meshgrid(np.arange(13), np.arange(15))
    places = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    angle = np.arctan2(places[:, 1] - 7, places[:, 0] - 6)
    outline = 5.6 + 1.1 * np.sin(3 * angle + 0.6) + 0.5 * np.cos(5 * angle)
    inside = np.hypot(places[:, 0] - 6, (places[:, 1] - 7) * 0.9) < outline
    places = places[inside]
    return places, np.exp(-((places - [8.2, 4.6]) ** 2).sum(1) / 3.2)


def panel(figure: Figure, column: int, title: str, text: str) -> Axes:
    """An empty panel below its title and above its one line of text."""
    axes = figure.add_axes((0.012 + column * 0.25, 0.17, 0.2, 0.66))
    axes.set_axis_off()
    figure.text(0.112 + column * 0.25, 0.91, title, ha="center", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.112 + column * 0.25, 0.05, text, ha="center", va="center", fontsize=9.5, color=INK, linespacing=1.35)
    if column:
        figure.text(column * 0.25 - 0.013, 0.5, "→", ha="center", va="center", fontsize=24, color=FAINT)
    return axes


def squares(axes: Axes, places: np.ndarray, colours: np.ndarray) -> None:
    """One square a patch, rows downwards as on a slide."""
    for (x, y), colour in zip(places, colours, strict=True):
        axes.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, color=colour, linewidth=0))
    axes.set(xlim=(-1, 13), ylim=(15, -1), aspect="equal")


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "mil-zoo", "font.family": "DejaVu Sans"})
    figure = Figure(figsize=(11, 3.7), facecolor="white")
    places, lesion = tissue()
    shade = np.random.default_rng(3).normal(size=len(places))
    stain = mpl.colormaps["PuRd"](np.clip(0.38 + 0.06 * shade + 0.28 * lesion, 0, 1))

    squares(panel(figure, 0, "bag", "patches of a slide,\na feature vector each"), places, stain)

    axes = panel(figure, 1, "graph", "neighbours, built once,\nas sparse rows")
    csr = mil_zoo.graph.build_csr(torch.tensor(places), "window:1", patch_size=1)
    source = csr.indices.numpy()
    destination = np.repeat(np.arange(len(places)), np.diff(csr.indptr.numpy()))
    lines = np.stack([places[source], places[destination]], axis=1)[source < destination]
    axes.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.7))
    axes.scatter(*places.T, s=17, c=stain, edgecolors=INK, linewidths=0.3, zorder=2)
    axes.set(xlim=(-1, 13), ylim=(15, -1), aspect="equal")

    axes = panel(figure, 2, "aggregator", "one of the zoo, trained by its\nown paper's recipe")
    for row, (name, colour) in enumerate([("abmil", INK), ("clam_sb", INK), ("srmil", ACCENT), ("transmil", INK)]):
        box = FancyBboxPatch((0.12, 0.78 - row * 0.2), 0.76, 0.12, boxstyle="round,pad=0.02", facecolor="white")
        box.set(edgecolor=colour, linewidth=1.4)
        axes.add_patch(box)
        axes.text(0.5, 0.84 - row * 0.2, name, ha="center", va="center", fontsize=11, color=colour, family="monospace")
    axes.text(0.5, 0.05, "…", ha="center", fontsize=15, color=FAINT)
    axes.set(xlim=(0, 1), ylim=(0, 1))

    axes = panel(figure, 3, "tables and maps", "scores with intervals and tests,\nattention beside the truth")
    squares(axes, places, mpl.colormaps["viridis"](0.08 + 0.92 * lesion / lesion.max()))
    axes.set_position((0.845, 0.17, 0.145, 0.66))
    table = figure.add_axes((0.762, 0.28, 0.085, 0.46))
    table.set_axis_off()
    for row, (middle, half) in enumerate([(0.74, 0.14), (0.68, 0.18), (0.6, 0.14), (0.46, 0.2)]):
        table.plot([middle - half, middle + half], [3 - row] * 2, color=FAINT, linewidth=2)
        table.plot(middle, 3 - row, "o", color=ACCENT if row == 2 else INK, markersize=5)
    table.plot([0.2, 0.2, 1], [3.6, -0.6, -0.6], color=INK, linewidth=0.9)
    table.set(xlim=(0.15, 1.05), ylim=(-0.8, 3.8))

    figure.savefig(OUT, metadata={"Date": None})
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
