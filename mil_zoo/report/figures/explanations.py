"""What removing instances does to the prediction, by the explainer that ranked them."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_zoo.report.figures.look import WIDTH, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.tables.explanations_table import TITLES, explained


@register_figure(
    "explanations",
    place=95,
    page=85,
    caption="How much of the prediction is lost as instances are removed: the most relevant first (solid) or the least "
    "relevant first (dashed), mean over test slides. The area between is how far an explainer can be trusted.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``explanations``: a row an aggregator, a panel an explainer; {} where ``--explain`` was not given."""
    rows = explained(results)
    if rows.empty:
        return {}
    labels, explainers = rows["aggregator"].unique(), rows["explainer"].unique()
    figure = Figure(figsize=(WIDTH, 0.9 + 1.15 * len(labels)), layout="constrained")
    panels = figure.subplots(len(labels), len(explainers), sharex=True, sharey=True, squeeze=False)
    curves = rows[rows["name"].str.startswith("flip_")]
    means = curves.groupby(["aggregator", "explainer", "name"])["value"].mean()
    for i, label in enumerate(labels):
        for j, explainer in enumerate(explainers):
            axes = panels[i, j]
            axes.axhline(0, color="0.8", linewidth=0.6)
            if (label, explainer) in means.index.droplevel("name"):
                for kind, line in (("most", "-"), ("least", "--")):
                    shares, values = _curve(means[label, explainer], kind)
                    axes.plot(100 * shares, values, line, color="C0" if kind == "most" else "0.4", linewidth=1)
            else:
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color="0.5", fontsize=7)
            axes.tick_params(labelsize=6)
            if i == 0:
                axes.set_title(textwrap.fill(TITLES.get(explainer, explainer), 20), fontsize=7)
        panels[i, 0].set_ylabel(wrapped(label, 14), fontsize=7)
    figure.supxlabel(
        "share of instances removed (%): solid, the most relevant first; dashed, the least relevant first", fontsize=7
    )
    figure.supylabel("prediction lost", fontsize=7)
    figure.suptitle(title(results, "Explanations by patch flipping"))
    return {"explanations": figure}


def _curve(means: pd.Series, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares removed, from 0, and what is lost."""
    prefix = f"flip_{kind}_"
    names = [str(name) for name in means.index if str(name).startswith(prefix)]
    points = sorted((float(name.removeprefix(prefix)), float(means[name])) for name in names)
    shares, values = np.array([(0.0, 0.0), *points]).T
    return shares, values
