"""What survival models are worth on another dataset: calibration at a horizon and risk groups, carried over."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.noted import undefined
from mil_zoo.report.load import Results
from mil_zoo.report.survival_folds import groups_of
from mil_zoo.report.tables.table import Cell, Table
from mil_zoo.report.tables.text import p_value
from mil_zoo.stats import kaplan_meier
from mil_zoo.tasks import Survival

_NOTES = [
    "Nothing is fitted anew: bins, baseline hazard, censoring curve and the median risk are those of the training "
    "patients. Observed: the share of the other dataset's patients with the event by the horizon (1 - Kaplan-Meier); "
    "predicted: the mean risk by then; observed / predicted is 1 where predictions are right on average, above 1 where "
    "there are more events than predicted.",
    "High risk: above the median risk of the training patients; hazard ratio with its interval and log-rank test on "
    "the other dataset.",
]


def carried_survival(results: Results, label: str, trials: list[Trial]) -> dict[str, float]:
    """``horizon_months``, ``observed``, ``predicted``, ``oe``; ``hazard_ratio`` with its interval, ``log_rank_p``.

    The horizon is the middle one of the task. NaN where the follow-up there ends before it, and where the task
    predicts no survival.
    """
    names = ("observed", "predicted", "oe")
    found = {name: [np.nan] for name in names}
    horizon = np.nan
    for trial in trials:
        task = results.task_of(trial)
        if not isinstance(task, Survival) or not task.horizon_times or task.criterion == "rank":
            continue
        middle = list(task.horizon_times)[len(task.horizon_times) // 2]
        horizon, rows = float(middle), results.scored_rows(trial)
        curve = kaplan_meier(rows[task.target_columns[0]], rows["event"])
        observed = 1 - curve.at(task.horizon_times[middle])
        predicted = 1 - float(rows[f"surv_{middle}"].mean(skipna=False))
        values = observed, predicted, observed / predicted if predicted > 0 else np.nan
        for name, value in zip(names, values, strict=True):
            found[name].append(float(value))
    means = {name: defined_mean(values) for name, values in found.items()}
    groups = groups_of(results, label)
    ratio = dict.fromkeys(("hazard_ratio", "hazard_ratio_low", "hazard_ratio_high", "log_rank_p"), np.nan)
    if groups is not None:
        ends = groups.ratio.value, groups.ratio.low, groups.ratio.high, groups.test.p
        ratio = {name: float(value) for name, value in zip(ratio, ends, strict=True)}
    return {"horizon_months": horizon, **means, **ratio}


def shown_carried(table: pd.DataFrame) -> Table:
    """The same as it is read, a row an aggregator."""
    rows = []
    for row in table.to_dict("records"):
        numbers = ["-" if np.isnan(row[name]) else f"{row[name]:.3f}" for name in ("observed", "predicted", "oe")]
        ratio = "-" if np.isnan(row["hazard_ratio"]) else f"{row['hazard_ratio']:.2f}"
        ends = row["hazard_ratio_low"], row["hazard_ratio_high"]
        below = () if np.isnan(ends).any() else (f"[{ends[0]:.2f}, {ends[1]:.2f}]",)
        horizon = "-" if np.isnan(row["horizon_months"]) else f"{row['horizon_months']:g} months"
        rows.append([row["aggregator"], horizon, *numbers, Cell(ratio, below=below), p_value(row["log_rank_p"])])
    header = ["Aggregator", "Horizon", "Observed", "Predicted", "Observed / predicted"]
    return Table([*header, "High-risk hazard ratio", "Log-rank p"], rows, _NOTES, "Carried over")


def defined_mean(values: list[float]) -> float:
    """Of those that are defined; NaN, with the reason, where none is."""
    known = [float(value) for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else undefined("undefined in every trial")
