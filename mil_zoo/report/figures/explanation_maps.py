"""Maps of all explainers beside each other, on one slide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import h5py
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from scipy.stats import rankdata

from mil_zoo.bench.results import Trial
from mil_zoo.report.figures.attention_maps import TRUTH, draw_patches
from mil_zoo.report.figures.look import WIDTH, plain, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.explanations_table import STORE, TITLES, in_order
from mil_zoo.tasks import Classification

_BAR = 0.6  # inches that the colour bar takes


@register_figure(
    "explanation_maps",
    place=96,
    page=86,
    caption="What every explainer says of one test slide. Colour is the rank of an instance's score within the slide, "
    "so that explainers of different units can be compared: dark is least, yellow most relevant for the prediction.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``explanation-maps``: a row an aggregator, a panel an explainer, the truth first where it is known.

    The slide is the first of ``results.slides``; by default of the first trial's positive ones, of those whose class as
    many aggregators predict as that of any, the one of median size. {} without explanations or coordinates.
    """
    first = {
        label: next((trial for trial in trials if STORE in trial.files), None)
        for label, trials in results.finished.items()
    }
    trials = {label: trial for label, trial in first.items() if trial is not None}
    if not trials:
        return {}
    slide = results.slides[0] if results.slides else _slide(results, list(trials.values()))
    maps = {label: found for label, trial in trials.items() if (found := _read(results, trial, slide)) is not None}
    if not maps:
        return {}
    names = in_order([name for part in maps.values() for name in part["scores"]])
    truth = next(iter(maps.values())).get("instance_labels")
    columns = len(names) + (truth is not None)
    figure = Figure(figsize=(WIDTH, 0.8 + len(maps) * _height(maps, columns)), layout="constrained")
    figure.suptitle(title(results, f"Explanations of slide {slide}"))
    panels = figure.subplots(len(maps), columns, sharex=True, sharey=True, squeeze=False)
    for row, (label, part) in zip(panels, maps.items(), strict=True):
        said = [wrapped(label, 16), *[plain(textwrap.fill(part["predicted"], 18))] * bool(part["predicted"])]
        row[0].set_ylabel("\n".join(said), fontsize=6)
        shown = list(row)
        if truth is not None:
            positive = (truth > 0).astype(int)
            draw_patches(shown.pop(0), part["coords"], part["patch_size"], TRUTH[positive], positive, WIDTH / columns)
        for axes, name in zip(shown, names, strict=True):
            if name in part["scores"]:
                draw_ranks(axes, part["coords"], part["patch_size"], part["scores"][name], WIDTH / columns)
            else:
                axes.set(xticks=[], yticks=[], aspect="equal")  # and not off: the first of a row bears its name
                axes.spines[:].set_visible(False)
                axes.annotate(
                    "none", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=7, color="0.35"
                )
    panels[0, 0].yaxis.set_inverted(True)  # each map has turned the axis that all share: image coordinates, y down
    headings = ["Truth: orange is positive"] * (truth is not None) + [TITLES.get(name, name) for name in names]
    for axes, heading in zip(panels[0], headings, strict=True):
        axes.set_title(plain(textwrap.fill(heading, 20)), fontsize=7)
    rank_bar(figure, list(panels.ravel()))
    note = f"Scores speak for a higher {results.task.explains}."
    if any(part["predicted"] for part in maps.values()):
        note = "Below the name of an aggregator: the class that it predicts, for which the scores speak."
    figure.supxlabel(note, fontsize=7)
    return {"explanation-maps": figure}


def _height(maps: dict[str, dict[str, Any]], columns: int) -> float:
    """Of a row, inches: as the slide is shaped, and as the names of the aggregators need."""
    part = next(iter(maps.values()))
    side = 0.0 if np.isnan(part["patch_size"]) else part["patch_size"]
    width, height = np.ptp(part["coords"], axis=0) + side
    lines = max(len(textwrap.wrap(found["predicted"], 18)) for found in maps.values())
    panel = (WIDTH - _BAR - 0.3 - 0.1 * lines) / columns
    return max(panel * float(np.clip(height / max(width, 1), 0.4, 1.8)), 0.9) + 0.08


def draw_ranks(axes: Axes, coords: np.ndarray, side: float, scores: np.ndarray, panel: float) -> None:
    """Patches coloured by the rank of their score ``[N]``, equal ones alike; others as in ``draw_patches``."""
    rank = (rankdata(scores) - 1) / max(len(scores) - 1, 1)
    draw_patches(axes, coords, side, mpl.colormaps["viridis"](rank), rank, panel)


def rank_bar(figure: Figure, panels: list[Axes]) -> None:
    """The colours of :func:`draw_ranks`, beside the ``panels``."""
    shrink = min(1.0, 4 / figure.get_figheight())  # beside a row an aggregator of a whole zoo
    look: dict[str, Any] = {"pad": 0.01, "aspect": 30, "shrink": shrink, "panchor": False}
    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=panels, ticks=[0, 0.5, 1], **look)
    bar.set_ticklabels(["least", "median", "most"], fontsize=6)
    bar.set_label("rank of a patch by relevance for the prediction", fontsize=6)


def _slide(results: Results, trials: Sequence[Trial]) -> str:
    """The slide whose maps are drawn, see :func:`draw`."""
    with h5py.File(results.run.checked(trials[0].trial, STORE)) as file:
        sizes = {str(group.attrs["slide_id"]): (_label(group), len(group.get("coords", ()))) for group in file.values()}
    names = [name for name, (label, _) in sizes.items() if label > 0] or list(sizes)
    right = {name: sum(_predicted(results, trial).get(name) == sizes[name][0] for trial in trials) for name in names}
    best = [name for name in names if right[name] == max(right.values())]
    return sorted(best, key=lambda name: (sizes[name][1], name))[len(best) // 2]


def _label(group: h5py.Group) -> int:
    """The class of a slide; of a task without classes whether it has a positive instance."""
    label = int(group.attrs["label"])
    return int((group["instance_labels"][:] > 0).any()) if label < 0 and "instance_labels" in group else label


def _predicted(results: Results, trial: Trial) -> dict[str, int]:
    """The predicted class of every test slide; {} of a task without classes."""
    task = results.task_of(trial)
    if not isinstance(task, Classification):
        return {}
    rows = results.test_predictions(trial)
    classes = rows[list(task.prediction_columns)].to_numpy(dtype=float).argmax(1)
    return dict(zip(rows["slide_id"], classes.tolist(), strict=True))


def _read(results: Results, trial: Trial, slide: str) -> dict[str, Any] | None:
    """Coordinates, patch size, labels, scores, the predicted class ("": none); None where they are not there."""
    with h5py.File(results.run.checked(trial.trial, STORE)) as file:
        group = file.get(quote(slide, safe=""))
        if group is None or "coords" not in group or "scores" not in group:
            return None
        found: dict[str, Any] = {name: group[name][:] for name in ("coords", "instance_labels") if name in group}
        found["scores"] = {name: values[:] for name, values in group["scores"].items()}
        found["patch_size"] = float(group.attrs["patch_size"])
    predicted, classes = _predicted(results, trial).get(slide), results.config.dataset.classes
    return found | {"predicted": "" if predicted is None else classes[predicted] if classes else f"class {predicted}"}
