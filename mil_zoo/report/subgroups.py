"""Scores of groups of patients: what tables and figures of groups are made from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.metrics import Metric, ranks_of_class
from mil_zoo.noted import note_of, undefined
from mil_zoo.report.load import Results
from mil_zoo.stats import Drawn, Scored, bootstrap_patients

FILE = "groups.csv"  # of the run directory: slide_id, patient_id and the grouping columns
FEWEST = 10  # patients of a group that is scored
UNKNOWN = "(unknown)"
_REPLICATES = 1000
_BARCODE = re.compile(r"TCGA-([A-Z0-9]{2})-", re.IGNORECASE)
_SITES = ("site", "centre", "center", "scanner", "hospital")


@dataclass(frozen=True, eq=False)
class GroupScore:
    """A metric of an ``aggregator[@grid]`` in one group.

    Attributes:
        column: what the groups are of.
        group: its value; "(unknown)" for patients without one.
        label: ``aggregator[@grid]``.
        metric: name.
        patients: that were tested.
        positives: of them those with label 1 of two classes, or with the event; None where neither is asked for.
        drawn: value and interval; NaN, with the reason, where the group is not scored.
    """

    column: str
    group: str
    label: str
    metric: str
    patients: int
    positives: int | None
    drawn: Drawn


def memberships(results: Results) -> pd.DataFrame:
    """``groups.csv`` by the names of slides and of patients; empty where the run has none."""
    return results.once(_memberships)


def columns_of(results: Results) -> list[str]:
    """The grouping columns."""
    return [name for name in map(str, memberships(results)) if name not in ("slide_id", "patient_id")]


def group_scores(results: Results) -> list[GroupScore]:
    """Of every column, group, aggregator and headline metric; the largest groups first."""
    return results.once(_scores)


def site_columns(results: Results) -> list[str]:
    """The grouping columns that name sites."""
    return [name for name in columns_of(results) if name.lower() in _SITES]


def group_of(results: Results, column: str) -> dict[str, str]:
    """The group of every slide and patient by its name; "" of those without one."""
    table = memberships(results)
    of = {name: group for name, group in zip(table["patient_id"], table[column], strict=True) if name != ""}
    return of | dict(zip(table["slide_id"], table[column], strict=True))


def sites_of(results: Results, rows: pd.DataFrame) -> list[str]:
    """The site of each row, "" where it is unknown: that of ``--by site`` and the like, else that of a TCGA barcode.

    Args:
        results: of a run.
        rows: with ``slide_id`` and ``patient_id``.
    """
    ids = list(zip(rows["patient_id"].fillna(""), rows["slide_id"], strict=True))
    if not (columns := site_columns(results)):
        return [site_of(names) for names in ids]
    of = group_of(results, columns[0])
    return [next((of[name] for name in names if of.get(name)), "") for names in ids]


def site_of(names: Sequence[str]) -> str:
    """The tissue source site of a TCGA barcode in one of ``names``; "" for others."""
    for name in names:
        if found := _BARCODE.search(str(name)):
            return found.group(1).upper()
    return ""


def _memberships(results: Results) -> pd.DataFrame:
    found = results.run.table(FILE, ["slide_id"])
    return pd.DataFrame() if found is None else found


def _patients(results: Results, trial: Trial) -> pd.DataFrame:
    """The test patients of a trial, a row each; slides where patients are unknown."""
    rows = results.scored_rows(trial)
    owner = rows["patient_id"].fillna("").astype(str)
    if (owner != "").any() and owner[owner != ""].duplicated().any() and not results.task.of_patients:
        rule = results.patient_rule
        return results.task.patients(rows, rule if rule in ("mean", "max") else "mean")
    return rows


def owners_of(rows: pd.DataFrame) -> list[str]:
    """The patient of each row; its slide where patients are unknown."""
    owner = rows["patient_id"].fillna("").astype(str)
    return owner.where(owner != "", rows["slide_id"]).tolist()


def _scores(results: Results) -> list[GroupScore]:
    found = []
    tested: dict[str, list[tuple[Trial, pd.DataFrame]]] = {}
    for label, trials in results.finished.items() if columns_of(results) else ():
        tested[label] = [(trial, _patients(results, trial)) for trial in trials if trial.files]
    for column in columns_of(results):
        of = group_of(results, column)
        for label, parts in tested.items():
            marked = [(trial, rows, np.array([of.get(name, "") for name in owners_of(rows)])) for trial, rows in parts]
            sizes: dict[str, set[str]] = defaultdict(set)
            for _, rows, groups in marked:
                for name, group in zip(owners_of(rows), groups, strict=True):
                    sizes[group].add(name)
            for group in sorted(sizes, key=lambda name: (name == "", -len(sizes[name]), name)):
                own = [(trial, rows[groups == group]) for trial, rows, groups in marked if (groups == group).any()]
                for metric in results.headline:
                    found.append(_score(results, column, group, label, metric, own, len(sizes[group])))
    return found


def _score(
    results: Results,
    column: str,
    group: str,
    label: str,
    metric: Metric,
    parts: Sequence[tuple[Trial, pd.DataFrame]],
    patients: int,
) -> GroupScore:
    positives = _positives(results, [rows for _, rows in parts])
    reason = ""
    if group == "":
        reason = f"their {column} is unknown"
    elif patients < FEWEST:
        reason = f"fewer than {FEWEST} patients"
    elif results.task.family == "survival" and not positives:
        reason = "no event"
    elif results.task.family == "classification" and len({y for _, rows in parts for y in rows["label"]}) < 2:
        reason = "one class only"
    drawn = _unscored(reason) if reason else _drawn(results, metric, parts)
    return GroupScore(column, group or UNKNOWN, label, metric.name, patients, positives, drawn)


def _unscored(reason: str) -> Drawn:
    gone = undefined(reason)
    return Drawn(gone, gone, gone, gone, 0, 0)


def _positives(results: Results, parts: Sequence[pd.DataFrame]) -> int | None:
    """Patients with label 1 of two classes, or with the event; None for other tasks."""
    column = {"classification": "label", "survival": "event"}.get(results.task.family)
    if column is None or (column == "label" and len(results.task.prediction_columns) != 2):
        return None
    return len({name for rows in parts for name, one in zip(owners_of(rows), rows[column], strict=True) if one == 1})


def _drawn(results: Results, metric: Metric, parts: Sequence[tuple[Trial, pd.DataFrame]]) -> Drawn:
    """Ranks are compared within folds only; other metrics are of the patients of all folds together.

    Those of survival are means over folds: each fold's training patients say what its hazards and weights are of.
    """
    made = []
    for trial, rows in parts:
        task = results.task_of(trial)
        arguments = task.arguments(*task.read(rows))
        owners = np.array(owners_of(rows), dtype=str)
        made.append((trial, arguments, owners, task.context()))
    if metric.name == "c_index" or (metric.name == "auc" and made[0][1][-1].shape[-1:] == (2,)):
        pairs = []
        for _, arguments, owners, _ in made:
            if metric.name == "auc":  # an area is the concordance of labels as times: positives come first
                labels = arguments[0]
                arguments = (1.0 - labels, labels, ranks_of_class(arguments[1], 1))
            pairs.append(Scored(arguments[:3], owners, arguments[1].astype(np.int64)))
        if metric.name == "auc" and all(len(np.unique(part.labels)) < 2 for part in pairs):
            return _unscored("one class only in every fold")
        return bootstrap_patients(pairs, None, _REPLICATES)
    survival = results.task.family == "survival"
    together: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i, (trial, *_) in enumerate(made):
        together[trial.repeat, trial.seed, trial.fold if survival else 0].append(i)
    scored = []
    for places in together.values():
        arguments = tuple(np.concatenate(columns) for columns in zip(*(made[i][1] for i in places), strict=True))
        owners = np.concatenate([made[i][2] for i in places])
        if survival:
            labels = arguments[1].astype(np.int64)
        else:
            labels = results.task.strata(np.asarray(arguments[0], dtype=float).reshape(len(owners), -1))
        scored.append(Scored(arguments, owners, labels, made[places[0]][3]))
    return bootstrap_patients(scored, metric, _REPLICATES)


def reason_of(score: GroupScore) -> str:
    """Why a group has no value; "" where it has one."""
    return note_of(score.drawn.value) if np.isnan(score.drawn.value) else ""
