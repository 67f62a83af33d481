"""Attention maps: where each aggregator looks on a slide, beside the annotated truth (figure 4 of the SRMIL paper)."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import h5py
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure

from mil_zoo.errors import InputError
from mil_zoo.report.results import finished, label_of, trials_by_aggregator
from mil_zoo.report.style import STYLE, WIDTH, save, title

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

COLUMNS = 4
SPAN = 100.0  # colours end at a hundredth and a hundred times uniform attention: one scale for all slides and runs
_TRUTH = np.array([[0.82, 0.82, 0.82, 1.0], [0.84, 0.37, 0.0, 1.0]])  # negative, positive


def draw_attention_maps(run: RunDirectory, slides: Sequence[str] | None = None) -> list[Path]:
    """Draws ``figures/figure4.png`` and ``figures/attention-<slide>.png``: truth and a map an aggregator, on the grid.

    Figure 4 of the SRMIL paper is the map of a negative slide; here a positive one stands below it.

    The trials are those of one fold, the first that most aggregators with attention finished, so that all maps are of
    one test slide. Colour is N x attention, on one logarithmic scale centred on 1, which is uniform attention; a ring
    marks the most attended patch and the title gives its attention. Patches without a size (nuclei) are dots.

    Args:
        slides: slide ids among the test slides of any one fold. Default: one negative slide of median size, and one
            positive slide, predicted rightly by as many aggregators as any is and of median positive share.

    Returns:
        The files written; none where no model has attention or no slide has coordinates.

    Raises:
        InputError: a slide that is in no test set, or has no coordinates.
    """
    folds = _folds(run)
    if slides is None:
        # max keeps the first fold among those with equally many aggregators.
        chosen = max(folds, key=len, default={})
        figures = [(slide, chosen) for slide in _typical_slides(chosen)]
    else:
        figures = [(slide, _fold_of(run, slide, folds)) for slide in slides]
    maps = {slide: _read(slide, files) for slide, files in figures}
    with mpl.rc_context(STYLE):
        drawn = [save(run, "figure4", _figure(run, maps))] if maps else []
        return drawn + [
            save(run, f"attention-{quote(slide, safe='')}", _figure(run, {slide: part})) for slide, part in maps.items()
        ]


def _folds(run: RunDirectory) -> list[dict[str, Path]]:
    """For every repeat, seed and fold, in this order, the attention file of each aggregator that has one."""
    folds: dict[Any, dict[str, Path]] = defaultdict(dict)
    for trials in trials_by_aggregator(run).values():
        for trial in finished(trials):
            path = Path(run.attention(trial["trial"]))
            if path.exists():
                folds[trial["repeat"], trial["seed"], trial["fold"]][label_of(trial)] = path
    return [folds[key] for key in sorted(folds)]


def _fold_of(run: RunDirectory, slide: str, folds: list[dict[str, Path]]) -> dict[str, Path]:
    holding = []
    for files in folds:
        have = {}
        for label, path in files.items():
            with h5py.File(path) as file:
                if quote(slide, safe="") in file:
                    have[label] = path
        holding.append(have)
    best = max(holding, key=len, default={})
    if not best:
        raise InputError(f"{run.path}: no attention of slide {slide!r} is stored; name a test slide of this run")
    return best


def _typical_slides(files: dict[str, Path]) -> list[str]:
    """A negative and a positive slide that every file holds, with coordinates."""
    found: dict[bool, list[tuple[Any, ...]]] = {False: [], True: []}
    with ExitStack() as stack:
        opened = [stack.enter_context(h5py.File(path)) for path in files.values()]
        if not opened:
            return []
        for key in sorted(set.intersection(*map(set, opened))):
            group = opened[0][key]
            label, size = int(group.attrs["label"]), len(group["attention"])
            if "coords" not in group or label < 0:
                continue
            share = float(group["instance_labels"][:].mean()) if "instance_labels" in group else 0.0
            right = sum(int(file[key].attrs["predicted"]) == label for file in opened)
            order = (share, size) if label else (size,)
            found[label > 0].append((right if label else 0, order, str(group.attrs["slide_id"])))
    typical = []
    for candidates in found.values():
        best = [candidate for candidate in sorted(candidates) if candidate[0] == max(candidates)[0]]
        typical += [slide for _, _, slide in best[(len(best) - 1) // 2 :][:1]]
    return typical


def _read(slide: str, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    maps = {}
    for label, path in files.items():
        with h5py.File(path) as file:
            group = file[quote(slide, safe="")]
            maps[label] = {name: group[name][:] for name in ("attention", "coords", "instance_labels") if name in group}
            maps[label] |= dict(group.attrs)
        if "coords" not in maps[label]:
            raise InputError(f"{path}: slide {slide!r} has no coordinates, so no attention map; give coords in its bag")
    return maps


def _figure(run: RunDirectory, slides: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """One block a slide: the truth and the maps of all aggregators."""
    heights = {slide: _height(maps) for slide, maps in slides.items()}
    figure = Figure(figsize=(WIDTH, sum(heights.values()) + 0.6), layout="constrained")
    figure.suptitle(title(run, f"Attention on slide {next(iter(slides))}" if len(slides) == 1 else "Attention maps"))
    blocks = figure.subfigures(len(slides), 1, height_ratios=list(heights.values()), squeeze=False).ravel()
    for block, (slide, maps) in zip(blocks, slides.items(), strict=True):
        if len(slides) > 1:
            block.suptitle(f"slide {slide}", x=0.01, ha="left", fontsize=8)
        _draw_slide(block, maps, run.config["dataset"]["classes"])
    note = "Ring: the most attended patch."
    missing = [label for label in trials_by_aggregator(run) if label not in next(iter(slides.values()))]
    if missing:
        where = "this slide" if len(slides) == 1 else "these slides"
        note += f" Without a stored attention on {where}: {', '.join(missing)}."
    figure.supxlabel(textwrap.fill(note, 130), fontsize=7)
    return figure


def _shape(maps: dict[str, dict[str, Any]]) -> tuple[int, int]:
    """Rows and columns of a slide's panels."""
    columns = min(COLUMNS, 1 + len(maps))
    return -(-(1 + len(maps)) // columns), columns


def _height(maps: dict[str, dict[str, Any]]) -> float:
    """Height of a slide's panels, inches: as the slide is shaped."""
    first, (rows, columns) = next(iter(maps.values())), _shape(maps)
    side = float(first["patch_size"])
    width, height = np.ptp(first["coords"], axis=0) + (0 if np.isnan(side) else side)
    panel = min((WIDTH - 0.6) / columns, 2.4)
    return rows * (panel * float(np.clip(height / max(width, 1), 0.4, 1.8)) + 0.4)


def _draw_slide(block: SubFigure, maps: dict[str, dict[str, Any]], names: list[str]) -> None:
    first = next(iter(maps.values()))
    coords, side = first["coords"], float(first["patch_size"])
    panels = block.subplots(*_shape(maps), squeeze=False).ravel()
    _draw_truth(panels[0], first, names)
    norm = LogNorm(1 / SPAN, SPAN)
    cmap = mpl.colormaps["coolwarm"]
    for axes, (label, part) in zip(panels[1:], maps.items(), strict=False):
        relative = len(part["attention"]) * part["attention"].astype(np.float64)
        draw_patches(axes, coords, side, cmap(norm(np.clip(relative, 1 / SPAN, SPAN))), relative)
        top = coords[relative.argmax()] + (0 if np.isnan(side) else side / 2)
        axes.plot(*top, marker="o", markersize=6, color="none", markeredgecolor="black", markeredgewidth=0.8)
        predicted = textwrap.fill(f"predicted {_name(part['predicted'], names)}", 24)
        axes.set_title(f"{label}: max {part['attention'].max():.2g}\n{predicted}")
    for axes in panels[1 + len(maps) :]:
        axes.set_axis_off()
    block.colorbar(
        ScalarMappable(norm, cmap),
        ax=list(panels),
        extend="both",
        label="N x attention (1 = uniform)",
        pad=0.01,
        aspect=30,
    )


def _draw_truth(axes: Axes, part: dict[str, Any], names: list[str]) -> None:
    labels = part.get("instance_labels")
    positive = np.zeros(len(part["coords"]), int) if labels is None else (labels > 0).astype(int)
    draw_patches(axes, part["coords"], float(part["patch_size"]), _TRUTH[positive], positive)
    truth = "no instance labels" if labels is None else f"{positive.mean():.1%} of {len(positive):,} positive"
    axes.set_title(textwrap.fill(f"truth: {_name(part['label'], names)}", 24) + f"\n{truth}")


def draw_patches(
    axes: Axes, coords: np.ndarray, side: float, colours: np.ndarray, height: np.ndarray, width: float = WIDTH
) -> None:
    """Squares of ``side`` at ``coords``, or dots where it is NaN; higher ones over lower ones."""
    order = np.argsort(height, kind="stable")
    if np.isnan(side):
        points_wide = 72 * width / COLUMNS
        size = float(np.clip((0.6 * points_wide) ** 2 / len(coords), 0.2, 30))
        axes.scatter(*coords[order].T, s=size, c=colours[order], linewidths=0)
    else:
        corners = side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        squares = coords[order, None, :] + corners
        axes.add_collection(PolyCollection(squares, facecolors=colours[order], linewidths=0, antialiaseds=False))
        axes.autoscale_view()
    axes.set_aspect("equal")
    axes.invert_yaxis()  # image coordinates: y points down
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _name(label: Any, names: list[str]) -> str:
    return names[int(label)] if 0 <= int(label) < len(names) else str(int(label))
