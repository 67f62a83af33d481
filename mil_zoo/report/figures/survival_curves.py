"""Kaplan-Meier curves of predicted risk groups, and predicted against observed risk at a horizon."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mil_zoo.report.figures.look import below, colours_of, grid_shape, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.survival_folds import Fold, folds_of, groups_of
from mil_zoo.report.tables.text import p_value
from mil_zoo.stats import KaplanMeier, calibration_groups

_GROUPS = {"low": ("#0173b2", "low risk"), "high": ("#d55e00", "high risk")}


@register_figure(
    "kaplan_meier",
    task=True,
    place=50,
    page=20,
    caption="The share of test patients without the event, of those below and above the median risk of each fold's "
    "training patients, all folds joined. Bands: 95 % (Greenwood, log-log); ticks: patients who were followed no "
    "longer. Below: patients at risk. The test and the hazard ratio are stratified by fold, and leave out the spread "
    "over trainings: another training would give other groups.",
)
def draw_curves(results: Results) -> dict[str, Figure]:
    """``kaplan_meier``: a panel a model, its high- and low-risk patients."""
    shown = {label: groups for label in results.groups if (groups := groups_of(results, label)) is not None}
    if not shown:
        return {}
    unit = folds_of(results, next(iter(shown)))[0].task.unit
    rows, columns = grid_shape(len(shown), 3)
    figure = Figure(figsize=(max(3.0 * columns, 3.6), 2.9 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, (label, groups) in zip(panels, shown.items(), strict=False):
        curves = {"low": groups.low, "high": groups.high}
        for name, curve in curves.items():
            if curve is not None:
                _curve(axes, curve, groups.until, *_GROUPS[name])
        ratio = groups.ratio
        text = f"hazard ratio {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        text = textwrap.fill(groups.note, 30) if groups.note else f"{text}\nlog-rank p {p_value(groups.test.p)}"
        axes.set(title=f"{wrapped(label)}\n{text}", xlim=(0, groups.until or 1), ylim=(0, 1.02))
        ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= groups.until]
        counts = ["\n".join(_at_risk(curve, tick) for curve in curves.values()) for tick in ticks]
        axes.set_xticks(ticks, [f"{tick:g}\n{count}" for tick, count in zip(ticks, counts, strict=True)])
        axes.legend(loc="lower left", frameon=False)
    for axes in panels[::columns]:
        axes.set_ylabel("without the event")
    note = f"x: {unit}; under it patients at risk, low above high risk; curves end below 10 of both together."
    below(figure, [], note, 1)
    figure.suptitle(title(results, "Predicted risk groups", int(14 * figure.get_figwidth())))
    return {"kaplan_meier": figure}


def _at_risk(curve: KaplanMeier | None, time: float) -> str:
    return "0" if curve is None else f"{curve.number_at_risk([time])[0]:.0f}"


def _curve(axes: Axes, curve: KaplanMeier, until: float, colour: str, name: str) -> None:
    inside = curve.time <= until
    time = np.concatenate([[0.0], curve.time[inside], [until]])
    survival = np.concatenate([[1.0], curve.survival[inside]])
    survival = np.append(survival, survival[-1])
    axes.plot(time, survival, drawstyle="steps-post", color=colour, label=name)
    low, high = (np.concatenate([[np.nan], end[inside], [end[inside][-1]]]) for end in (curve.low, curve.high))
    axes.fill_between(time, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    lost = inside & (curve.censored > 0)
    axes.plot(curve.time[lost], curve.survival[lost], "|", color=colour, markersize=4, markeredgewidth=0.8)


@register_figure(
    "survival_calibration",
    task=True,
    place=70,
    page=30,
    caption="Groups of equal predicted risk at a horizon: the mean predicted risk against the share that had the "
    "event by then (1 - Kaplan-Meier, 95 % band by Greenwood). On the dashed line predictions are right. Groups "
    "with fewer than 5 patients followed to the horizon are not drawn.",
)
def draw_calibration(results: Results) -> dict[str, Figure]:
    """``survival_calibration``: predicted against observed risk of each model, at the middle one of the horizons that
    are predicted; {} where none is."""
    shown = {label: parts for label in results.groups if (parts := folds_of(results, label))}
    first = next(iter(shown.values()), [])
    if not first or not first[0].task.horizon_times or first[0].task.criterion == "rank":
        return {}
    times = {name: time for name, time in first[0].task.horizon_times.items() if any(_predicted(shown, name))}
    if not times:
        return {}
    name, time = list(times.items())[len(times) // 2]
    colours = colours_of(results)
    rows, columns = grid_shape(len(shown), 4)
    figure = Figure(figsize=(max(1.9 * columns, 3.6), 2.1 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, (label, parts) in zip(panels, shown.items(), strict=False):
        _calibration(axes, parts, name, time, colours[label])
        axes.set(title=wrapped(label, 24), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted risk")
    for axes in panels[::columns]:
        axes.set_ylabel("observed")
    note = f"Risk of the event within {name} months, test patients of all folds."
    below(figure, [], note, 1)
    figure.suptitle(title(results, "Calibration", int(14 * figure.get_figwidth())))
    return {"survival_calibration": figure}


def _predicted(shown: dict[str, list[Fold]], name: str) -> list[bool]:
    """Of each model, whether some fold predicts the survival at a horizon."""
    return [any(part.rows[f"surv_{name}"].notna().any() for part in parts) for parts in shown.values()]


def _calibration(axes: Axes, parts: list[Fold], name: str, horizon: float, colour: str) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    time, event = (np.concatenate([part.arguments[i] for part in parts]) for i in (0, 1))
    survival = np.concatenate([part.rows[f"surv_{name}"].to_numpy(dtype=float) for part in parts])
    known = ~np.isnan(survival)
    if not known.any():
        axes.annotate("no prediction", (0.5, 0.5), ha="center", color="0.35")
        return
    groups = calibration_groups(time[known], event[known], survival[known], horizon)
    drawn = groups.drawn
    if not drawn.any():
        axes.annotate("groups too small", (0.5, 0.4), ha="center", color="0.35")
    observed = groups.observed[drawn]
    low, high = (np.nan_to_num(end[drawn], nan=0.0) for end in (groups.low, groups.high))
    errors = np.abs(np.stack([observed - np.minimum(low, observed), np.maximum(high, observed) - observed]))
    axes.errorbar(groups.predicted[drawn], observed, errors, color=colour, marker="o", markersize=3.5, linewidth=1)
