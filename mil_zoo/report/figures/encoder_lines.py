"""Aggregators against encoders: whether the best aggregator is the same on every set of features."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.figure import Figure

from mil_zoo.metrics import inside
from mil_zoo.report.figures.look import WIDTH, palette, plain, title
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.encoders import encoder_table
from mil_zoo.report.tables.scores import score_table
from mil_zoo.report.tables.sentences import bounds


@register_figure(
    "encoders",
    place=112,
    page=64,
    caption="The mean test score of each aggregator on each set of features. Lines that cross say that the better "
    "aggregator depends on the encoder.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``encoders``: a line an aggregator over the sets of features, where a run compares several."""
    if not results.config.dataset.several_encoders:
        return {}
    table = encoder_table(score_table(results), [results.lead])
    encoders = [str(name) for name in results.config.dataset.features]
    names = table["aggregator"].tolist()
    colours = palette(names)
    figure = Figure(figsize=(0.7 * WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(table.to_dict("records")):
        x = [place + 0.06 * (i - (len(names) - 1) / 2) for place in range(len(encoders))]
        means, spreads = (
            [float(row.get(f"{encoder}_{what}", np.nan)) for encoder in encoders] for what in ("mean", "sd")
        )
        name, ends = row["aggregator"], [np.subtract(means, spreads), np.add(means, spreads)]
        low, high = np.clip(ends, *results.lead.bounds)
        bars = [means - low, high - means]
        axes.errorbar(x, means, bars, color=colours[name], marker="o", markersize=4, label=plain(name))
    score = inside(results.lead.title)
    axes.set_xticks(range(len(encoders)), [plain(name) for name in encoders])
    axes.set(ylabel=f"test {score}", xlim=(-0.5, len(encoders) - 0.5))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title(results, f"Test {score} by encoder"))
    note = f"Mean and standard deviation over the trials of each pair, cut to {bounds(results)}."
    figure.supxlabel(textwrap.fill(note, 90), fontsize=7)
    return {"encoders": figure}
