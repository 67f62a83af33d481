"""What survival tables and figures are made from: the test patients of each fold, and the task fitted there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.errors import InputError
from mil_zoo.report.load import Results
from mil_zoo.report.scored import owners_of, scored
from mil_zoo.stats import Clinical, Covariates, RiskGroups, Scored, fit_clinical, read_covariates, risk_groups
from mil_zoo.tasks import Survival

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fold:
    """The test patients of one trial.

    Attributes:
        trial: whose.
        task: as it was fitted to the training patients.
        rows: ``predictions.csv`` of the patients.
    """

    trial: Trial
    task: Survival
    rows: pd.DataFrame

    @property
    def arguments(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Time, event, risk and what else metrics take."""
        return self.scored.arguments

    @property
    def patients(self) -> list[str]:
        """Their names."""
        return owners_of(self.rows).tolist()

    @cached_property
    def scored(self) -> Scored:
        """As the statistics take them."""
        return scored(self.task, self.rows)


def folds_of(results: Results, label: str) -> list[Fold]:
    """The folds of the first repetition of an ``aggregator[@grid]``, of its first seed."""
    return results.once(_folds, label)


def groups_of(results: Results, label: str) -> RiskGroups | None:
    """Its patients below and above the median risk of each fold's training patients; None without folds."""
    parts = folds_of(results, label)
    if not parts or any(part.task.median_risk is None for part in parts):
        return None
    time, event, risk = ([part.arguments[i] for part in parts] for i in range(3))
    return risk_groups(time, event, risk, [float(part.task.median_risk or 0) for part in parts])


@dataclass(frozen=True, eq=False)
class ClinicalFolds:
    """The clinical model on the same folds.

    Attributes:
        scored: its test patients of each fold.
        models: its fits.
        covariates: of the test patients of each fold.
    """

    scored: list[Scored]
    models: list[Clinical]
    covariates: list[Covariates]


def clinical_folds(results: Results) -> ClinicalFolds | str:
    """Cox regression on the covariates that the card names, on the folds of the first model; else why there is none."""
    return results.once(_clinical)


def _folds(results: Results, label: str) -> list[Fold]:
    trials = [trial for trial in results.finished.get(label, []) if trial.repeat == 0]
    first = min((trial.seed for trial in trials), default=0)
    parts = []
    for trial in trials:
        task = results.task_of(trial)
        if trial.seed == first and isinstance(task, Survival):
            parts.append(Fold(trial, task, results.scored_rows(trial)))
    return parts


def _clinical(results: Results) -> ClinicalFolds | str:
    try:
        return _fitted_clinical(results)
    except InputError as error:  # what the covariates do not tell is no reason to show nothing of the models
        return str(error)


def _fitted_clinical(results: Results) -> ClinicalFolds | str:
    table, splits = results.run.table("covariates.csv", ["patient_id"]), results.run.table("splits.csv", ["patient_id"])
    if table is None or splits is None:
        return "the card names no covariates"
    parts = next((found for label in results.finished if (found := folds_of(results, label))), [])
    table = table.set_index("patient_id", drop=False)
    outcome = _outcomes(results, parts)
    own = splits["patient_id"].where(splits["patient_id"] != "", splits["slide_id"])
    every = read_covariates(table, [name for name in table.columns if name != "patient_id"])
    place = {patient: i for i, patient in enumerate(table.index)}

    tested = [patient for part in parts for patient in part.patients]
    if lacking := [patient for patient in tested if patient not in place]:
        return f"the covariates of {len(lacking)} test patients are unknown ({lacking[0]})"

    def of(patients: list[str]) -> Covariates:
        return Covariates(every.names, every.matrix[[place[patient] for patient in patients]])

    scored, models, covariates = [], [], []
    for part in parts:
        column = f"r{part.trial.repeat}-f{part.trial.fold}"
        train = list(dict.fromkeys(own[splits[column] == "train"]))
        unknown = [patient for patient in train if patient not in outcome]
        if unknown:
            return (
                f"the run has no outcomes.csv, and those of {len(unknown)} training patients stand in no test part, so "
                "that the clinical model cannot be fitted from it"
            )
        time, event = np.array([outcome[patient] for patient in train]).T
        model = fit_clinical(time, event, of(train))
        here = of(part.patients)
        arguments = (*part.arguments[:2], model.risk(here))
        scored.append(Scored(arguments, part.scored.patients, part.scored.labels, part.scored.context))
        models.append(model)
        covariates.append(here)
    return ClinicalFolds(scored, models, covariates)


def _outcomes(results: Results, parts: list[Fold]) -> dict[str, tuple[float, float]]:
    """Time and event of each patient: of all, or in runs that did not keep them, of those who are tested."""
    table = results.run.table("outcomes.csv", ["patient_id", *results.task.target_columns])
    if table is not None:
        time, event = (table[name].astype(float) for name in results.task.target_columns)
        return dict(zip(table["patient_id"], zip(time, event, strict=True), strict=True))
    rows = (zip(part.patients, *part.arguments[:2], strict=True) for part in parts)
    return {patient: (time, event) for part in rows for patient, time, event in part}
