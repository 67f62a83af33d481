"""Scores against cost: training with all its configurations, and prediction."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from mil_zoo.metrics import inside
from mil_zoo.report.figures.look import WIDTH, colours_of, legend, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.cost_table import cost_table

_COSTS = {"training_seconds": "training of a trial (s)", "inference_ms": "prediction of a slide (ms)"}


@register_figure(
    "pareto",
    place=120,
    page=68,
    caption="The test score against what it cost, as measured where the trials ran. Ringed and joined: no aggregator "
    "is both cheaper and better.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``pareto``: the lead metric against seconds of training (all configurations) and milliseconds of prediction."""
    table, lead, colours = cost_table(results), results.lead, colours_of(results)
    scores = {label: results.estimate(label, lead.name) for label in results.finished}
    means = [scores[label].mean if scores[label].n else float("nan") for label in table["aggregator"]]
    table = table.assign(score=means)
    known = {name: table.dropna(subset=[name, "score"]) for name in _COSTS}
    known = {name: part for name, part in known.items() if len(part) > 1}
    if not known or lead.higher_is_better is None:
        return {}
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for axes, (name, part) in zip(panels, known.items(), strict=True):
        best = frontier(part, name, bool(lead.higher_is_better))
        axes.plot(best[name], best["score"], color="0.6", linewidth=0.8, drawstyle="steps-post", zorder=1)
        axes.scatter(best[name], best["score"], s=60, facecolors="none", edgecolors="0.3", linewidths=0.8, zorder=3)
        axes.scatter(part[name], part["score"], s=22, c=[colours[label] for label in part["aggregator"]], zorder=2)
        axes.set(xscale="log", xlabel=_COSTS[name])
        if part[name].max() < 10 * part[name].min():  # within a decade: 3 and 4, not 3 x 10^0
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(ScalarFormatter())
    panels[0].set_ylabel(f"test {inside(lead.title)}")
    tuning = results.config.tuning
    note = "Mean over test folds, whether or not they differ (see the comparisons); medians of what was measured."
    if tuning is not None:
        note += f" Training is of all {tuning.configurations} configurations of a trial."
    timed = set(known.get("inference_ms", table)["aggregator"])
    if unmeasured := [label for label in table["aggregator"] if label not in timed]:
        note += f" Without the time of a prediction: {', '.join(unmeasured)}."
    legend(figure, {label: colours[label] for label in table["aggregator"]}, note, points=True)
    figure.suptitle(title(results, f"{inside(lead.title)} against cost"))
    return {"pareto": figure}


def frontier(table: pd.DataFrame, cost: str, higher_is_better: bool) -> pd.DataFrame:
    """The rows that none other beats in ``score`` at the same ``cost`` or less, the cheapest first."""
    table = table.sort_values([cost, "score"], ascending=[True, not higher_is_better])
    best = table["score"].cummax() if higher_is_better else table["score"].cummin()
    kept: pd.DataFrame = table[(table["score"] == best) & ~best.duplicated()]
    return kept
