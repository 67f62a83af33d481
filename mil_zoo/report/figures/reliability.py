"""The reliability diagram: what was predicted against what came true."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mil_zoo.report.figures.look import below, colours_of, grid_shape, plain, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.figures.roc_pr import tested
from mil_zoo.report.load import Results
from mil_zoo.stats import calibration

BINS = 10


@register_figure(
    "calibration",
    task=True,
    place=70,
    page=30,
    caption="What the models say against what came true: on the dashed line, of the slides that are said to be of a "
    "class with 80 % four in five are of it. Brier score: mean squared error of the probabilities, smaller is better; "
    "ECE: mean distance from the dashed line, weighted by slides.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``calibration``: what was predicted of the test slides against what came true, and how often."""
    sets, colours, classes = tested(results), colours_of(results), results.config.dataset.classes
    if not sets:
        return {}
    rows, columns = grid_shape(len(sets), 4)
    lines = max(wrapped(label, 24).count("\n") for label in sets)
    figure = Figure(figsize=(max(1.8 * columns, 3.6), (2.4 + 0.14 * lines) * rows + 0.9), layout="constrained")
    blocks = figure.subfigures(rows, columns, squeeze=False).ravel()
    for i, (block, (label, parts)) in enumerate(zip(blocks, sets.items(), strict=False)):
        truth = np.concatenate([part.labels for part in parts for _ in part.probabilities])
        result = calibration(truth, np.concatenate([seed for part in parts for seed in part.probabilities]), BINS)
        upper, lower = block.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        upper.plot(result.predicted, result.observed, color=colours[label], marker="o", markersize=3.5)
        lower.bar(result.middles, result.counts, width=1 / BINS, linewidth=0, color=colours[label])
        upper.set(
            title=f"{wrapped(label, 24)}\nBrier {result.brier:.3f}, ECE {result.ece:.3f}",
            xlim=(-0.05, 1.05),
            ylim=(-0.05, 1.05),
        )
        lower.set_ylim(0, None)
        if i % columns == 0:
            upper.set_ylabel("came true")
            lower.set_ylabel("slides")
    what = plain(f"probability of {classes[1]}") if len(classes) == 2 else "probability of the predicted class"
    note = (
        f"x: {what}; all test predictions together, in ten bins, a point at the mean probability of its bin; bars: "
        "slides of each bin. Dashed: calibrated. ECE: expected calibration error."
    )
    below(figure, [], note, 1)
    figure.suptitle(title(results, "Calibration", int(14 * figure.get_figwidth())))
    return {"calibration": figure}
