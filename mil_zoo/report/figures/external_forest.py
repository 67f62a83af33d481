"""Forest plot of a run that is tested on another dataset: each model's score inside and outside."""

from __future__ import annotations

from matplotlib.figure import Figure

from mil_zoo.report.figures.look import WIDTH, colours_of, legend, plain, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.external import internal_and_external

_PARTS = ("internal", "external")


@register_figure(
    "external",
    place=66,
    page=46,
    caption="The score on the validation patients of the dataset that was trained on (open) and on the other dataset "
    "(filled), each with its 95 % interval by draws of its patients. Checkpoints were chosen by the former.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``external``: a row a model, of the metric that ranks (AUC; of survival the concordance)."""
    scores = internal_and_external(results)
    if not scores:
        return {}
    colours = colours_of(results)
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for row, (label, both) in enumerate(scores.items()):
        for offset, part, drawn in zip((-0.13, 0.13), _PARTS, both, strict=True):
            axes.hlines(row + offset, drawn.low, drawn.high, color=colours[label], linewidth=1.2)
            face = "white" if part == "internal" else colours[label]
            axes.plot(drawn.value, row + offset, "s", markersize=4, color=colours[label], markerfacecolor=face)
    axes.set_yticks(range(len(scores)), [plain(label) for label in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel(results.lead.title)
    axes.grid(axis="x", color="0.92")
    figure.suptitle(title(results, "Internal and external"))
    legend(
        figure,
        {},
        "Open: validation patients of the dataset trained on; filled: the other dataset. Line: 95 % interval.",
    )
    return {"external": figure}
