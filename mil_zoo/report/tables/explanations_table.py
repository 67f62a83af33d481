"""Which explanation of a prediction can be trusted: every aggregator by every explainer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from mil_zoo.bench.results import Trial
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import short

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

    Columns: ``aggregator`` (with its grid), ``patient_id``, ``slide_id``, ``explainer``, ``name``, ``value``.
    """
    return results.once(_explained)


def explanations_table(results: Results) -> pd.DataFrame:
    """One row an aggregator and explainer, over the test slides of all trials.

    Columns: ``aggregator``, ``explainer``, ``patients``, ``area_mean`` with its 95 % interval ``area_low`` and
    ``area_high`` (of t over patients, whose slides and trials are averaged first; NaN of a single one),
    ``positive_slides``, ``auroc`` and ``ap`` (medians over positive slides with instance labels), and
    ``completeness_error`` (median).
    """
    return results.once(_explanations_table)


def shown_explanations(results: Results) -> Document:
    """The same as it is read."""
    table = explanations_table(results)
    labelled, complete = (bool(table[name].notna().any()) for name in ("auroc", "completeness_error"))
    header = ["Aggregator", "Explainer", "Area of flipping"]
    header += ["AUROC", "AP"] * labelled + ["Completeness error"] * complete
    rows, ruled, before = [], set(), None
    for row in table.to_dict("records"):
        if before not in (None, row["aggregator"]):
            ruled.add(len(rows))
        before = row["aggregator"]
        interval = () if np.isnan(row["area_low"]) else (f"[{row['area_low']:.3f}, {row['area_high']:.3f}]",)
        cells: list[str | Cell] = [row["aggregator"], TITLES.get(row["explainer"], row["explainer"])]
        cells.append(Cell(f"{row['area_mean']:.3f}", below=interval))
        cells += [short(row["auroc"]), short(row["ap"])] * labelled
        cells += [short(row["completeness_error"])] * complete
        rows.append(cells)
    notes = [_NOTE, *([_LABELS] if labelled else []), *([_COMPLETE] if complete else []), *_findings(table)]
    return Document(
        "explanations", "Explanations of the test slides", [Table(header, rows, notes, ruled=frozenset(ruled))]
    )


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
    known = results.test_predictions(trial).set_index("slide_id")["patient_id"].fillna("")
    patients = rows["slide_id"].map(known)
    return rows.assign(aggregator=label, patient_id=patients.where(patients != "", rows["slide_id"]))


def _explanations_table(results: Results) -> pd.DataFrame:
    rows = []
    for (label, explainer), part in explained(results).groupby(["aggregator", "explainer"], sort=False):
        of = {name: group for name, group in part.groupby("name")}
        areas = of["area"].groupby("patient_id")["value"].mean().to_numpy()
        low, high = _interval(areas)
        median = {
            name: float(of[name]["value"].median()) if name in of else np.nan
            for name in ("auroc", "ap", "completeness_error")
        }
        row = {"aggregator": label, "explainer": explainer, "patients": len(areas), "area_mean": float(areas.mean())}
        rows.append(row | {"area_low": low, "area_high": high, "positive_slides": len(of.get("auroc", ()))} | median)
    return pd.DataFrame(rows)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of t of a mean; NaN of a single value, and of values that are all equal."""
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _findings(table: pd.DataFrame) -> Sequence[str]:
    """For each aggregator a sentence: which explainer leads, and where its attention stands."""
    found = []
    for label, part in table[table["explainer"] != "random"].groupby("aggregator", sort=False):
        ranked = part.sort_values("area_mean", ascending=False, kind="stable")
        names, areas = ranked["explainer"].tolist(), ranked["area_mean"].tolist()
        text = f"{label}: {TITLES.get(names[0], names[0])} has the largest area ({areas[0]:.3f})"
        if "attention" in names[1:]:
            place = names.index("attention")
            text += f"; its attention is number {place + 1} of {len(names)} ({areas[place]:.3f})"
        found.append(text + ".")
    return found


_NOTE = (
    "Area of flipping: the prediction without the least relevant instances minus that without as many of the most "
    "relevant, mean over the shares removed, with a 95 % interval over patients. Above 0 the scores say what the "
    "prediction needs; random scores are at 0."
)
_LABELS = (
    "AUROC and average precision (AP) of the scores as detectors of positive instances: medians over positive slides."
)
_COMPLETE = (
    "Completeness error: how far integrated gradients are from adding up to the change that they explain; median."
)
