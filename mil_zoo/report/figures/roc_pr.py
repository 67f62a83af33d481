"""ROC and precision-recall curves of the test slides."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import precision_recall_curve, roc_curve

from mil_zoo.metrics.classification import ranks_of_class, roc_area
from mil_zoo.metrics.multilabel import average_precision
from mil_zoo.report.figures.look import FEW, WIDTH, below, colours_of, plain, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.scores import score_table
from mil_zoo.report.test_parts import mean_sizes
from mil_zoo.stats import Curve, TestSet, mean_curve

_AXES = {
    "roc": ("false-positive rate", "true-positive rate"),
    "pr": ("recall", "precision"),
}
_AREA = {"roc": "AUC", "pr": "AP"}
_BANDED = 4  # bands of more aggregators than these hide each other


@register_figure(
    "roc",
    task=True,
    place=50,
    page=20,
    caption="How many positive slides are found (true-positive rate) at each share of negative slides that are called "
    "positive. AUC is the area below the curve, of several classes the mean of theirs, as in the table: 0.5 is chance, "
    "1 a perfect order of the slides.",
)
def draw_roc(results: Results) -> dict[str, Figure]:
    """``roc``: the mean ROC curve of each model; a panel a class, one for two classes."""
    return _figures(results, "roc", "ROC")


@register_figure(
    "pr",
    task=True,
    place=60,
    page=25,
    caption="Which share of the slides that are called positive is so (precision) at each share of positive slides "
    "that are found (recall). AP, the average precision, is the mean precision over recall; chance is the share of "
    "positive slides, the dashed line.",
)
def draw_pr(results: Results) -> dict[str, Figure]:
    """``pr``: the mean precision-recall curve likewise."""
    return _figures(results, "pr", "Precision-recall")


def tested(results: Results) -> dict[str, list[TestSet]]:
    """The test sets of every ``aggregator[@grid]`` that has any, one a split."""
    sets = {label: list(results.test_sets(label).values()) for label, trials in results.finished.items() if trials}
    return {label: parts for label, parts in sets.items() if parts}


def _figures(results: Results, kind: str, what: str) -> dict[str, Figure]:
    sets = tested(results)
    if not sets:
        return {}
    figure = _curves(kind, sets, results)
    figure.suptitle(title(results, what, int(14 * figure.get_figwidth())))
    return {kind: figure}


def _curves(kind: str, sets: dict[str, list[TestSet]], results: Results) -> Figure:
    colours, classes = colours_of(results), results.config.dataset.classes
    shown = [1] if len(classes) == 2 else list(range(len(classes)))
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    panel = 3.6 if len(shown) == 1 else WIDTH / columns
    figure = Figure(figsize=(max(panel * columns, 4.6), panel * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    left_out, banded = set(), len(sets) <= _BANDED
    for axes, of_class in zip(panels, shown, strict=False):
        for label, parts in sets.items():
            usable = [part for part in parts if len(np.unique(part.labels == of_class)) == 2]
            if len(usable) < len(parts):
                left_out.add(label)
            if not usable:
                continue
            single = 1 < len(usable) < FEW
            curve = mean_curve(usable, kind, *mean_sizes(results.finished[label]), of_class)  # type: ignore[arg-type]
            _draw_curve(axes, curve, kind, colours[label], banded and not single)
            if banded and single:
                for part in usable:
                    _draw_fold(axes, part, kind, of_class, colours[label])
        _dress(axes, kind, classes[of_class])
        if kind == "pr":
            share = np.mean([np.mean(part.labels == of_class) for part in next(iter(sets.values()))])
            axes.axhline(share, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        if len(shown) > 1 and banded:
            _say_areas(axes, kind, {colours[label]: _areas(kind, parts, of_class) for label, parts in sets.items()})
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    lines = [
        Line2D([], [], color=colours[label], label=plain(f"{label} ({_score(results, kind, label, parts)})"))
        for label, parts in sets.items()
    ]
    below(figure, lines, _note(kind, sets, banded, bool(left_out)), min(len(lines), 4))
    return figure


def _score(results: Results, kind: str, label: str, parts: list[TestSet]) -> str:
    """The number in the legend: the table's AUC, or the average precision; of several classes their mean."""
    several = parts[0].probabilities.shape[2] > 2
    what = "mean " * several + _AREA[kind]
    if kind == "roc":
        values = score_table(results).set_index("aggregator").get("auc_mean")
        return f"{what} -" if values is None or np.isnan(values[label]) else f"{what} {values[label]:.3f}"
    of_classes = range(parts[0].probabilities.shape[2]) if several else [1]
    found = [area for of_class in of_classes for area in _areas(kind, parts, of_class)]
    return f"{what} {np.mean(found):.3f}" if found else f"{what} -"


def _areas(kind: str, parts: list[TestSet], of_class: int) -> list[float]:
    """AUC or average precision of a class, of every seed of the test sets that hold slides of both sides."""
    return [
        float(
            roc_area(part.labels == of_class, ranks_of_class(seed, of_class), np.ones(len(seed)))
            if kind == "roc"
            else average_precision(part.labels == of_class, seed[:, of_class], np.ones(len(seed)))
        )
        for part in parts
        if len(np.unique(part.labels == of_class)) == 2
        for seed in part.probabilities
    ]


def _say_areas(axes: Axes, kind: str, areas: dict[Any, list[float]]) -> None:
    """The mean area of a panel's class by the colour of the aggregator, in the corner that good curves leave free."""
    lines = [Line2D([], [], color=colour) for colour in areas]
    said = [f"{np.mean(found):.3f}" if found else "-" for found in areas.values()]
    look: dict[str, Any] = {"fontsize": 6, "title_fontsize": 6, "handlelength": 1, "edgecolor": "none"}
    look["loc"] = "lower right" if kind == "roc" else "lower left"
    axes.legend(lines, said, title=_AREA[kind], **look)


def _note(kind: str, sets: dict[str, list[TestSet]], banded: bool, left_out: bool) -> str:
    splits = max(map(len, sets.values()))
    note = f"Mean over {splits} test folds. " if splits > 1 else "One split. "
    if banded and 1 < splits < FEW:
        note += "Thin: each fold. "
    elif banded:
        how = "corrected resampled t interval, cut to [0, 1]" if splits > 1 else "Jeffreys, over test patients"
        note += f"Band: 95 % at each point ({how}). "
        note += "No band where all folds agree. " * (splits > 1)
    if left_out:
        note += "Folds without a slide of either side are left out. "
    several = next(iter(sets.values()))[0].probabilities.shape[2] > 2
    if kind == "pr":
        note += "AP: average precision. Dashed: chance. "
        return note + ("Mean AP: of the classes" + " in the panels" * banded + ".") * several
    if several:
        return note + "Mean AUC: of the areas of the classes" + ", in the panels" * banded + ", as in the table."
    return note + "AUC: the area below the curve, as in the table."


def _draw_fold(axes: Axes, part: TestSet, kind: str, of_class: int, colour: Any) -> None:
    for seed in part.probabilities:
        truth, scores = part.labels == of_class, seed[:, of_class]
        if kind == "roc":
            x, y, _ = roc_curve(truth, scores)
        else:
            y, x, _ = precision_recall_curve(truth, scores)
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)


def _draw_curve(axes: Axes, curve: Curve, kind: str, colour: Any, banded: bool) -> None:
    if banded:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    x, y = (np.append(0, curve.x), np.append(0, curve.y)) if kind == "roc" else (curve.x, curve.y)
    axes.plot(x, y, color=colour)


def _dress(axes: Axes, kind: str, name: str) -> None:
    xlabel, ylabel = _AXES[kind]
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=plain(name))
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
