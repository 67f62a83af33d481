"""Which explanation of a prediction can be trusted: every aggregator by every explainer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from mil_zoo.bench.results import Trial
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Cell, Document, Table, as_cell
from mil_zoo.report.tables.text import fixed, interval, short
from mil_zoo.tasks import Classification

FILE, STORE = "explanations.csv", "explanations.h5"
COLUMNS = ["aggregator", "patient_id", "slide_id", "explainer", "name", "value"]
TITLES = {
    "attention": "Attention",
    "gradient": "Gradient x input",
    "integrated_gradients": "Integrated gradients, from zero",
    "integrated_gradients_mean": "Integrated gradients, from the mean",
    "occlusion": "Occlusion",
    "random": "Random",
}


def explained(results: Results) -> pd.DataFrame:
    """Every number of every explainer, a row each; empty where ``--explain`` was not given.

    Columns: ``aggregator`` (with its grid), ``patient_id``, ``slide_id``, ``explainer``, ``name``, ``value``. ``auroc``
    and ``ap`` of slides whose class was not predicted are left out: what speaks for a wrong class is elsewhere.
    """
    return results.once(_explained)


def explanations_table(results: Results) -> pd.DataFrame:
    """One row an aggregator and explainer, over the test slides of all trials.

    Columns: ``aggregator``, ``explainer``, ``patients``, ``area_mean`` with its 95 % interval ``area_low`` and
    ``area_high`` (of t over patients, whose slides and trials are averaged first; NaN of a single one), ``ahead`` (the
    area of attention less this one's, paired by patient) with ``ahead_low`` and ``ahead_high``, ``positive_slides``,
    ``auroc`` and ``ap`` (medians over the positive slides with instance labels whose class was predicted), and
    ``completeness_error`` (median).
    """
    return results.once(_explanations_table)


def in_order(names: Sequence[str]) -> list[str]:
    """Explainers, each once: the known ones as ``TITLES`` lists them, then the others."""
    found = list(dict.fromkeys(names))
    return [name for name in TITLES if name in found] + [name for name in found if name not in TITLES]


def shown_explanations(results: Results) -> Document:
    """The same as it is read: for each number a table, a row an aggregator and a column an explainer."""
    table = explanations_table(results)
    areas = _wide(
        table,
        [_area(*row) for row in zip(*(table[name] for name in _ends("area")), strict=True)],
        [_NOTE.format(results.task.explains), *_findings(table)],
    )
    tables = [Table(*areas, title="Area of flipping")]
    if table["auroc"].notna().any():
        slides = "AUROC against instance labels"
        cells = [fixed(value) for value in table["auroc"]]
        tables.append(Table(*_wide(table, cells, [_LABELS]), title=slides))
    whole = table[table["completeness_error"].notna()]
    if len(whole):
        cells = list(map(short, whole["completeness_error"]))
        tables.append(Table(*_wide(whole, cells, [_COMPLETE]), title="Completeness error"))
    return Document("explanations", "Explanations of the test slides", tables)


def _area(mean: float, low: float, high: float) -> Cell:
    ends = (round(low, 3) + 0.0, round(high, 3) + 0.0)  # and no -0.000
    return Cell(fixed(mean), below=() if np.isnan(low) else (interval(*ends, ".3f"),))


def _wide(
    table: pd.DataFrame, cells: Sequence[str | Cell], notes: list[str]
) -> tuple[list[str], list[list[str | Cell]], list[str]]:
    """Header, rows and notes.

    Nothing is bold: elsewhere that says that another cannot be the best, which no test decides of explainers.
    """
    names, labels = in_order(table["explainer"].tolist()), list(dict.fromkeys(table["aggregator"]))
    said = dict(zip(zip(table["aggregator"], table["explainer"], strict=True), map(as_cell, cells), strict=True))
    rows: list[list[str | Cell]] = [
        [label, *(said.get((label, name), Cell("-")) for name in names)] for label in labels
    ]
    return ["Aggregator", *(TITLES.get(name, name) for name in names)], rows, notes


def _explained(results: Results) -> pd.DataFrame:
    parts = [
        _rows(results, label, trial)
        for label, trials in results.finished.items()
        for trial in trials
        if FILE in trial.files
    ]
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _rows(results: Results, label: str, trial: Trial) -> pd.DataFrame:
    names = {name: str for name in ("slide_id", "explainer", "name")}
    rows = pd.read_csv(io.BytesIO(results.run.read(trial.trial, FILE)), dtype=names, keep_default_na=False)
    rows["value"] = pd.to_numeric(rows["value"], errors="coerce")
    tested = results.test_predictions(trial)
    known = tested.set_index("slide_id")["patient_id"].fillna("")
    patients = rows["slide_id"].map(known)
    rows = rows.assign(aggregator=label, patient_id=patients.where(patients != "", rows["slide_id"]))
    task = results.task_of(trial)
    if isinstance(task, Classification):
        values = tested[list(task.prediction_columns)].to_numpy(dtype=float)
        wrong = tested["slide_id"][values.argmax(1) != tested["label"].to_numpy(dtype=float)]
        rows = rows[~(rows["slide_id"].isin(wrong) & rows["name"].isin(["auroc", "ap"]))]
    return rows


def _explanations_table(results: Results) -> pd.DataFrame:
    rows = explained(results)
    keys = list(dict.fromkeys(zip(rows["aggregator"], rows["explainer"], strict=True)))
    numbers = {key: part for key, part in rows.groupby(["aggregator", "explainer", "name"])["value"]}
    judged = rows[rows["name"] == "area"].groupby(["aggregator", "explainer"])
    areas = {key: part.groupby("patient_id")["value"].mean() for key, part in judged}
    made = []
    for label, explainer in keys:
        own, attention = areas[label, explainer], areas.get((label, "attention"))
        row: dict[str, str | float] = {"aggregator": label, "explainer": explainer, "patients": len(own)}
        row |= _with_interval("area", own.to_numpy())
        row |= _with_interval("ahead", np.array([np.nan]) if attention is None else (attention - own).to_numpy())
        row["positive_slides"] = len(numbers.get((label, explainer, "auroc"), ()))
        for name in ("auroc", "ap", "completeness_error"):
            values = numbers.get((label, explainer, name))
            row[name] = np.nan if values is None else float(values.median())
        made.append(row)
    names = ["aggregator", "explainer", "patients", *_ends("area"), *_ends("ahead")]
    return pd.DataFrame(made, columns=[*names, "positive_slides", "auroc", "ap", "completeness_error"])


def _ends(name: str) -> list[str]:
    return [f"{name}_mean", f"{name}_low", f"{name}_high"]


def _with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """A mean and its 95 % interval of t; NaN ends of a single value, and of values that are all equal."""
    mean, low, high = float(values.mean()), np.nan, np.nan
    if len(values) > 1 and np.ptp(values) > 0:
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        low, high = mean - half, mean + half
    return dict(zip(_ends(name), (mean, low, high), strict=True))


def _findings(table: pd.DataFrame) -> list[str]:
    """Which explainer leads of how many aggregators, and where attention stands."""
    judged = table[table["explainer"] != "random"]
    if not len(judged):
        return []
    leads = judged.loc[judged.groupby("aggregator", sort=False)["area_mean"].idxmax()]
    by = {name: part["aggregator"].tolist() for name, part in leads.groupby("explainer", sort=False)}
    parts = [f"{TITLES.get(name, name)} of {_listed(by[name])}" for name in in_order(list(by))]
    among = f"of {table['aggregator'].nunique()} aggregators"
    found = [f"Largest area, whether or not others differ from it, {among}: {'; '.join(parts)}."]
    others = table[(table["explainer"] != "attention") & table["ahead_mean"].notna()]
    for name in in_order(others["explainer"].tolist()):
        part = others[others["explainer"] == name]
        larger, smaller = part[part["ahead_low"] > 0], part[part["ahead_high"] < 0]
        text = f"Attention against {TITLES.get(name, name).lower()}: larger of {_listed(larger['aggregator'].tolist())}"
        text += f", smaller of {_listed(smaller['aggregator'].tolist())}"
        found.append(f"{text}, not told apart of {len(part) - len(larger) - len(smaller)}.")
    if len(others):
        found.append("Larger, smaller: the 95 % interval of the difference over patients (not adjusted) leaves out 0.")
    return found


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


_NOTE = (
    "Area of flipping: the {} without the least relevant instances minus that without as many of the most relevant, "
    "mean over the shares removed, with a 95 % interval over patients. Above 0 the scores say what it needs; random "
    "scores are at 0. The trained models are taken as they are."
)
_LABELS = (
    "Scores as detectors of positive instances: medians over the positive slides with both kinds whose class was "
    "predicted, since the scores speak for the predicted class. explanations.csv has their number and the average "
    "precision."
)
_COMPLETE = (
    "How far integrated gradients are from adding up to the change that they explain, over that change; median over "
    "slides."
)
