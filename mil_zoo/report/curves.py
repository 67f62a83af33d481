"""ROC, precision-recall and reliability figures of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mil_zoo.report.results import finished, test_sets, trials_by_aggregator
from mil_zoo.report.style import WIDTH, below
from mil_zoo.stats import TestSet, calibration, mean_curve

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

_Sets = dict[str, tuple[list[dict[str, Any]], list[TestSet]]]
_AXES = {
    "roc": ("false-positive rate", "true-positive rate"),
    "pr": ("recall", "precision"),
}
_BANDED = 4  # bands of more aggregators than these hide each other


def sets_by_aggregator(run: RunDirectory) -> _Sets:
    """Finished trials and test sets of every ``aggregator[@grid]`` that has any."""
    sets = {}
    for label, trials in trials_by_aggregator(run).items():
        ok = finished(trials)
        parts = list(test_sets(run, ok).values())
        if parts:
            sets[label] = ok, parts
    return sets


def curve_figure(kind: str, sets: _Sets, colours: dict[str, Any], classes: list[str]) -> Figure:
    """The mean ROC ("roc") or precision-recall ("pr") curve of each model; a panel a class, one for two classes."""
    shown = [1] if len(classes) == 2 else list(range(len(classes)))
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    panel = 3.6 if len(shown) == 1 else WIDTH / columns
    figure = Figure(figsize=(max(panel * columns, 4.6), panel * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    left_out = set()
    for axes, of_class in zip(panels, shown, strict=False):
        for label, (ok, parts) in sets.items():
            usable = [part for part in parts if len(np.unique(part.labels == of_class)) == 2]
            if len(usable) < len(parts):
                left_out.add(label)
            if usable:
                _draw_curve(axes, kind, label, ok, usable, of_class, colours[label], banded=len(sets) <= _BANDED)
        _dress(axes, kind, classes[of_class])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    splits = max(len(parts) for _, parts in sets.values())
    note = f"Mean over {splits} test folds. " if splits > 1 else "One split. "
    if len(sets) <= _BANDED:
        how = "corrected resampled t interval, cut to [0, 1]" if splits > 1 else "bootstrap over test patients"
        note += f"Band: 95 % at each point ({how}). "
    if left_out:
        note += "Folds without a slide of either side are left out. "
    lines = [Line2D([], [], color=colours[label], label=label) for label in sets]
    below(figure, lines, note, min(len(lines), 4))
    return figure


def calibration_figure(sets: _Sets, colours: dict[str, Any], classes: list[str]) -> Figure:
    """Reliability of all test predictions of each model: what was predicted against what came true, and how often."""
    columns = min(len(sets), 4)
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(max(1.8 * columns, 3.6), 2.4 * rows + 0.9), layout="constrained")
    blocks = figure.subfigures(rows, columns, squeeze=False).ravel()
    for i, (block, (label, (_, parts))) in enumerate(zip(blocks, sets.items(), strict=False)):
        truth = np.concatenate([part.labels for part in parts for _ in part.probabilities])
        result = calibration(truth, np.concatenate([seed for part in parts for seed in part.probabilities]))
        upper, lower = block.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        upper.plot(result.predicted, result.observed, color=colours[label], marker="o", markersize=3.5)
        lower.bar(result.predicted, result.counts, width=0.06, color=colours[label])
        upper.set(
            title=f"{label}\nBrier {result.brier:.3f}, ECE {result.ece:.3f}", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05)
        )
        lower.set_ylim(0, None)
        if i % columns == 0:
            upper.set_ylabel("came true")
            lower.set_ylabel("slides")
    what = f"probability of {classes[1]}" if len(classes) == 2 else "probability of the predicted class"
    note = (
        f"x: {what}; all test predictions together, in ten bins, a point at the mean probability of its bin. Dashed: "
        "calibrated. ECE: expected calibration error."
    )
    below(figure, [], note, 1)
    return figure


def _draw_curve(
    axes: Axes,
    kind: Any,
    label: str,
    ok: list[dict[str, Any]],
    parts: list[TestSet],
    of_class: int,
    colour: Any,
    banded: bool,
) -> None:
    n_train, n_test = (float(np.mean([trial[name] for trial in ok])) for name in ("n_train", "n_test"))
    curve = mean_curve(parts, kind, n_train, n_test, of_class)
    if banded:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    x, y = (np.append(0, curve.x), np.append(0, curve.y)) if kind == "roc" else (curve.x, curve.y)
    axes.plot(x, y, color=colour, label=label)


def _dress(axes: Axes, kind: str, name: str) -> None:
    xlabel, ylabel = _AXES[kind]
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=name)
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
