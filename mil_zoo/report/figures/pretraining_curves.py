"""The curves of a pretraining, drawn from its files alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mil_zoo.errors import InputError
from mil_zoo.files import writing
from mil_zoo.report.figures.look import WIDTH, drawing, level, plain, title
from mil_zoo.report.figures.registry import register_figure, save
from mil_zoo.report.load import Results


@register_figure(
    "pretraining",
    place=100,
    page=68,
    caption="The pretraining without labels: its loss, whether the embeddings collapse (a spread of 0), and how well "
    "neighbours agree in their class.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``pretraining``: the mean curves over the trials that pretrained without labels."""
    # Trials that differ in the number of labels alone share their pretraining; the mean does not change by them.
    epochs = [results.epochs(trial) for trials in results.finished.values() for trial in trials]
    curves = [table for table in epochs if "embedding_spread" in table]
    if not curves:
        return {}
    numbers = pd.concat(curves).groupby("epoch").mean(numeric_only=True)
    return {"pretraining": _figure(numbers, title(results, "Pretraining without labels"))}


def draw_pretraining(folder: Path, what: str) -> Path:
    """Draws ``curve.png`` from ``curve.csv``: loss, spread against collapse, and kNN accuracy where labels were known.

    Args:
        folder: of a pretraining.
        what: was pretrained on what, for the title.

    Raises:
        InputError: there is no ``curve.csv``.
    """
    try:
        curve = pd.read_csv(folder / "curve.csv", index_col="epoch")
    except FileNotFoundError:
        raise InputError(f"{folder} holds no curve.csv; pass the --out folder of a pretraining") from None
    with drawing(), writing(folder):
        save(_figure(curve, plain(what)), folder / "curve.png")
    return folder / "curve.png"


def _figure(curve: pd.DataFrame, what: str) -> Figure:
    panels = 2 + ("knn_accuracy" in curve)
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    loss, spread, *rest = figure.subplots(1, panels)
    marker = "o" if len(curve) == 1 else None  # a single epoch has no line
    loss.plot(curve["loss"], color="C0", marker=marker)
    if "chance" in curve:
        level(loss, float(curve["chance"].iloc[-1]), "chance")
    loss.set(title="NT-Xent loss", ylim=(0, None))  # up to the level, too
    spread.plot(curve["spread"], color="C0", marker=marker, label="projections")
    looked = curve["embedding_spread"].dropna()
    spread.plot(looked, color="C1", marker=".", markersize=4, label="slide embeddings")
    spread.set(title="spread (0 = collapsed, 1 = isotropic)", ylim=(0, None))
    spread.legend(frameon=False, loc="best")
    for axes in rest:
        axes.plot(curve["knn_accuracy"].dropna(), color="C1", marker=".", markersize=4)
        axes.set(title="kNN accuracy of slide embeddings", ylim=(0, 1))
        if "majority" in curve and curve["majority"].notna().any():
            level(axes, float(curve["majority"].dropna().iloc[-1]), "majority class")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, spread, *rest):
        axes.set(xlabel="epoch", xlim=(0, 1.02 * curve.index.max()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(what)
    return figure
