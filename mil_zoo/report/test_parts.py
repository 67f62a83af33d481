"""The test slides of a run by split: their predictions as the statistics take them, and estimates of metrics."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.report.scored import owners_of, scored
from mil_zoo.stats import Estimate, Scored, TestSet, distinct_test_sets, estimate

if TYPE_CHECKING:
    from mil_zoo.report.load import Results

SplitKey = tuple[int, int]  # repeat and fold


def probability_columns(predictions: pd.DataFrame) -> list[str]:
    """The columns ``prob_<class>`` of a table of predictions; [] of a task without class probabilities."""
    return [name for name in map(str, predictions) if re.fullmatch(r"prob_\d+", name)]


def values_by_split(trials: Sequence[Trial], metric: str, patients: bool = False) -> dict[SplitKey, float]:
    """A test metric of finished trials by (repeat, fold), seeds averaged; splits where it is undefined are absent."""
    by_split = defaultdict(list)
    for trial in trials:
        value = scores_of(trial, patients).get(metric)
        if value is not None:
            by_split[trial.split].append(value)
    return {split: float(np.mean(by_split[split])) for split in sorted(by_split)}


def scores_of(trial: Trial, patients: bool = False) -> dict[str, float | None]:
    """The test metrics of a trial, of slides or of patients."""
    return trial.patient_metrics if patients else trial.metrics


def mean_sizes(trials: Sequence[Trial]) -> tuple[float, float]:
    """Training slides with a label that was used, and test slides, the mean over trials; 1 and 1 without any.

    So fifty labels are fifty, whether the split or a setting of the model left the others out.
    """
    if not trials:
        return 1.0, 1.0
    train = [trial.n_train if trial.n_labelled is None else trial.n_labelled for trial in trials]
    return float(np.mean(train)), float(np.mean([trial.n_test for trial in trials]))


def estimate_of(results: Results, label: str, metric: str, patient_rule: str | None) -> Estimate:
    trials = results.finished[label]
    values: dict[SplitKey, list[float | None]] = defaultdict(list)
    for trial in trials:
        values[trial.split].append(scores_of(trial, patient_rule is not None).get(metric))
    sizes, measured = mean_sizes(trials), results.metric(metric)
    if not trials or (sets := results.test_sets(label, patient_rule)):
        kept = {split: sets[split] for split in values if split in sets} if trials else {}
        return estimate(values, kept, measured, *sizes)
    return estimate(values, results.scored_sets(label, patient_rule), measured, *sizes)


def tested_patients(results: Results, label: str, patient_rule: str | None) -> dict[SplitKey, Any]:
    """The test patients ``[n]`` of each split that an aggregator finished."""
    if not results.finished[label]:
        return {}
    of_classes = {split: part.patients for split, part in results.test_sets(label, patient_rule).items()}
    return of_classes | {split: parts[0].patients for split, parts in results.scored_sets(label, patient_rule).items()}


def test_set_numbers(results: Results, patient_rule: str | None) -> dict[SplitKey, int]:
    patients: dict[SplitKey, Any] = {}
    for label in results.finished:
        for split, names in tested_patients(results, label, patient_rule).items():
            patients.setdefault(split, names)
    return dict(zip(patients, distinct_test_sets(list(patients.values())), strict=True))


def scored_sets_of(results: Results, label: str, patient_rule: str | None) -> dict[SplitKey, list[Scored]]:
    if results.test_sets(label, patient_rule):
        return {}
    sets: dict[SplitKey, list[Scored]] = defaultdict(list)
    for trial in sorted(results.finished[label], key=lambda trial: (trial.split, trial.seed)):
        if not trial.files and not (results.path / "trials" / trial.trial).is_dir():
            continue
        task = results.task_of(trial)
        rows = results.scored_rows(trial) if task.of_patients else results.test_predictions(trial)
        if patient_rule is not None:
            rows = task.patients(rows, patient_rule)
        if owners_of(rows).duplicated().any():
            return {}
        sets[trial.split].append(scored(task, rows))
    return dict(sets)


def test_sets_of(results: Results, label: str, patient_rule: str | None) -> dict[SplitKey, TestSet]:
    by_split = defaultdict(list)
    for trial in sorted(results.finished[label], key=lambda trial: trial.seed):
        if trial.files or (results.path / "trials" / trial.trial).is_dir():
            rows = results.test_predictions(trial)
            if patient_rule is not None:
                rows = results.task.patients(rows, patient_rule)
            by_split[trial.split].append(rows)
    sets = {}
    for split, tables in sorted(by_split.items()):
        first = tables[0]
        columns = probability_columns(first)
        if not columns:
            return {}
        probabilities = [np.column_stack([table[name].to_numpy(dtype=float) for name in columns]) for table in tables]
        patients = first["patient_id"].fillna("").where(lambda ids: ids != "", first["slide_id"])
        labels = first["label"].to_numpy(dtype=np.int64)
        sets[split] = TestSet(labels, np.stack(probabilities), patients.to_numpy(dtype=str))
    return sets


def why_undefined(results: Results, metric: str) -> str:
    """Why a metric is undefined in some trials, in brackets after a blank; "" where nothing is known."""
    trials = [trial for trials in results.finished.values() for trial in trials if trial.metrics.get(metric) is None]
    notes = dict.fromkeys(note for trial in trials if (note := trial.notes.get(metric)))
    return f" ({'; '.join(notes)})" if notes else ""
