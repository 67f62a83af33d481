"""Figure 5 of the SRMIL paper, and its like for any grid: metrics and attention skew against a setting."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mil_zoo.report.results import finished, trials_by_aggregator, values_by_split
from mil_zoo.report.style import WIDTH, below, palette
from mil_zoo.stats import summarise

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

PANELS = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "max_attention": "maximum attention",
    "n_x_max": "N x maximum",
    "effective_fraction": "effective share of instances",
    "mass_ratio": "mass ratio on positives",
}
_LOGARITHMIC = ("max_attention", "n_x_max")


@dataclass(frozen=True)
class Axis:
    """One grid of one aggregator.

    Attributes:
        model: registry key.
        option: what varies.
        rows: ``ablation.csv`` of it: a row a value, rest of the grid and name.
    """

    model: str
    option: str
    rows: pd.DataFrame


def ablation_table(run: RunDirectory) -> pd.DataFrame:
    """One row a variant and number, for aggregators with a grid.

    Columns: ``model``; ``option`` and ``value`` of one grid; ``rest``, the variant's other settings; ``name``: a metric
    (``mean``, ``low``, ``high``: over splits, corrected resampled t, cut to [0, 1]) or a number of attention (median
    and quartiles over test slides of all trials).
    """
    rows = []
    for trials in trials_by_aggregator(run).values():
        ok = finished(trials)
        if not ok or not ok[0]["grid"]:
            continue
        settings = dict(part.split("=", 1) for part in ok[0]["grid"].split(","))
        numbers = _numbers(run, ok)
        for option, value in settings.items():
            rest = ",".join(f"{key}={other}" for key, other in settings.items() if key != option)
            known = {"model": ok[0]["aggregator"], "option": option, "value": value, "rest": rest}
            rows += [
                known | {"name": name, "mean": m, "low": low, "high": high} for name, (m, low, high) in numbers.items()
            ]
    return pd.DataFrame(rows, columns=["model", "option", "value", "rest", "name", "mean", "low", "high"])


def axes_of(table: pd.DataFrame) -> list[Axis]:
    """The grids of ``ablation_table`` with at least two values each."""
    groups = table.groupby(["model", "option"], sort=False)
    return [Axis(str(model), str(option), rows) for (model, option), rows in groups if rows["value"].nunique() > 1]


def ablation_figure(axis: Axis) -> Figure:
    """A panel a number against the values of one grid; a line for every setting of the others."""
    names = [name for name in PANELS if name in set(axis.rows["name"])]
    rows = -(-len(names) // 2) if len(names) < 5 else -(-len(names) // 3)
    columns = -(-len(names) // rows)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = list(dict.fromkeys(axis.rows["value"]))
    numeric = _numeric(values)
    places = dict(zip(values, numeric or range(len(values)), strict=True))
    rests = list(dict.fromkeys(axis.rows["rest"]))
    colours = palette(rests)
    for axes, name in zip(panels, names, strict=False):
        for i, rest in enumerate(rests):
            part = axis.rows[(axis.rows["name"] == name) & (axis.rows["rest"] == rest)]
            x = np.array([places[value] for value in part["value"]], dtype=float)
            _line(axes, x, part, colours[rest], numeric is not None, (i - (len(rests) - 1) / 2) * 0.12)
        _dress(axes, name, axis.option, values, numeric)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    note = (
        "Metrics: mean over test folds, band its 95 % interval (corrected resampled t, cut to [0, 1]). "
        "Attention: median over test slides, band its quartiles; N x maximum is 1 for uniform attention."
    )
    lines = [Line2D([], [], color=colours[rest], marker="o", markersize=3, label=rest) for rest in rests if rest]
    below(figure, lines, note, min(len(lines), 3))
    return figure


def _numbers(run: RunDirectory, ok: list[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    numbers = {}
    n_train, n_test = (float(np.mean([trial[name] for trial in ok])) for name in ("n_train", "n_test"))
    for metric in ("accuracy", "balanced_accuracy", "auc", "f1"):
        summary = summarise(list(values_by_split(ok, metric).values()), n_train, n_test)
        low, high = np.clip([summary.low, summary.high], 0, 1)
        numbers[metric] = summary.mean, float(low), float(high)
    skew = pd.concat([run.skew(trial["trial"]) for trial in ok])
    skew = skew[skew["split"] == "test"]
    for name, group in skew.groupby("name"):
        low, middle, high = group["value"].quantile([0.25, 0.5, 0.75])
        numbers[str(name)] = middle, low, high
    return numbers


def _numeric(values: list[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _line(axes: Axes, x: np.ndarray, part: pd.DataFrame, colour: Any, numeric: bool, shift: float) -> None:
    mean, low, high = (part[name].to_numpy() for name in ("mean", "low", "high"))
    if numeric:
        order = np.argsort(x)
        axes.fill_between(x[order], low[order], high[order], color=colour, alpha=0.15, linewidth=0)
        axes.plot(x[order], mean[order], color=colour, marker="o", markersize=3)
    else:
        axes.vlines(x + shift, low, high, color=colour, linewidth=1.2)
        axes.plot(x + shift, mean, color=colour, marker="o", markersize=4, linestyle="none")


def _dress(axes: Axes, name: str, option: str, values: list[str], numeric: list[float] | None) -> None:
    axes.set(title=PANELS[name], xlabel=option.replace("_", " ") if numeric else "")
    if numeric is None:
        axes.set_xticks(range(len(values)), [textwrap.fill(value, 14) for value in values], rotation=35, ha="right")
        axes.set_xlim(-0.5, len(values) - 0.5)
    if name in _LOGARITHMIC:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if name in ("n_x_max", "mass_ratio"):
        axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
