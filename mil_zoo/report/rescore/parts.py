"""What is scored: of every model and fold the rows that can be, who is missing there, and who was trained on."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.data.labels.dialects import labels_alike
from mil_zoo.errors import InputError
from mil_zoo.metrics import Metric
from mil_zoo.report.rescore.cells import plain, splits_of, targets_of
from mil_zoo.report.rescore.read import Columns, Predictions, canonical, read_table
from mil_zoo.tasks import Survival, Task

Group = tuple[str, ...]
MOST = 100  # groups, each with tables, figures and a page of its own


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who should be there.

    Attributes:
        rows: ``slide_id`` and ``patient_id`` (one of them "" where unknown), ``fold`` ("" where unknown), ``split``,
            the grouping columns, and the target's columns where the table has them.
        key: which of the ids it names.
        folds: whether it says who is in which fold.
        targets: which of the target's columns it has.
    """

    rows: pd.DataFrame
    key: str
    folds: bool
    targets: list[str]


@dataclass(frozen=True, eq=False)
class Part:
    """One model on one test set.

    Attributes:
        group: values of the grouping columns; () without any.
        model: as the files call it.
        split: repeat, fold and seed, as the files call them.
        filed: its rows as they are.
        rows: those that are scored: written by somebody, with a prediction, each id once.
        task: with what it takes from the training patients, where these are known.
        key: which of the ids tells rows apart.
        missing: ids that should be there and are not scored.
        n_train: patients or slides that it was trained on, as far as the files tell.
        remarks: what cannot be right, a sentence part each; more are added as it is judged.
    """

    group: Group
    model: str
    split: tuple[str, ...]
    filed: pd.DataFrame
    rows: pd.DataFrame
    task: Task
    key: str
    missing: list[str]
    n_train: int
    remarks: list[str] = field(default_factory=list)

    def value(self, metric: Metric, rows: pd.DataFrame | None = None) -> float:
        """A metric of its rows, or of other ones; NaN without any."""
        rows = self.rows if rows is None else rows
        if not len(rows):
            return float("nan")
        return metric(*self.task.arguments(*self.task.read(rows)), **self.context)

    @property
    def context(self) -> dict[str, Any]:
        """What metrics need besides; without the training patients where the files do not tell of them."""
        context = self.task.context()
        unknown = [name for name in ("train_time", "train_event") if name in context and not len(context[name])]
        return {name: value for name, value in context.items() if name not in unknown}

    @property
    def patients(self) -> int:
        """Patients that are scored; slides where patients are unknown."""
        own = self.rows["patient_id"].where(self.rows["patient_id"] != "", self.rows["slide_id"])
        return int(own.nunique())


def read_cohort(path: Path, columns: Columns, predictions: Predictions) -> Cohort:
    """The table of who should be there: patients, or slides where those are scored and it names them.

    Raises:
        InputError: it cannot be read, names nobody, or lacks a grouping column.
    """
    table = canonical(read_table(path), columns, path)
    task = predictions.task
    ids = ("slide_id", "patient_id") if predictions.of_slides and not task.of_patients else ("patient_id", "slide_id")
    keys = [name for name in ids if name in table]
    if not keys:
        raise InputError(f"{path}: the cohort needs a column patient_id or slide_id; map another with --columns")
    for name in columns.by:
        if name not in table:
            raise InputError(f"{path}: the grouping column {name!r} is missing; --by needs it in the cohort too")
    if not len(table):
        raise InputError(f"{path} holds no row; leave --cohort out")
    if table[keys[0]].isna().any():
        raise InputError(f"{path}: {keys[0]} is empty in row {int(table[keys[0]].isna().argmax()) + 2}; fill it in")
    rows = pd.DataFrame({name: table[name].fillna("") if name in table else "" for name in ("slide_id", "patient_id")})
    rows = rows.map(lambda name: unicodedata.normalize("NFC", name))
    rows = rows.assign(**{name: table[name].fillna("") for name in columns.by})
    rows["fold"] = table["fold"].fillna("").str.replace(r"\.0+$", "", regex=True) if "fold" in table else ""
    rows["split"] = splits_of(table, path)
    known = _stated(table.assign(slide_id=table[keys[0]]), task, path)
    for name, values in known.items():
        rows[name] = values
        of_id = rows.groupby(keys[0])[name]
        if (several := of_id.transform("nunique") > 1).any():
            raise InputError(f"{path}: {rows[keys[0]][several].iloc[0]!r} has two values of {name}; keep one")
    return Cohort(rows, keys[0], "fold" in table, list(known))


def _stated(table: pd.DataFrame, task: Task, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The target's columns, where the cohort has them all."""
    if isinstance(task, Survival):
        names = task.columns(task.settings(), list(table.columns))
        if not set(names) <= set(table.columns):
            return {}
    elif "label" not in table:
        return {}
    table = plain(table, task.columns(task.settings(), list(table.columns)), path)
    return dict(zip(task.target_columns, targets_of(table, task, path).T, strict=True))


def with_groups(predictions: Predictions, cohort: Cohort | None, by: Sequence[str]) -> pd.DataFrame:
    """The rows with their grouping columns, which the cohort says where the files do not.

    Raises:
        InputError: nothing says a group, or the cohort says two of a patient.
    """
    rows = predictions.rows
    for name in by:
        if not rows[name].isna().any():
            continue
        if cohort is None:
            raise InputError(f"the files have no column {name!r} to group by; name another one, or pass --cohort")
        of_id = cohort.rows.groupby(cohort.key)[name].agg(lambda values: "\0".join(dict.fromkeys(values)))
        found = rows[name].fillna(rows[cohort.key].map(of_id))
        if (several := found.str.contains("\0", na=False)).any():
            who = rows[cohort.key][several].iloc[0]
            raise InputError(f"{who!r} has several values of {name} in the cohort; add the column {name} to the files")
        if found.eq("").any():
            who = rows[cohort.key][found.eq("")].iloc[0]
            raise InputError(f"{who!r} has no {name} in the cohort; fill it in")
        if found.isna().any():
            if (gone := found.isna() & rows["filled"]).any():
                raise InputError(
                    f"{rows[cohort.key][gone].iloc[0]!r} is not in the cohort, so that its {name} is unknown"
                )
            raise InputError(
                f"rows of zeros name nobody, so that their {name} is unknown; add that column to the files"
            )
        rows = rows.assign(**{name: found})
    return rows


def parts_of(predictions: Predictions, cohort: Cohort | None, by: Sequence[str]) -> list[Part]:
    """Every model on every test set, in the order of the files.

    Raises:
        InputError: nothing says a group, or there are too many.
    """
    rows = with_groups(predictions, cohort, by)
    for name in by:
        for alike in labels_alike(rows[name].map(str)):
            raise InputError(
                f"--by {name}: {' and '.join(map(repr, alike))} differ in case, blanks or accents only; write them "
                "alike"
            )
    if by and (number := rows.groupby(list(by)).ngroups) > MOST:
        raise InputError(
            f"--by {','.join(by)} makes {number} groups, each of which becomes a run; join values into {MOST} or fewer"
        )
    parts = []
    for group, of_group in rows.groupby(list(by), sort=False) if by else [((), rows)]:
        parts += _parts_of_group(tuple(map(str, group)), of_group, predictions, cohort, by)
    return parts


def _parts_of_group(
    group: Group, rows: pd.DataFrame, predictions: Predictions, cohort: Cohort | None, by: Sequence[str]
) -> list[Part]:
    task = predictions.task
    key = cohort.key if cohort is not None else "slide_id" if predictions.of_slides else "patient_id"
    expected = None
    if cohort is not None:
        expected = cohort.rows
        for name, value in zip(by, group, strict=True):
            expected = expected[expected[name] == value]
    if isinstance(task, Survival):
        known = rows.loc[rows["filled"], list(task.target_columns)].dropna()
        if known[task.target_columns[1]].nunique() == 2:
            task = task.of_cohort(known.to_numpy(dtype=float))
    test, trained = rows[rows["split"] == "test"], rows[rows["split"] == "train"]
    pieces = {}
    for (model, *split), filed in test.groupby(["model", "repeat", "fold", "seed"], sort=False):
        pieces[str(model), tuple(map(str, split))] = filed, *_scored(filed, predictions)
    folds = {split[:2] for _, split in pieces}
    parts = []
    models = list(dict.fromkeys(model for model, _ in pieces))
    for (model, split), (filed, scored, remarks) in sorted(pieces.items(), key=lambda piece: models.index(piece[0][0])):
        others = [piece for (_, there), (_, piece, _) in pieces.items() if there[:2] == split[:2]]
        should = _expected(others, expected, cohort, split[1], key, single=len(folds) == 1)
        missing = sorted(should - set(scored[key]))
        own = trained[(trained["model"] == model) & (trained["repeat"] == split[0]) & (trained["fold"] == split[1])]
        train = own.drop_duplicates("slide_id")
        if not len(train):
            same = [piece for (name, there), (_, piece, _) in pieces.items() if name == model and there[0] == split[0]]
            train = pd.concat(same).drop_duplicates("slide_id")
            train = train[~train["slide_id"].isin(scored["slide_id"])]
        fitted = task
        known_train = train[list(task.target_columns)].to_numpy(dtype=float)
        if isinstance(task, Survival) and task.informative(known_train):
            fitted = task.fit(known_train)
        part = Part(group, model, split, filed, scored, fitted, key, missing, max(1, len(train)), remarks)
        parts.append(part)
    return parts


def _expected(
    others: Sequence[pd.DataFrame],
    cohort_rows: pd.DataFrame | None,
    cohort: Cohort | None,
    fold: str,
    key: str,
    single: bool,
) -> set[str]:
    """Ids that a test set should hold: by the cohort where it says folds or there is only one, else by all models."""
    if cohort is not None and cohort_rows is not None and (cohort.folds or single):
        rows = cohort_rows[cohort_rows["split"].isin(["", "test"])]
        if cohort.folds:
            rows = rows[rows["fold"] == fold]
        return set(rows[key])
    return set().union(*(set(other[key]) for other in others))


def _scored(filed: pd.DataFrame, predictions: Predictions) -> tuple[pd.DataFrame, list[str]]:
    """The rows that can be scored, and what is to be said of the others."""
    task, what = predictions.task, "slide" if predictions.of_slides else "patient"
    remarks = []
    zero = ~filed["filled"]
    if zero.any():
        survival = task.family == "survival"
        cells = "time, event and risk 0" if survival else "probabilities 0"
        dead = survival and (filed.loc[zero, task.target_columns[1]] == 1).any()
        remarks.append(
            f"{_rows_are(zero)} all zero ({cells}{', as a death at time 0' if dead else ''}), as rows of skipped "
            f"{what}s left in an array are; left out"
        )
    rows = filed[~zero]
    gone = rows[predictions.predicted].isna().any(axis=1) | rows[predictions.targets].isna().any(axis=1)
    if gone.any():
        remarks.append(f"{_rows_are(gone)} without prediction or label ({named(rows['slide_id'][gone])}); left out")
    rows = rows[~gone]
    columns = ["slide_id", *predictions.targets, *predictions.predicted]
    once = rows.drop_duplicates(columns)
    twice = once["slide_id"].duplicated(keep=False)
    if len(once) < len(rows):
        again = rows["slide_id"][rows.duplicated(columns)].unique()
        remarks.append(f"{len(again)} ids occur twice with the same numbers ({named(again)}); counted once")
    if twice.any():
        again = once["slide_id"][twice].unique()
        remarks.append(f"{len(again)} ids occur twice with different numbers ({named(again)}); left out")
    rows = once[~twice].sort_values("slide_id")
    if task.of_patients and predictions.of_slides and (rows["patient_id"] != "").all() and len(rows):
        several = rows["patient_id"].duplicated().any()
        rows = task.patients(rows[[*columns, "patient_id", "split"]], "mean") if several else rows
        rows = rows.assign(slide_id=rows["patient_id"])
    return rows, remarks


def _rows_are(mask: pd.Series[bool]) -> str:
    n = int(mask.sum())
    return f"{n} row is" if n == 1 else f"{n} rows are"


def named(ids: Any, most: int = 5) -> str:
    """The first ids, and how many more there are."""
    known = sorted(map(str, ids))
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
