"""Maps of all explainers beside each other, on one slide."""

from __future__ import annotations

import textwrap
from typing import Any
from urllib.parse import quote

import h5py
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mil_zoo.report.figures.attention_maps import TRUTH, draw_patches
from mil_zoo.report.figures.look import WIDTH, plain, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.explanations_table import STORE, TITLES

RANKS = "Colour: rank of a patch's score within the slide, dark least and yellow most relevant for the prediction."


@register_figure(
    "explanation_maps",
    place=96,
    page=86,
    caption="What every explainer says of one test slide. Colour is the rank of an instance's score within the slide, "
    "so that explainers of different units can be compared: dark is least, yellow most relevant for the prediction.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``explanation-maps``: a row an aggregator, a panel an explainer, the truth first where it is known.

    The slide is the first of ``results.slides``; by default the positive one of median size, of the first trial.
    {} without explanations or coordinates.
    """
    first = {
        label: next((trial.trial for trial in trials if STORE in trial.files), None)
        for label, trials in results.finished.items()
    }
    trials = {label: trial for label, trial in first.items() if trial is not None}
    if not trials:
        return {}
    slide = _slide(results, next(iter(trials.values())))
    maps = {label: found for label, trial in trials.items() if (found := _read(results, trial, slide)) is not None}
    if not maps:
        return {}
    names = list(dict.fromkeys(name for part in maps.values() for name in part["scores"]))
    truth = next(iter(maps.values())).get("instance_labels")
    columns = len(names) + (truth is not None)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.25 * len(maps)), layout="constrained")
    figure.suptitle(title(results, f"Explanations of slide {slide}"))
    panels = figure.subplots(len(maps), columns, squeeze=False)
    for row, (label, part) in zip(panels, maps.items(), strict=True):
        row[0].set_ylabel(wrapped(label, 14), fontsize=7)
        shown = list(row)
        if truth is not None:
            positive = (truth > 0).astype(int)
            draw_patches(shown.pop(0), part["coords"], part["patch_size"], TRUTH[positive], positive, 0.6 * WIDTH)
        for axes, name in zip(shown, names, strict=True):
            if name not in part["scores"]:
                axes.set(xticks=[], yticks=[])  # and not off: the first of a row bears its name
                axes.spines[:].set_visible(False)
                axes.annotate("none", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=7, color="0.35")
                continue
            draw_ranks(axes, part["coords"], part["patch_size"], part["scores"][name], 0.6 * WIDTH)
    headings = ["Truth"] * (truth is not None) + [TITLES.get(name, name) for name in names]
    for axes, heading in zip(panels[0], headings, strict=True):
        axes.set_title(plain(textwrap.fill(heading, 20)), fontsize=7)
    figure.supxlabel(RANKS, fontsize=7)
    return {"explanation-maps": figure}


def draw_ranks(axes: Axes, coords: np.ndarray, side: float, scores: np.ndarray, width: float) -> None:
    """Patches coloured by the rank of their score ``[N]``; the other arguments are those of ``draw_patches``."""
    rank = scores.argsort().argsort() / max(len(scores) - 1, 1)
    draw_patches(axes, coords, side, mpl.colormaps["viridis"](rank), rank, width)


def _slide(results: Results, trial: str) -> str:
    """The slide whose maps are drawn."""
    if results.slides:
        return results.slides[0]
    with h5py.File(results.run.checked(trial, STORE)) as file:
        sizes = sorted(
            (int(group.attrs["label"]) > 0, len(group["coords"]) if "coords" in group else 0, group.attrs["slide_id"])
            for group in file.values()
        )
    positive = [entry for entry in sizes if entry[0]] or sizes
    return str(positive[len(positive) // 2][2])


def _read(results: Results, trial: str, slide: str) -> dict[str, Any] | None:
    """Coordinates, patch size, labels and scores of a slide in a trial; None where they are not there."""
    with h5py.File(results.run.checked(trial, STORE)) as file:
        group = file.get(quote(slide, safe=""))
        if group is None or "coords" not in group or "scores" not in group:
            return None
        found: dict[str, Any] = {name: group[name][:] for name in ("coords", "instance_labels") if name in group}
        found["scores"] = {name: values[:] for name, values in group["scores"].items()}
        return found | {"patch_size": float(group.attrs["patch_size"])}
