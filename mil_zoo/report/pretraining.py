"""The curves of a pretraining, drawn from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mil_zoo.errors import InputError
from mil_zoo.report.results import finished, trials_by_aggregator
from mil_zoo.report.style import DPI, STYLE, WIDTH, save, title

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory


def draw_pretrainings(run: RunDirectory) -> list[Path]:
    """Draws ``figures/pretraining.png`` of a run: the mean curves over the trials that pretrained without labels.

    Returns:
        The files written; none where no trial did.
    """
    curves = []
    for trials in trials_by_aggregator(run).values():
        # Trials that differ in the number of labels alone share their pretraining; the mean does not change by them.
        epochs = [run.epochs(trial["trial"]) for trial in finished(trials)]
        curves += [table for table in epochs if "embedding_spread" in table]
    if not curves:
        return []
    numbers = pd.concat(curves).groupby("epoch").mean(numeric_only=True)
    with mpl.rc_context(STYLE):
        return [save(run, "pretraining", _figure(numbers, title(run, "Pretraining without labels")))]


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
    with mpl.rc_context(STYLE):
        path = folder / "curve.png"
        _figure(curve, what).savefig(path, dpi=DPI)
    return path


def _figure(curve: pd.DataFrame, what: str) -> Figure:
    panels = 2 + ("knn_accuracy" in curve)
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    loss, spread, *rest = figure.subplots(1, panels)
    marker = "o" if len(curve) == 1 else None  # a single epoch has no line
    loss.plot(curve["loss"], color="C0", marker=marker)
    loss.set(title="NT-Xent loss", ylim=(0, None))
    spread.plot(curve["spread"], color="C0", marker=marker, label="projections")
    looked = curve["embedding_spread"].dropna()
    spread.plot(looked, color="C1", marker=".", markersize=4, label="slide embeddings")
    spread.set(title="spread (0 = collapsed, 1 = isotropic)", ylim=(0, None))
    spread.legend(frameon=False, loc="best")
    for axes in rest:
        axes.plot(curve["knn_accuracy"].dropna(), color="C1", marker=".", markersize=4)
        axes.set(title="kNN accuracy of slide embeddings", ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, spread, *rest):
        axes.set(xlabel="epoch", xlim=(0, 1.02 * curve.index.max()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(what)
    return figure
