"""What was predicted against what is true, of numbers and of classes in an order."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_zoo.report.figures.look import below, colours_of, grid_shape, plain, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results


@register_figure(
    "agreement",
    task=True,
    place=50,
    page=20,
    caption="Above: predictions against the truth, a point a test slide; on the dashed line both agree. Below: their "
    "difference against their mean (Bland & Altman 1986), with the mean difference and the limits that hold 95 % of "
    "the differences if they are normal.",
)
def draw_agreement(results: Results) -> dict[str, Figure]:
    """``agreement``: scatter and Bland-Altman plot of each model, all test slides of all folds."""
    shown, colours = _tested(results), colours_of(results)
    if not shown:
        return {}
    figure = Figure(figsize=(max(2.1 * len(shown), 3.6), 4.4), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    unit = str(results.task.settings().get("unit", ""))
    for (upper, lower), (label, table) in zip(panels.T, shown.items(), strict=True):
        true, said = table["target"].to_numpy(dtype=float), table["predicted"].to_numpy(dtype=float)
        ends = [min(true.min(), said.min()), max(true.max(), said.max())]
        upper.plot(ends, ends, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        upper.scatter(true, said, s=8, color=colours[label], alpha=0.6, linewidths=0)
        upper.set(title=wrapped(label, 24), xlabel=f"true {unit}".rstrip())
        apart = said - true
        mean, sd = apart.mean(), apart.std(ddof=1) if len(apart) > 1 else np.nan
        lower.scatter((true + said) / 2, apart, s=8, color=colours[label], alpha=0.6, linewidths=0)
        lower.axhline(mean, color="0.2", linewidth=1)
        for sign in (-1, 1):
            lower.axhline(mean + sign * 1.96 * sd, color="0.5", linewidth=0.8, linestyle="--")
        lower.set(xlabel="mean of both")
    panels[0, 0].set_ylabel("predicted")
    panels[1, 0].set_ylabel("predicted - true")
    below(figure, [], "Solid: mean difference; dashed below: it ± 1.96 standard deviations.", 1)
    figure.suptitle(title(results, "Predicted and true", int(14 * figure.get_figwidth())))
    return {"agreement": figure}


@register_figure(
    "confusion",
    task=True,
    place=50,
    page=20,
    caption="How many test slides of each class (rows) were said to be of each class (columns), all folds together; "
    "colour: share of the row.",
)
def draw_confusion(results: Results) -> dict[str, Figure]:
    """``confusion``: the confusion matrix of each model."""
    shown = _tested(results)
    if not shown:
        return {}
    classes = results.config.dataset.classes or [str(k) for k in range(results.task.width + 1)]
    rows, columns = grid_shape(len(shown), 3)
    figure = Figure(figsize=(max(2.4 * columns, 3.6), 2.4 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, (label, table) in zip(panels, shown.items(), strict=False):
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(counts, (table["label"].astype(int), table["predicted"].astype(float).astype(int)), 1)
        axes.imshow(counts / counts.sum(1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(counts):
            dark = count > 0.6 * max(1, counts[i].sum())
            axes.text(j, i, str(count), ha="center", va="center", color="white" if dark else "0.15", fontsize=7)
        names = [plain(name if len(name) < 12 else f"{name[:10]}.") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
        axes.set(title=wrapped(label, 24))
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("true")
    below(figure, [], "Rows: true class; columns: predicted class.", 1)
    figure.suptitle(title(results, "Confusion", int(14 * figure.get_figwidth())))
    return {"confusion": figure}


def _tested(results: Results) -> dict[str, pd.DataFrame]:
    """The test rows of every model, all its trials together."""
    return {
        label: pd.concat([results.test_predictions(trial) for trial in trials])
        for label, trials in results.finished.items()
        if trials
    }
