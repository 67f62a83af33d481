"""How scores rise with the number of labelled slides."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mil_zoo.metrics import inside
from mil_zoo.report.figures.look import WIDTH, palette, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.label_budget import label_budget_table
from mil_zoo.report.tables.sentences import bounds


@register_figure(
    "learning_curve",
    place=110,
    page=65,
    caption="The test score against the number of labelled training slides.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``learning_curve``: the test score against the number of labelled slides, where a grid varies it."""
    table = label_budget_table(results)
    if table.empty:
        return {}
    score = inside(results.lead.title)
    names = list(dict.fromkeys(table["aggregator"]))
    colours = palette(names)
    figure = Figure(figsize=(0.7 * WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        part = table[table["aggregator"] == name]
        # Side by side, so that intervals at one number of labels do not cover each other.
        x = part["slides"] * 1.03 ** (i - (len(names) - 1) / 2)
        axes.plot(x, part["mean"], color=colours[name], marker="o", markersize=4, label=name)
        axes.vlines(
            x,
            part["low"].clip(*results.lead.bounds),
            part["high"].clip(*results.lead.bounds),
            color=colours[name],
            linewidth=1.2,
            alpha=0.6,
        )
    chance = results.lead.name == "auc"
    if chance:
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    ticks = sorted({round(n) for n in table["slides"]})
    axes.set(xscale="log", xlabel="labelled training slides", ylabel=f"test {score}")
    axes.set_ylim(max(0, min(0.4, table[["low", "mean"]].min().min())) - 0.02, 1.02)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick}" for tick in ticks])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title(results, f"Test {score} against labels"))
    note = f"Mean and 95 % interval over splits (corrected resampled t, cut to {bounds(results)})"
    note += "; dashed: chance." if chance else "."
    figure.supxlabel(textwrap.fill(note, 90), fontsize=7)
    return {"learning_curve": figure}
