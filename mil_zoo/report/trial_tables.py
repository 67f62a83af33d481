"""The files of trials, tables of neighbouring trials read together; ``Results.once`` keeps what each gives."""

from __future__ import annotations

import io
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil_zoo.report.skew_rows import SkewRows, skew_rows
from mil_zoo.tasks import Task, task_of_config

if TYPE_CHECKING:
    from mil_zoo.report.load import Results

TOGETHER = 50  # trials whose tables are read at a time


def group_of(place: int) -> int:
    """The number of the trials that are read together with the one at ``place`` among a run's."""
    return place // TOGETHER


def alone(results: Results, read: Callable[[str], pd.DataFrame], trial: str) -> pd.DataFrame:
    return read(trial)


def fitted_task(results: Results, trial: str) -> Task:
    """``task.json``: the task as a trial fitted it to its training bags."""
    return task_of_config(json.loads(results.run.read(trial, "task.json")))


def test_patients(results: Results, trial: str) -> pd.DataFrame:
    """The test rows of ``patients.csv`` in the order of ids."""
    rows = pd.read_csv(io.BytesIO(results.run.read(trial, "patients.csv")), dtype={"slide_id": str, "patient_id": str})
    return rows[rows["split"] == "test"].sort_values("slide_id")


def tables_of(results: Results, name: str, number: int) -> dict[str, pd.DataFrame]:
    """A csv of the trials number ``TOGETHER * number`` and the next, of those that have it."""
    trials = results.trials[TOGETHER * number : TOGETHER * (number + 1)]
    return results.run.tables([trial.trial for trial in trials if name in trial.files], name)


def test_predictions(results: Results, number: int) -> dict[str, pd.DataFrame]:
    tables = results.once(tables_of, "predictions.csv", number)
    alike = defaultdict(list)
    for trial, table in tables.items():
        alike[tuple(table.dtypes.items())].append(trial)
    return {
        trial: rows
        for trials in alike.values()
        for trial, rows in zip(trials, test_rows([tables[trial] for trial in trials]), strict=True)
    }


def test_rows(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The test rows of tables of one kind of columns, each in the order of slide ids."""
    rows = pd.concat(tables)
    table = np.repeat(np.arange(len(tables)), [len(one) for one in tables])
    tested = np.flatnonzero(rows["split"].to_numpy(dtype=object) == "test")
    names = pd.factorize(rows["slide_id"].to_numpy(dtype=object)[tested], sort=True)[0]
    order = tested[np.lexsort([names, table[tested]])]
    ends = np.searchsorted(table[order], np.arange(len(tables) + 1))
    rows = rows.iloc[order]
    return [rows.iloc[start:end] for start, end in itertools.pairwise(ends)]


def skew_of(results: Results, number: int) -> SkewRows:
    """``skew.csv`` of the trials number ``TOGETHER * number`` and the next."""
    first = TOGETHER * number
    trials = results.trials[first : first + TOGETHER]
    named = [trial.trial for trial in trials if "skew.csv" in trial.files]
    return skew_rows(results.run, named, [trial.trial for trial in trials], first)
