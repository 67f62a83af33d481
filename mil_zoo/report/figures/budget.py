"""Scores against the number of configurations that were tried."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mil_zoo.metrics import inside
from mil_zoo.report.figures.look import WIDTH, colours_of, legend, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.tuning_table import budget_table


@register_figure(
    "budget",
    place=85,
    page=62,
    caption="What fewer of the configurations would have given: the expected best validation score, and the expected "
    "test score of the configuration that would have been chosen.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``budget``: expected validation and test score against the number of configurations, of a tuned run."""
    table = budget_table(results)
    if table.empty:
        return {}
    score, colours = inside(results.selecting.title), colours_of(results)
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part, name in zip(panels, ("validation", "test"), ("best validation", "test"), strict=True):
        for label, rows in table.groupby("aggregator", sort=False):
            axes.plot(rows["configurations"], rows[part], color=colours[str(label)])
        axes.set(xlabel="configurations tried", title=f"{name} {score}, expected")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = list(dict.fromkeys(table["aggregator"]))
    trials = int(table["trials"].max())
    note = f"Exact expectation over draws of these configurations without replacement; mean over {trials} trials."
    legend(figure, {name: colours[name] for name in names}, note)
    figure.suptitle(title(results, f"{score} against the tuning budget"))
    return {"budget": figure}
