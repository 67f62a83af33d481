"""The predictions of a trial as the statistics of any task take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil_zoo.metrics import Metric
from mil_zoo.stats import Draws, Scored, patient_draws
from mil_zoo.tasks import Task

if TYPE_CHECKING:
    from mil_zoo.report.load import Results


def owners_of(rows: pd.DataFrame) -> pd.Series:
    """The patient of each row of a ``predictions.csv``; the slide where the patient is unknown."""
    known = rows["patient_id"].fillna("").astype(str)
    return known.where(known != "", rows["slide_id"].astype(str))


def scored(task: Task, rows: pd.DataFrame, of_slides: bool = False) -> Scored:
    """The patients of one test set, a row each.

    Args:
        task: as it was fitted to the training patients.
        rows: of a ``predictions.csv``.
        of_slides: a patient may have several rows.

    Raises:
        InputError: a patient has several rows, and rows are not of slides.
    """
    targets, predictions = task.read(rows)
    arguments = task.arguments(targets, predictions)
    labels = arguments[1].astype(np.int64) if task.family == "survival" else _strata(task, targets)
    return Scored(arguments, owners_of(rows).to_numpy(dtype=str), labels, task.context(), of_slides)


def _strata(task: Task, targets: np.ndarray) -> np.ndarray:
    """Classes, within which patients are drawn; numbers and several labels have none."""
    return task.strata(targets) if task.family in ("classification", "ordinal") else np.zeros(len(targets), np.int64)


def draws_of(results: Results, label: str, metric: Metric, patient_rule: str | None) -> Draws:
    """A test metric of an ``aggregator[@grid]``, mean of its trainings, by 2000 draws of the test patients."""
    return results.once(_draws, label, metric.name, patient_rule)


def _draws(results: Results, label: str, metric: str, patient_rule: str | None) -> Draws:
    parts = [one for of_seeds in results.scored_sets(label, patient_rule).values() for one in of_seeds]
    return patient_draws(parts, results.metric(metric))
