"""Prediction files of other people as one table, whatever their columns are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.data.labels.columns import COLUMNS, check_once, column_of
from mil_zoo.data.labels.dialects import read_csv
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.report.rescore.cells import column, composed, numbers, plain, splits_of, targets_of, whole
from mil_zoo.stats.possible import half_unit
from mil_zoo.tasks import Task, create_task

# What tools and papers call these columns, however they are spelled, see column_of.
NAMES = {
    "model": ("model", "method", "aggregator"),
    "fold": ("fold",),
    "repeat": ("repeat",),
    "seed": ("seed",),
    "slide_id": ("slide_id", "slide", "image_id", "filename"),
    "patient_id": COLUMNS["patient_id"],
    "split": ("split",),
    "label": ("label", "y", "y_true", "target"),
    "score": ("score", "probability", "prob", "y_score"),
    "risk": ("risk", "risk_score"),
    "value": ("value",),
    "metric": ("metric",),
}
_PLACE = ("model", "repeat", "fold", "seed")  # of a row; a table has them or not, and in every row
_PROBABILITY = re.compile(r"(?:prob|p|probability)_(\d+)")
_NEEDS = "it needs patient_id or slide_id, model, fold, and label with score or prob_0 ..., or time, event and risk"


@dataclass(frozen=True)
class Columns:
    """What the columns are called, and what the options say of them.

    Attributes:
        renamed: our name -> the file's.
        by: columns that tell groups apart, each of which is scored for itself.
        outcome: settings of the survival task: time, event, censorship, unit, event_values, event_as_named.
        logits: whether scores are log-odds.
    """

    renamed: Mapping[str, str]
    by: tuple[str, ...] = ()
    outcome: Mapping[str, Any] | None = None
    logits: bool = False


@dataclass(frozen=True, eq=False)
class Predictions:
    """The rows of all files, as :func:`read_predictions` makes them.

    Attributes:
        rows: ``model``, the grouping columns, ``repeat``, ``fold`` (text), ``seed``, ``slide_id`` (of a table of
            patients the patient), ``patient_id`` ("" where unknown), ``split`` ("train" or "test"), ``filled`` (whether
            anybody wrote the row: not all of it is zero), the columns of the target and the prediction.
        task: what is predicted.
        of_slides: whether a row is a slide.
    """

    rows: pd.DataFrame
    task: Task
    of_slides: bool

    @property
    def targets(self) -> list[str]:
        """Names of the target's columns."""
        return list(self.task.target_columns)

    @property
    def predicted(self) -> list[str]:
        """Names of the prediction's columns."""
        return list(self.task.prediction_columns)


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """``["risk=hazard"]`` as ``{"risk": "hazard"}``.

    Raises:
        InputError: a pair is not ``OURS=THEIRS``, ours is no name that is read, or one is named twice.
    """
    renamed: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs:
            raise InputError(f"--columns {pair!r}: write OURS=THEIRS, as risk=predicted_hazard")
        if ours not in NAMES and not _PROBABILITY.fullmatch(ours):
            raise InputError(f"--columns {pair!r}: no column {ours!r} is read{did_you_mean(ours, [*NAMES, 'prob_0'])}")
        if ours in renamed or theirs in renamed.values():
            twice = ours if ours in renamed else theirs
            raise InputError(f"--columns {pair!r}: {twice!r} is named twice; map each column once")
        renamed[ours] = theirs
    return renamed


def read_table(path: Path) -> pd.DataFrame:
    """A csv (also ``.csv.gz``) or npz as a table of text; an array ``[n, C]`` of an npz is C columns ``<name>_0`` ....

    Raises:
        InputError: the file cannot be read, or its arrays have different lengths.
    """
    if path.suffix != ".npz":
        return read_csv(path, _NEEDS)
    columns: dict[str, Any] = {}
    for name, array in load_arrays(path).items():
        if array.ndim not in (1, 2):
            raise InputError(f"{path}: {name} has {array.ndim} dimensions; predictions are [n] or [n, C]")
        parts = {name: array} if array.ndim == 1 else {f"{name}_{i}": array[:, i] for i in range(array.shape[1])}
        columns |= {key: [_text(value) for value in part.tolist()] for key, part in parts.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path}: the arrays have different lengths ({lengths}); a row is a patient or slide")
    return pd.DataFrame(columns, dtype=object)


def canonical(table: pd.DataFrame, columns: Columns, path: Path) -> pd.DataFrame:
    """The table with our names for the columns that have other ones.

    A column that the options name stands in the place of one that has our name already. Grouping columns are found
    however they are spelled.

    Raises:
        InputError: a column that the options name is missing, or one that is read occurs twice.
    """
    header = [str(name) for name in table.columns]
    spelled = {found: name for name in columns.by if name not in header and (found := column_of(table, [name]))}
    table = table.rename(columns=spelled)
    header = [str(name) for name in table.columns]
    for name in columns.renamed.values():
        if name not in header:
            raise InputError(f"{path}: --columns names {name!r}, which is missing{did_you_mean(name, header)}")
    names = {theirs: ours for ours, theirs in columns.renamed.items()}
    taken = set(names.values())
    table = table.drop(columns=[name for name in header if name in taken and name not in names])
    header = [str(name) for name in table.columns]
    for ours, known in NAMES.items():
        found = column_of(table.drop(columns=list(names)), known)
        if ours not in taken and found is not None and found not in columns.by:
            names[found] = ours
    for name in header:
        match = _PROBABILITY.fullmatch(name.lower())
        if match and name not in names and f"prob_{match[1]}" not in (*names.values(), *header):
            names[name] = f"prob_{match[1]}"
    check_once(table, [*names, *columns.by], path)
    return table.rename(columns=names)


def read_predictions(paths: Sequence[Path], columns: Columns) -> Predictions:
    """All files as one table; a file without a column ``model`` is of the model that its name says.

    Raises:
        InputError: a file cannot be read, lacks a column, or a value is no number; the message names file and row.
    """
    tables = []
    for path in paths:
        table = canonical(read_table(path), columns, path)
        if not {"slide_id", "patient_id"} & set(table):
            raise InputError(f"{path}: nothing says whose the rows are; {_NEEDS}; map others with --columns")
        if not len(table):
            raise InputError(f"{path} holds no row of predictions; leave it out")
        for name in (*_PLACE, *columns.by):
            if name in table and table[name].isna().any():
                raise InputError(f"{path}: {name} is empty in row {int(table[name].isna().argmax()) + 2}; fill it in")
        tables.append((path, table))
    tasks = [_task_of(table, columns, path) for path, table in tables]
    task = tasks[0]
    for path, other in zip(paths, tasks, strict=True):
        if (type(other), other.prediction_columns) != (type(task), task.prediction_columns):
            raise InputError(
                f"{paths[0]} holds predictions of {_said(task)} and {path} of {_said(other)}; rescore them apart"
            )
    rows = pd.concat([_rows(table, path, task, columns) for path, table in tables], ignore_index=True)
    kinds = {"slide_id" in table for _, table in tables}
    if len(kinds) > 1:
        raise InputError("some files hold slides and some hold patients only; rescore them apart")
    return Predictions(rows, task, kinds.pop())


def _said(task: Task) -> str:
    return task.family if task.family == "survival" else f"{len(task.prediction_columns)} classes"


def _task_of(table: pd.DataFrame, columns: Columns, path: Path) -> Task:
    header = [str(name) for name in table.columns]
    if "risk" in header:
        settings = {key: value for key, value in (columns.outcome or {}).items() if value}
        return create_task("survival_rank", settings).settled(header)
    classes = sum(bool(re.fullmatch(r"prob_\d+", name)) for name in header)
    absent = [f"prob_{i}" for i in range(classes) if f"prob_{i}" not in header]
    if absent and (classes > 1 or "prob_1" not in header):
        raise InputError(f"{path}: the column {absent[0]!r} is missing; pass the probabilities of all classes, from 0")
    if "label" in header and (classes or "score" in header):
        return create_task("classification", {"num_classes": max(2, classes)})
    raise InputError(f"{path}: nothing is predicted there ({', '.join(header)}); {_NEEDS}; map others with --columns")


def _rows(table: pd.DataFrame, path: Path, task: Task, columns: Columns) -> pd.DataFrame:
    rows = pd.DataFrame({"model": column(table, "model", path.name.split(".")[0])})
    for name in columns.by:
        rows[name] = table.get(name)
    for name in ("repeat", "fold", "seed"):
        rows[name] = column(table, name, "0").map(whole)
    patients = column(table, "patient_id", "").map(composed)
    rows["slide_id"] = column(table, "slide_id", "").map(composed) if "slide_id" in table else patients
    rows["patient_id"] = patients
    rows["split"] = splits_of(table, path).replace("", "test")
    table = table.assign(slide_id=rows["slide_id"])
    source = task.columns(task.settings(), [str(name) for name in table.columns])
    table = plain(table, [*source, *task.prediction_columns, "score"], path)
    targets = targets_of(table, task, path)
    predictions = _predictions(table, task, path, columns.logits)
    rows[list(task.target_columns)] = targets
    rows[list(task.prediction_columns)] = predictions
    survives = task.family == "survival"
    empty = (predictions == 0).all(1) & ((targets[:, 0] == 0) if survives else predictions.shape[1] > 1)
    rows["filled"] = ~empty
    named = rows["slide_id"].ne("") | empty
    if not named.all():
        raise InputError(f"{path}: row {int((~named).argmax()) + 2} has no id; fill it in")
    return rows


def _predictions(table: pd.DataFrame, task: Task, path: Path, logits: bool) -> np.ndarray[Any, Any]:
    if task.family == "survival":
        return numbers(table, "risk", path)[:, None]
    names = list(task.prediction_columns)
    if "prob_0" in table:
        if logits:
            raise InputError(f"{path}: --logits is of a column score, and prob_0 ... are probabilities; leave it out")
        values = np.stack([numbers(table, name, path) for name in names], axis=1)
        sums = values.sum(1)
        units = table[names].map(lambda text: half_unit(text) if text else 0.0).to_numpy(dtype=float)
        rounding = units.sum(1, where=units < 0.5)  # a whole number is no probability that was rounded
        wrong = (np.abs(sums - 1) > np.maximum(rounding, 1e-3)) & ~np.isnan(sums) & (values != 0).any(1) | (
            values < 0
        ).any(1)
        what = f"probabilities that sum to {sums[wrong.argmax()]:.4g}, or negative ones; pass those of all classes"
    else:
        score = numbers(table, "score" if "score" in table else "prob_1", path)
        if logits:
            score = expit(score)
        values = np.stack([1 - score, score], axis=1)
        wrong = (score < 0) | (score > 1)
        what = (
            f"the score {score[wrong.argmax()]:.4g}, which is no probability of class 1; divide percentages by 100, or "
            "pass --logits for log-odds"
        )
    if wrong.any():
        raise InputError(f"{path}: {table['slide_id'].iloc[int(wrong.argmax())]!r} has {what}")
    return values


def _text(value: Any) -> str | None:
    """A value of an array as text that reads back exactly; None for NaN."""
    if isinstance(value, float):
        return None if np.isnan(value) else repr(value)
    if isinstance(value, bool):
        return str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)
