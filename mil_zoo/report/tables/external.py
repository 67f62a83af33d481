"""What a model loses on another dataset: scores, threshold and calibration, carried over from validation slides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.metrics import Metric
from mil_zoo.report.load import Results
from mil_zoo.report.scored import scored
from mil_zoo.report.tables.external_survival import carried_survival, defined_mean, shown_carried
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import fixed, interval
from mil_zoo.stats import Drawn, Scored, bootstrap_patients, calibration, external_difference
from mil_zoo.stats.shift import (
    at_temperature,
    best_threshold,
    calibration_in_the_large,
    calibration_slope,
    fit_temperature,
    negative_log_likelihood,
)

_NUMBERS = ("threshold", "sensitivity", "specificity", "in_the_large", "slope", "temperature")
_PARTS = ("val", "test")
_BEFORE_AFTER = ("nll", "ece")


def is_external(results: Results) -> bool:
    """Whether the run was tested on another dataset than it was trained on."""
    return "of the other dataset" in results.config.split.kind


def external_table(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]`` of a run with ``--test-on``; else empty.

    Of survival and other tasks one a headline metric too. Columns: ``metric``, ``internal`` (on validation slides),
    ``external`` (on the other dataset), ``difference`` (internal - external) and its interval; of two classes
    ``threshold`` (best on validation slides), ``sensitivity`` and ``specificity`` there on the other dataset,
    ``in_the_large`` and ``slope`` of its calibration; ``temperature`` (fitted on validation slides), ``nll``,
    ``nll_scaled``, ``ece``, ``ece_scaled`` of the other dataset
    before and after; of survival ``horizon_months``, ``observed`` and ``predicted`` risk by then, their ratio ``oe``
    (1 is best), and ``hazard_ratio`` and ``log_rank_p`` of those above and below the median risk of the training
    patients. Means over trials, but risk groups, which are of the first one.
    """
    return results.once(_table)


def internal_and_external(results: Results) -> dict[str, tuple[Drawn, Drawn]]:
    """Of every aggregator the metric that ranks, there and here, with intervals; of a run with ``--test-on``."""
    if not is_external(results):
        return {}
    metric, found = results.lead, {}
    for label, trials in results.finished.items():
        if kept := [trial for trial in trials if trial.files]:
            there, here = ([_scored(results, trial, part) for trial in kept] for part in _PARTS)
            found[label] = bootstrap_patients(there, metric), bootstrap_patients(here, metric)
    return found


def shown_external(results: Results) -> Document:
    """The same as it is read, in two tables."""
    table = external_table(results)
    several = table["metric"].nunique() > 1
    rows: list[list[Any]] = []
    more: list[list[Any]] = []
    for row in table.to_dict("records"):
        below = () if np.isnan(row["low"]) else (interval(row["low"], row["high"], "+.3f"),)
        lost = Cell(fixed(row["difference"], "+.3f"), below=below)
        named = [results.metric(row["metric"]).title] if several else []
        rows.append([row["aggregator"], *named, fixed(row["internal"]), fixed(row["external"]), lost])
        if "temperature" in row:
            pairs = [f"{fixed(row[name])} / {fixed(row[f'{name}_scaled'])}" for name in _BEFORE_AFTER]
            more.append([row["aggregator"], *(fixed(row[name]) for name in _NUMBERS), *pairs])
    if several:
        header = ["Aggregator", "Metric", "Internal", "External", "Lost [95 %]"]
    else:
        lead = results.metric(table["metric"].iloc[0]).title
        header = ["Aggregator", f"{lead}, internal", f"{lead}, external", "Lost [95 %]"]
    notes = [*_SCORES, _LOWER] if several else _SCORES
    tables = [Table(header, rows, notes, "Internal and external")]
    if more:
        header = ["Aggregator", "Threshold", "Sensitivity", "Specificity", "In the large", "Slope", "Temperature"]
        tables.append(Table([*header, "NLL / scaled", "ECE / scaled"], more, _CALIBRATION, "Carried over"))
    if results.task.family == "survival":
        tables.append(shown_carried(table.drop_duplicates("aggregator")))
    return Document("external", "On the other dataset", tables)


_SCORES = [
    "Internal: the validation slides of the dataset that was trained on. Checkpoints were chosen by them, so that the "
    "internal score is a little too good and the loss too large; a cross-validation there tells it without. Lost: "
    "internal less external, with its interval over the patients of both, which are drawn apart as they are different "
    "ones.",
]
_LOWER = "Of errors and losses, which are better when low, a positive difference is no loss but a gain."
_CALIBRATION = [
    "Threshold: of highest balanced accuracy on validation slides, carried over as it is; sensitivity and specificity "
    "are those it has on the other dataset. Calibration there: in the large, the shift of the log-odds that would make "
    "predictions right on average (0: right, above 0: the class is more frequent than predicted); slope, 1 where the "
    "odds rise as predicted, below 1 where predictions are too extreme.",
    "Temperature: fitted on validation slides alone; negative log-likelihood and expected calibration error of the "
    "other dataset before and after scaling. It does not mend a shift, which no internal slide tells of.",
]


def _table(results: Results) -> pd.DataFrame:
    if not is_external(results):
        return pd.DataFrame()
    rows = []
    for label, trials in results.finished.items():
        kept = [trial for trial in trials if trial.files]
        if not kept:
            continue
        inside, outside = ([_scored(results, trial, part) for trial in kept] for part in _PARTS)
        carried = _carried_over(results, label, kept, inside, outside)
        for metric in [results.lead] if results.task.family == "classification" else results.headline:
            row: dict[str, Any] = {"aggregator": label, "metric": metric.name}
            row["internal"], row["external"] = (_mean(metric, parts) for parts in (inside, outside))
            row |= {"difference": row["internal"] - row["external"], "low": np.nan, "high": np.nan}
            if not np.isnan(row["difference"]):
                drawn = external_difference(inside, outside, metric, replicates=1000)
                row |= {"difference": float(drawn.value), "low": float(drawn.low), "high": float(drawn.high)}
            rows.append(row | carried)
    return pd.DataFrame(rows)


def _carried_over(
    results: Results, label: str, trials: list[Trial], inside: list[Scored], outside: list[Scored]
) -> dict[str, float]:
    """What else is said of an aggregator there: of classes the threshold and calibration, of survival likewise."""
    if results.task.family == "survival":
        return carried_survival(results, label, trials)
    if results.task.family != "classification":
        return {}
    carried = [_carried(one, other) for one, other in zip(inside, outside, strict=True)]
    return {name: defined_mean([each[name] for each in carried]) for name in carried[0]}


def _scored(results: Results, trial: Trial, part: str) -> Scored:
    task = results.task_of(trial)
    rows = results.predictions(trial)
    rows = rows[rows["split"] == part].sort_values("slide_id")
    owner = rows["patient_id"].fillna("").astype(str)
    if owner[owner != ""].duplicated().any():
        rule = results.patient_rule
        rows = task.patients(rows, rule if rule in ("mean", "max") else "mean")
    return scored(task, rows)


def _mean(metric: Metric, parts: list[Scored]) -> float:
    return defined_mean([metric(*part.arguments, **part.context) for part in parts])


def _carried(inside: Scored, outside: Scored) -> dict[str, float]:
    (val, of_val), (labels, given) = inside.arguments[:2], outside.arguments[:2]
    temperature = fit_temperature(val, of_val)
    scaled = given if np.isnan(temperature) else at_temperature(given, temperature)
    found = dict.fromkeys(_NUMBERS, np.nan) | {"temperature": temperature}
    if given.shape[1] == 2:
        threshold = best_threshold(val, of_val[:, 1])
        above = given[:, 1] >= threshold
        found |= {"threshold": threshold}
        if not np.isnan(threshold) and len(np.unique(labels)) == 2:
            found |= {"sensitivity": above[labels == 1].mean(), "specificity": (~above)[labels == 0].mean()}
        found |= {
            "in_the_large": calibration_in_the_large(labels, given[:, 1]),
            "slope": calibration_slope(labels, given[:, 1]),
        }
    for name, values in (("", given), ("_scaled", scaled)):
        found |= {
            f"nll{name}": negative_log_likelihood(labels, values),
            f"ece{name}": calibration(labels, values).ece,
        }
    return found
