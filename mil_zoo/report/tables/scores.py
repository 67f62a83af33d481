"""The comparison table of a run: what each aggregator scores, as numbers and as it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.metrics import Metric
from mil_zoo.report.load import Results
from mil_zoo.report.scored import draws_of
from mil_zoo.report.tables.encoders import PATIENTS, without_encoder
from mil_zoo.report.tables.sentences import notes
from mil_zoo.report.tables.table import Cell, Table
from mil_zoo.report.tables.text import fixed, interval, short
from mil_zoo.stats import TestSet, bootstrap, calibration

COSTS = {"parameters": "Parameters", "seconds_per_epoch": "s / epoch", "peak_mem_mib": "Peak memory (MiB)"}
MEASURED = ["seconds_per_epoch", "peak_mem_mib"]


def score_table(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]``.

    Columns: ``aggregator``; ``encoder`` where several sets of features are compared; ``splits`` (different test sets);
    for each metric on the test slides ``<metric>_mean``, ``_sd``, ``_low``, ``_high`` and ``_n`` as
    :func:`mil_zoo.stats.estimate` gives them (over test sets, what was trained for one of them averaged first; of a
    single test set over trainings, with the interval over its patients), and ``_boot_low`` and ``_boot_high``
    (bootstrap over test patients; without class probabilities of the headline metrics); of class probabilities
    ``brier`` and ``ece`` (calibration of all test predictions together); ``trials_ok``, ``trials_failed``;
    ``parameters``, ``seconds_per_epoch`` (median) and ``peak_mem_mib``
    (largest); of a run with a grid ``validation`` (mean of the lead metric on the validation slides) and ``chosen``
    (the aggregator's best variant by it). NaN where undefined.
    """
    return results.once(_slides)


def patient_table(results: Results) -> pd.DataFrame:
    """As :func:`score_table`, of patients; empty where slides are not combined into patients."""
    return results.once(_patients)


def all_levels(results: Results) -> pd.DataFrame:
    """The comparison table, and below each row that of the aggregator's patients where there is one."""
    slides, patients = score_table(results), patient_table(results)
    if patients.empty:
        return slides
    patients = patients.assign(aggregator=patients["aggregator"] + PATIENTS)
    return pd.concat([slides, patients]).sort_index(kind="stable").reset_index(drop=True)


def shown_scores(results: Results, bold: Mapping[str, set[str]], notes: list[str]) -> Table:
    """The comparison table as it is read.

    Intervals are cut to the bounds of their metric: that takes nothing from their coverage.

    Args:
        results: of a run.
        bold: for each metric the aggregators whose value is bold.
        notes: below the table.
    """
    table = all_levels(results)
    encoder = ["Encoder"] if "encoder" in table else []
    validated = [f"Validation {results.selecting.title}"] if "validation" in table else []
    header = [
        "Aggregator",
        *encoder,
        *validated,
        *(metric.title for metric in results.shown),
        "Trials",
        COSTS["parameters"],
    ]
    rows = []
    for row in table.to_dict("records"):
        name = row["aggregator"]
        cells = [without_encoder(name, row["encoder"]), row["encoder"]] if encoder else [name]
        if validated:
            cells.append(_validation_cell(row))
        rows.append([*cells, *_metric_cells(results, row, bold), _trials_cell(row), _cost_cells(row)[0]])
    return Table(header, rows, [*notes, *[_CHOSEN.format(results.selecting.title)] * bool(validated)])


_CHOSEN = (
    "Chosen: of each aggregator's variants the one whose validation {} is best. Its test scores are what choosing by "
    "validation gives; the best test score of many variants is too good."
)


def terminal_scores(results: Results) -> Table:
    """The comparison table for the terminal; 80 columns hold four metrics."""
    titles = [metric.title.replace(" ", "\n") for metric in results.shown]
    rows = []
    for row in all_levels(results).to_dict("records"):
        trials, (parameters, seconds, memory) = _trials_cell(row), _cost_cells(row)
        ran = Cell(trials.text, below=(*(line.strip("()") for line in trials.below), parameters))
        rows.append([row["aggregator"], *_metric_cells(results, row, {}), ran, Cell(seconds, below=(memory,))])
    return Table(["Aggregator", *titles, "Trials\nparams", "s/epoch\nMiB"], rows, notes(results))


def _slides(results: Results) -> pd.DataFrame:
    table = pd.DataFrame([_row(results, label, None) for label in results.groups])
    return table if results.config.grid is None else table.assign(**_validation(results))


def _validation(results: Results) -> dict[str, list[Any]]:
    """Of every variant the mean validation score by which it is chosen, and whether it is its aggregator's best."""
    by = results.selecting
    means = {label: _mean([trial.val_metrics.get(by.name) for trial in ok]) for label, ok in results.finished.items()}
    chosen = set()
    for model in dict.fromkeys(label.partition("@")[0] for label in means):
        known = {label: mean for label, mean in means.items() if label.partition("@")[0] == model and mean == mean}
        if known:
            chosen.add((max if by.higher_is_better else min)(known, key=lambda label: known[label]))
    return {"validation": list(means.values()), "chosen": [label in chosen for label in means]}


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan


def _patients(results: Results) -> pd.DataFrame:
    rule = results.patient_rule
    if rule not in ("mean", "max"):  # packed: the bags are patients
        return pd.DataFrame()
    return pd.DataFrame([_row(results, label, rule) for label in results.groups])


def _row(results: Results, label: str, patient_rule: str | None) -> dict[str, Any]:
    trials, ok = results.groups[label], results.finished[label]
    row: dict[str, Any] = {"aggregator": label}
    if results.config.dataset.several_encoders:
        row["encoder"] = trials[0].features if trials else ""
    sets = list(results.test_sets(label, patient_rule).values()) if ok else []
    intervals = bootstrap(sets) if sets else {}
    row["splits"] = len({results.test_set_of(trial.split, patient_rule) for trial in ok})
    for metric in (metric.name for metric in results.metrics):
        found = results.estimate(label, metric, patient_rule)
        row |= {f"{metric}_{name}": getattr(found, name) for name in ("mean", "sd", "low", "high", "n")}
        row[f"{metric}_boot_low"], row[f"{metric}_boot_high"] = intervals.get(metric, (np.nan, np.nan))
    if ok and not sets and results.scored_sets(label, patient_rule):
        for headline in results.headline:
            drawn = draws_of(results, label, headline, patient_rule).interval()
            row |= {f"{headline.name}_boot_low": drawn.low, f"{headline.name}_boot_high": drawn.high}
    if "calibration" in results.task.figures:
        row |= _calibration(sets)
    row["trials_ok"], row["trials_failed"] = len(ok), len(trials) - len(ok)
    return row | _costs(ok)


def _calibration(sets: list[TestSet]) -> dict[str, float]:
    """Brier score and expected calibration error of all test predictions, splits and seeds together."""
    if not sets:
        return {"brier": np.nan, "ece": np.nan}
    labels = np.concatenate([part.labels for part in sets for _ in part.probabilities])
    result = calibration(labels, np.concatenate([seed for part in sets for seed in part.probabilities]))
    return {"brier": result.brier, "ece": result.ece}


def _costs(ok: list[Trial]) -> dict[str, float]:
    costs = pd.DataFrame([{name: getattr(trial, name) for name in COSTS} for trial in ok], columns=[*COSTS])
    costs = costs.astype(float)
    return {
        "parameters": costs["parameters"].max(),
        "seconds_per_epoch": costs["seconds_per_epoch"].median(),
        "peak_mem_mib": costs["peak_mem_mib"].max(),
    }


def _metric_cells(results: Results, row: dict[Any, Any], bold: Mapping[str, set[str]]) -> list[Cell]:
    fullest = max([row["splits"], *(row[f"{metric.name}_n"] for metric in results.metrics)])
    return [_metric_cell(row, metric, fullest, bold) for metric in results.shown]


def _metric_cell(row: dict[Any, Any], metric: Metric, fullest: int, bold: Mapping[str, set[str]]) -> Cell:
    mean, sd, n = (row[f"{metric.name}_{part}"] for part in ("mean", "sd", "n"))
    low, high = (np.clip(row[f"{metric.name}_{part}"], *metric.bounds) for part in ("low", "high"))
    below = [interval(low, high)] if n > 1 or not np.isnan(low) else []
    if 0 < n < fullest:
        below.append(f"(n = {n})")
    marked = row["aggregator"] in bold.get(metric.name, ())
    return Cell("-" if n == 0 else fixed(mean), f"{sd:.3f}" if n > 1 else "", tuple(below), marked)


def further_scores(results: Results) -> Table | None:
    """The metrics that the comparison table leaves out, a row each; None where it leaves none out."""
    names = {metric.name for metric in results.shown}
    further = [metric for metric in results.metrics if metric.name not in names]
    rows = all_levels(results).to_dict("records")
    if not further or not rows:
        return None
    fullest = max(row[f"{metric.name}_n"] for row in rows for metric in results.metrics)
    cells = [[metric.title, *(_metric_cell(row, metric, fullest, {}) for row in rows)] for metric in further]
    shares = [_SHARES] * (results.task.family == "multilabel")
    return Table(["Metric", *(row["aggregator"] for row in rows)], cells, shares)


_SHARES = (
    "AP of a label is its average precision: of a model that knows nothing it is the share of the bags that have the "
    "label, where AUC is 0.5."
)


def _validation_cell(row: dict[Any, Any]) -> Cell:
    if np.isnan(row["validation"]):
        return Cell("-")
    return Cell(f"{row['validation']:.3f}", below=("(chosen)",) if row["chosen"] else ())


def _trials_cell(row: dict[Any, Any]) -> Cell:
    failed = row["trials_failed"]
    return Cell(f"{row['trials_ok']}", below=(f"({failed} FAILED)",) if failed else ())


def _cost_cells(row: dict[Any, Any]) -> list[str]:
    """Parameters, seconds and memory."""
    parameters = "-" if np.isnan(row["parameters"]) else f"{row['parameters']:,.0f}"
    return [parameters, short(row["seconds_per_epoch"]), short(row["peak_mem_mib"])]
