"""Figures of a run: the attention-skew figure of the SRMIL paper (figure 3), skew, metrics and training curves."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mil_zoo.report.ablation import ablation_figure, ablation_table, axes_of
from mil_zoo.report.curves import calibration_figure, curve_figure, sets_by_aggregator
from mil_zoo.report.results import METRICS, finished, skew_of_test_slides, trials_by_aggregator
from mil_zoo.report.style import STYLE, WIDTH, below, palette, save, title
from mil_zoo.report.tables import comparison_table

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

POSITIVES = {
    "top1_positive": ("top-1", "-"),
    "top5_positive": ("top-5", "--"),
    "high_positive": ("attention ≥ 0.5", ":"),
}


@dataclass
class _Curves:
    """What the figures show of one aggregator.

    Attributes:
        epochs: the ``epochs.csv`` of every trial, with a column ``trial``.
        attention: sum and count over training slides, one row a trial, epoch and name (of ``high_count``: of slides
            that hold a highly attended instance).
        test: one row a test slide of a trial, one column a number; empty without attention.
    """

    epochs: pd.DataFrame
    attention: pd.DataFrame
    test: pd.DataFrame


def draw_figures(run: RunDirectory) -> list[Path]:
    """Draws every figure of a run that its results allow, into ``figures/`` of the run directory.

    ``figure3.png`` and ``figure3-<aggregator>.png`` (attention skew while training), ``skew.png`` (on the test
    slides), ``metrics.png``, ``training.png``, ``roc.png``, ``pr.png``, ``calibration.png``, and for each grid
    ``ablation-<aggregator>-<option>.png``; that of a mask ratio is ``figure5.png``. Models without attention are left
    out of the attention figures, and the figure says so. Without a finished trial nothing is drawn.

    Returns:
        The files written.
    """
    curves = {label: _read(run, finished(trials)) for label, trials in trials_by_aggregator(run).items()}
    attended = {label: part for label, part in curves.items() if len(part.test)}
    trained = {label: part for label, part in curves.items() if len(part.epochs)}
    colours = palette(list(curves))
    missing = [label for label in trained if label not in attended]
    note = f"Without attention, so not shown: {', '.join(missing)}." if missing else ""
    figures: dict[str, Callable[[], Figure]] = {}
    if attended:
        figures["figure3"] = lambda: _figure3(run, attended, colours, note)
        for label in attended:
            figures[f"figure3-{quote(label, safe='@=,')}"] = lambda label=label: _figure3(
                run, {label: attended[label]}, colours, ""
            )
        figures["skew"] = lambda: _skew(run, attended, colours, note)
    if trained:
        figures["metrics"] = lambda: _metrics(run, colours)
        figures["training"] = lambda: _training(run, trained, colours)
    sets, classes = sets_by_aggregator(run), run.config["dataset"]["classes"]
    if sets:
        figures["roc"] = lambda: _titled(run, "ROC", curve_figure("roc", sets, colours, classes))
        figures["pr"] = lambda: _titled(run, "Precision-recall", curve_figure("pr", sets, colours, classes))
        figures["calibration"] = lambda: _titled(run, "Calibration", calibration_figure(sets, colours, classes))
    for axis in axes_of(ablation_table(run)):
        name = "figure5" if axis.option == "mask_rate" else f"ablation-{quote(axis.model)}-{quote(axis.option)}"
        figures[name] = lambda axis=axis: _titled(
            run, f"{axis.model} against {axis.option.replace('_', ' ')}", ablation_figure(axis)
        )
    with mpl.rc_context(STYLE):
        return [save(run, name, draw()) for name, draw in figures.items()]


def _read(run: RunDirectory, trials: list[dict[str, Any]]) -> _Curves:
    epochs, attention, test = [pd.DataFrame()], [pd.DataFrame()], [pd.DataFrame()]
    for trial in trials:
        name = trial["trial"]
        epochs.append(run.epochs(name).assign(trial=name))
        skew = run.skew(name)
        train = skew[skew["split"] == "train"]
        train = train.assign(
            value=train["value"].where(train["name"] != "high_count", train["value"] > 0).astype(float)
        )
        sums = train.groupby(["epoch", "name"])["value"].agg(["sum", "count"]).reset_index()
        attention.append(sums.assign(trial=name))
        test.append(skew_of_test_slides(skew))
    return _Curves(*(pd.concat([part for part in parts if len(part)] or parts) for parts in (epochs, attention, test)))


def _figure3(run: RunDirectory, curves: dict[str, _Curves], colours: dict[str, Any], note: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    upper, lower = figure.add_gridspec(2, 1)
    accuracy, high = upper.subgridspec(1, 2).subplots()
    left, right = lower.subgridspec(1, 2)
    positives, counted = left.subgridspec(2, 1, height_ratios=(3, 1), hspace=0.05).subplots(sharex=True)
    maxima = figure.add_subplot(right)
    for label, part in curves.items():
        colour = colours[label]
        _band(accuracy, part.epochs.groupby("epoch")["train_accuracy"], colour)
        shares = part.attention[part.attention["name"] == "high_count"]
        _band(high, (shares["sum"] / shares["count"]).groupby(shares["epoch"]), colour)
        _positives(positives, counted, part.attention, colour)
        sns.ecdfplot(x=part.test["max_attention"], ax=maxima, color=colour, linewidth=1.4)
    _dress_figure3(accuracy, high, positives, counted, maxima)
    what = "Attention skew" + (f" of {next(iter(curves))}" if len(curves) == 1 else "")
    figure.suptitle(title(run, what))
    below = "(c) below: share of the positive training slides that hold an instance of attention ≥ 0.5. "
    _legend(figure, curves, colours, _band_note(curves, "(a), (b): ") + below * bool(positives.lines) + note)
    return figure


def _positives(positives: Axes, counted: Axes, rows: pd.DataFrame, colour: Any) -> None:
    """Panel (c) of one aggregator: means over the positive slides of all trials, and how many slides the third has."""
    table = rows.pivot_table(index="epoch", columns="name", values=["sum", "count"], aggfunc="sum")
    sums, counts = table["sum"], table["count"]
    if "top1_positive" not in counts:
        return
    if "high_positive" not in counts:
        counts = counts.assign(high_positive=0)
    for name, (_, style) in POSITIVES.items():
        if name in sums:
            # The third may exist at scattered epochs only, where a line alone would not be seen.
            dotted = name == "high_positive" or len(table) == 1
            positives.plot(
                sums[name] / counts[name], color=colour, linestyle=style, marker="." if dotted else None, markersize=4
            )
    _line(counted, counts["high_positive"].fillna(0) / counts["top1_positive"], color=colour, linewidth=0.9)


def _dress_figure3(accuracy: Axes, high: Axes, positives: Axes, counted: Axes, maxima: Axes) -> None:
    accuracy.set(title="(a) training accuracy", xlabel="epoch", ylabel="accuracy")
    high.set(title="(b) slides with an instance of attention ≥ 0.5", xlabel="epoch", ylabel="training slides")
    positives.set(title="(c) positives among the attended instances", ylabel="positive instances")
    counted.set(xlabel="epoch", ylabel="slides\nwith ≥ 0.5")
    maxima.set(
        title="(d) maximum attention of the test slides", xlabel="maximum attention", ylabel="slides at or below"
    )
    for axes in (accuracy, high, positives, counted, maxima):
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (accuracy, high, counted):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    counted.set_yticks([0, 1])
    if positives.lines:
        keys = [Line2D([], [], color="0.2", linestyle=style, label=name) for name, style in POSITIVES.values()]
        positives.legend(handles=keys, loc="best", frameon=True, framealpha=0.8, handlelength=2.2)
    else:
        positives.text(0.5, 0.5, "no instance labels", ha="center", va="center", transform=positives.transAxes)
        positives.set_xticks([])
        counted.set_axis_off()
    maxima.set_xscale("log")
    for value in (0.1, 0.5):
        maxima.axvline(value, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        maxima.text(value, 1.03, f"{value:g} ", ha="right", va="top", fontsize=6.5, color="0.35")
    maxima.set_xlim(min(maxima.get_xlim()[0], 1e-3), 1.15)


def _skew(run: RunDirectory, curves: dict[str, _Curves], colours: dict[str, Any], note: str) -> Figure:
    panels = {"max_attention": "maximum attention", "head_max": "maximum of each head", "n_x_max": "N x maximum"}
    figure = Figure(figsize=(WIDTH, 1.4 + 0.42 * len(curves)), layout="constrained")
    heads = {label: int(part.test["heads"].max()) for label, part in curves.items()}
    names = [f"{label}\n({heads[label]} head{'s' * (heads[label] != 1)})" for label in curves]
    row_of_axes = figure.subplots(1, 3, sharey=True)
    for axes, (name, xlabel) in zip(row_of_axes, panels.items(), strict=True):
        for row, (label, part) in enumerate(curves.items()):
            columns = [name]
            if name == "head_max":
                columns = [column for column in part.test if column.startswith("head_max_")] or [name]
            _strip(axes, row, part.test[columns].to_numpy().ravel(), colours[label])
        axes.set(xscale="log", xlabel=xlabel)
    # The two maxima on one scale, so that what averaging heads takes away can be read off.
    smallest = min(1e-3, *(axes.get_xlim()[0] for axes in row_of_axes[:2]))
    for maxima in row_of_axes[:2]:
        maxima.set_xlim(smallest, 1.3)
    axes.set_xlim(min(axes.get_xlim()[0], 0.7), max(axes.get_xlim()[1], 15))
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title(run, "Attention of the test slides"))
    explained = (
        "One point a slide (second panel: a slide and head); circle and bar: median and quartiles; dashed: uniform. "
    )
    figure.supxlabel(textwrap.fill(explained + note, 130), fontsize=7)
    return figure


def _strip(axes: Axes, row: int, values: np.ndarray, colour: Any) -> None:
    """Points of one row, jittered, under their median and quartiles."""
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
    axes.scatter(values, row + jitter, s=4, color=colour, alpha=0.5, linewidths=0)
    low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75])
    axes.hlines(row, low, high, color="0.1", linewidth=1.2)
    axes.plot(middle, row, marker="o", markersize=3.5, color="white", markeredgecolor="0.1", markeredgewidth=1)


def _metrics(run: RunDirectory, colours: dict[str, Any]) -> Figure:
    table, groups = comparison_table(run), trials_by_aggregator(run)
    figure = Figure(figsize=(WIDTH, 1.2 + 0.3 * len(table)), layout="constrained")
    for axes, (metric, name) in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS.items(), strict=True):
        for row, (label, trials) in enumerate(groups.items()):
            values = np.array([trial["metrics"][metric] for trial in finished(trials)], dtype=float)
            offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
            axes.scatter(values, row + offsets, s=10, color=colours[label], alpha=0.8, linewidths=0)
            mean, low, high = (table.loc[row, f"{metric}_{part}"] for part in ("mean", "low", "high"))
            axes.hlines(row, *np.clip([low, high], 0, 1), color="0.1", linewidth=1.2)
            axes.plot(mean, row, marker="D", markersize=3.5, color="white", markeredgecolor="0.1", markeredgewidth=1)
        axes.set(title=name)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, -0.02), min(right, 1.02))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    axes.set_yticks(range(len(table)), table["aggregator"])
    axes.set_ylim(len(table) - 0.5, -0.5)
    figure.suptitle(title(run, "Test metrics"))
    note = "One point a trial; diamond: mean, line: its 95 % interval (corrected resampled t, cut to [0, 1])."
    figure.supxlabel(note, fontsize=7)
    return figure


def _training(run: RunDirectory, curves: dict[str, _Curves], colours: dict[str, Any]) -> Figure:
    panels = {"loss": "training loss", "val_auc": "validation AUC", "val_accuracy": "validation accuracy"}
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    for axes, (name, ylabel) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for label, part in curves.items():
            if name in part.epochs:  # a pretraining without labels is not validated
                _band(axes, part.epochs.groupby("epoch")[name], colours[label])
        axes.set(title=ylabel, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(title(run, "Training"))
    _legend(figure, curves, colours, _band_note(curves, "") + "Losses of different models sum different terms.")
    return figure


def _titled(run: RunDirectory, what: str, figure: Figure) -> Figure:
    figure.suptitle(title(run, what, int(14 * figure.get_figwidth())))
    return figure


def _band(axes: Axes, by_epoch: Any, colour: Any) -> None:
    """Mean over trials with a band from the smallest to the largest."""
    mean, low, high = by_epoch.mean(), by_epoch.min(), by_epoch.max()
    axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
    _line(axes, mean, color=colour)


def _line(axes: Axes, curve: pd.Series, **style: Any) -> None:
    # A curve of a single epoch has no length: it needs a point to be seen.
    axes.plot(curve, marker="o" if len(curve) == 1 else None, markersize=4, **style)


def _band_note(curves: dict[str, _Curves], panels: str) -> str:
    trials = max(part.epochs["trial"].nunique() for part in curves.values())
    return f"{panels}mean of {trials} trials, band from smallest to largest. ".capitalize() if trials > 1 else ""


def _legend(figure: Figure, curves: dict[str, _Curves], colours: dict[str, Any], note: str) -> None:
    lines = [Line2D([], [], color=colours[label], label=label) for label in curves] if len(curves) > 1 else []
    below(figure, lines, note, min(len(lines), 4 if len(lines) in (7, 8) else 5))
