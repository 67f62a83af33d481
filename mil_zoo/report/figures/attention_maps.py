"""Attention maps: where each aggregator looks on a slide, beside the annotated truth (figure 4 of the SRMIL paper)."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure

from mil_zoo.errors import InputError
from mil_zoo.report.figures.look import WIDTH, grid_shape, plain, title, wrapped
from mil_zoo.report.figures.registry import Captioned, register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.names import file_stem
from mil_zoo.report.tables.text import short

COLUMNS = 4
SPAN = 100.0  # colours end at a hundredth and a hundred times uniform attention: one scale for all slides and runs
FLAT = 1.5  # attention within this factor of uniform cannot be told from it by eye
TRUTH = np.array([[0.82, 0.82, 0.82, 1.0], [0.84, 0.37, 0.0, 1.0]])  # negative, positive


@register_figure("attention", place=90, page=80)
def draw(results: Results) -> dict[str, Captioned]:
    """``figure4`` and ``attention-<slide>``: truth and a map an aggregator, on the patch grid.

    Figure 4 of the SRMIL paper is the map of a negative slide; here a positive one stands below it.

    The trials are those of one fold, the first that most aggregators with attention finished, so that all maps are of
    one test slide. Colour is N x attention, on one logarithmic scale centred on 1, which is uniform attention; a ring
    marks the most attended patch, and the title gives its attention, and says where all are nearly alike. Patches
    without a size (nuclei) are dots. The slides are those of ``results.slides``; by default one negative slide of
    median size, and one positive slide, predicted rightly by as many aggregators as any is and of median positive
    share.

    Raises:
        InputError: a slide that is in no test set, or has coordinates in no trial.
    """
    folds = _folds(results)
    if results.slides is None:
        # max keeps the first fold among those with equally many aggregators.
        chosen = max(folds, key=len, default={})
        figures = [(slide, chosen) for slide in _typical_slides(results, chosen)]
    else:
        figures = [(slide, _fold_of(results, slide, folds)) for slide in results.slides]
    maps = {slide: _read(results, slide, trials) for slide, trials in figures}
    drawn = {
        f"attention-{file_stem(slide)}": Captioned(
            _figure(results, {slide: part}), f"Where the models look on slide {slide}. {_CAPTION}"
        )
        for slide, part in maps.items()
    }
    if not maps:
        return {}
    return {"figure4": Captioned(_figure(results, maps), f"Where the models look. {_CAPTION}", on_page=False)} | drawn


_CAPTION = (
    "N times the attention of each patch, on one scale for all slides and runs: blue is less and red more than uniform "
    "attention, grey about as much. A ring marks the most attended patch. Nearly uniform is a map, without a ring, "
    f"whose patches all lie within a factor of {FLAT} of uniform attention."
)


def _folds(results: Results) -> list[dict[str, str]]:
    """For every repeat, seed and fold, in this order, the trial of each aggregator that stored attention."""
    folds: dict[Any, dict[str, str]] = defaultdict(dict)
    for label, trials in results.finished.items():
        for trial in trials:
            if results.attention.slides(trial.trial):
                folds[trial.repeat, trial.seed, trial.fold][label] = trial.trial
    return [folds[key] for key in sorted(folds)]


def _fold_of(results: Results, slide: str, folds: list[dict[str, str]]) -> dict[str, str]:
    holding = [
        {label: trial for label, trial in trials.items() if slide in results.attention.slides(trial)}
        for trials in folds
    ]
    best = max(holding, key=len, default={})
    if not best:
        raise InputError(f"{results.path}: no attention of slide {slide!r} is stored; name a test slide of this run")
    return best


def _typical_slides(results: Results, trials: dict[str, str]) -> list[str]:
    """A negative and a positive slide that every trial with coordinates stored."""
    found: dict[bool, list[tuple[Any, ...]]] = {False: [], True: []}
    placed = [trial for trial in trials.values() if any(map(_placed, results.attention.slides(trial).values()))]
    stored = [results.attention.slides(trial) for trial in placed]
    if not stored:
        return []
    for slide in sorted(set.intersection(*map(set, stored)), key=lambda slide: quote(slide, safe="")):
        facts = stored[0][slide]
        label, size = int(facts["label"]), facts["n"]
        if not all(_placed(part[slide]) for part in stored) or label < 0:
            continue
        labels = results.attention.read(placed[0], slide, "instance_labels")
        share = 0.0 if labels is None else float(labels.mean())
        right = sum(int(part[slide]["predicted"]) == label for part in stored)
        order = (share, size) if label else (size,)
        found[label > 0].append((right if label else 0, order, slide))
    typical = []
    for candidates in found.values():
        best = [candidate for candidate in sorted(candidates) if candidate[0] == max(candidates)[0]]
        typical += [slide for _, _, slide in best[(len(best) - 1) // 2 :][:1]]
    return typical


def _placed(facts: dict[str, Any]) -> bool:
    """Whether a trial stored where the instances of a slide lie; embeddings of slides lie nowhere."""
    return "coords" in facts["arrays"]


def nearly_uniform(relative: np.ndarray) -> bool:
    """Whether N times the attention of all patches lies within a factor of ``FLAT`` of 1, where maps are grey."""
    return bool(relative.max() < FLAT and relative.min() > 1 / FLAT)


def _relative(part: dict[str, Any]) -> np.ndarray:
    """N times the attention."""
    return np.asarray(len(part["attention"]) * part["attention"].astype(np.float64))


def _read(results: Results, slide: str, trials: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the trials with coordinates stored of a slide."""
    placed = {label: trial for label, trial in trials.items() if _placed(results.attention.slides(trial)[slide])}
    if not placed:
        raise InputError(
            f"{results.run.attention(next(iter(trials.values())))}: slide {slide!r} has no coordinates, so no "
            "attention map; give coords in its bag"
        )
    maps = {}
    for label, trial in placed.items():
        facts = results.attention.slides(trial)[slide]
        names = [name for name in ("attention", "coords", "instance_labels") if name in facts["arrays"]]
        maps[label] = facts | {name: results.attention.read(trial, slide, name) for name in names}
    return maps


def _figure(results: Results, slides: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """One block a slide: the truth and the maps of all aggregators."""
    heights = {slide: _height(maps) for slide, maps in slides.items()}
    figure = Figure(figsize=(WIDTH, sum(heights.values()) + 0.6), layout="constrained")
    figure.suptitle(
        title(results, f"Attention on slide {next(iter(slides))}" if len(slides) == 1 else "Attention maps")
    )
    blocks = figure.subfigures(len(slides), 1, height_ratios=list(heights.values()), squeeze=False).ravel()
    for block, (slide, maps) in zip(blocks, slides.items(), strict=True):
        if len(slides) > 1 or not _labelled(maps):
            block.suptitle(
                plain(_heading(slide, maps, results.config.dataset.classes)),
                x=0.01,
                ha="left",
                fontsize=8,
            )
        _draw_slide(block, maps, results.config.dataset.classes)
    note = "Ring: the most attended patch."
    if any(nearly_uniform(_relative(part)) for maps in slides.values() for part in maps.values()):
        note += f" Nearly uniform: all patches within a factor of {FLAT} of uniform attention, no ring."
    missing = [label for label in results.groups if label not in next(iter(slides.values()))]
    if missing:
        where = "this slide" if len(slides) == 1 else "these slides"
        note += f" Without attention or coordinates on {where}: {', '.join(missing)}."
    figure.supxlabel(textwrap.fill(note, 130), fontsize=7)
    return figure


def _shape(maps: dict[str, dict[str, Any]]) -> tuple[int, int]:
    """Rows and columns of a slide's panels, the last row as full as can be."""
    return grid_shape(len(maps) + _labelled(maps), COLUMNS)


def _labelled(maps: dict[str, dict[str, Any]]) -> bool:
    """Whether the truth of the patches is known, so that there is something to draw beside the maps."""
    return "instance_labels" in next(iter(maps.values()))


def _heading(slide: str, maps: dict[str, dict[str, Any]], names: list[str]) -> str:
    truth = int(next(iter(maps.values()))["label"])
    return f"slide {slide}" if _labelled(maps) or truth < 0 else f"slide {slide}, truth: {_name(truth, names)}"


def _height(maps: dict[str, dict[str, Any]]) -> float:
    """Height of a slide's panels, inches: as the slide is shaped."""
    first, (rows, columns) = next(iter(maps.values())), _shape(maps)
    lines = max(wrapped(label, 24).count("\n") for label in maps)
    side = float(first["patch_size"])
    width, height = np.ptp(first["coords"], axis=0) + (0 if np.isnan(side) else side)
    panel = min((WIDTH - 0.6) / columns, 2.4)
    return rows * (panel * float(np.clip(height / max(width, 1), 0.4, 1.8)) + 0.54 + 0.14 * lines) + 0.3


def _draw_slide(block: SubFigure, maps: dict[str, dict[str, Any]], names: list[str]) -> None:
    first = next(iter(maps.values()))
    coords, side = first["coords"], float(first["patch_size"])
    panels = block.subplots(*_shape(maps), squeeze=False).ravel()
    labelled = _labelled(maps)
    if labelled:
        _draw_truth(panels[0], first, names)
    norm = LogNorm(1 / SPAN, SPAN)
    cmap = mpl.colormaps["coolwarm"]
    for axes, (label, part) in zip(panels[int(labelled) :], maps.items(), strict=False):
        relative = _relative(part)
        draw_patches(axes, coords, side, cmap(norm(np.clip(relative, 1 / SPAN, SPAN))), relative)
        uniform = nearly_uniform(relative)
        if not uniform:
            top = coords[relative.argmax()] + (0 if np.isnan(side) else side / 2)
            ring: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.8, "clip_on": False}
            axes.plot(*top, marker="o", markersize=6, color="none", **ring)
        predicted = plain(textwrap.fill(f"predicted {_name(part['predicted'], names)}", 24))
        highest = f"max {part['attention'].max():.2g}, {short(relative.max())} x uniform"
        axes.set_title(f"{wrapped(label, 24)}{': nearly uniform' * uniform}\n{highest}\n{predicted}")
    for axes in panels[labelled + len(maps) :]:
        axes.set_axis_off()
    block.colorbar(
        ScalarMappable(norm, cmap),
        ax=list(panels),
        extend="both",
        label="N x attention (1 = uniform)",
        pad=0.01,
        aspect=30,
        panchor=False,  # maps stay in the middle of their panels
    )


def _draw_truth(axes: Axes, part: dict[str, Any], names: list[str]) -> None:
    positive = (part["instance_labels"] > 0).astype(int)
    draw_patches(axes, part["coords"], float(part["patch_size"]), TRUTH[positive], positive)
    truth = textwrap.fill(f"truth: {_name(part['label'], names)}", 24)
    axes.set_title(plain(f"{truth}\n{positive.mean():.1%} of {len(positive):,} positive"))


def draw_patches(
    axes: Axes, coords: np.ndarray, side: float, colours: np.ndarray, height: np.ndarray, panel: float = WIDTH / COLUMNS
) -> None:
    """Squares of ``side`` at ``coords``, or dots where it is NaN; higher ones over lower ones.

    Dots are as large as a panel of the width ``panel``, in inches, has room for.
    """
    order = np.argsort(height, kind="stable")
    if np.isnan(side):
        size = float(np.clip((0.6 * 72 * panel) ** 2 / len(coords), 0.2, 30))
        x, y = coords[order].T
        axes.scatter(x, y, s=size, c=colours[order], linewidths=0, clip_on=False)  # the outer ones too are whole
    else:
        corners = side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        squares = coords[order, None, :] + corners
        axes.add_collection(PolyCollection(list(squares), facecolors=colours[order], linewidths=0, antialiaseds=False))
        axes.autoscale_view()
    axes.set_aspect("equal")
    axes.invert_yaxis()  # image coordinates: y points down
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _name(label: Any, names: list[str]) -> str:
    return names[int(label)] if 0 <= int(label) < len(names) else str(int(label))
