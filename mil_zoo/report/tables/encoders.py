"""Aggregators against encoders, where a run compares several sets of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pandas as pd

from mil_zoo.metrics import Metric
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Cell, Document, Table

PATIENTS = " (patients)"  # ends the label of a row that scores patients


def levels(results: Results) -> dict[str, str | None]:
    """What the labels of a level's rows end with, to its patient rule: of slides "" to None, of patients if scored."""
    rule = results.patient_rule
    return {"": None} | ({PATIENTS: rule} if rule in ("mean", "max") else {})  # packed: the bags are patients


def without_encoder(label: str, encoder: Any) -> str:
    """``aggregator[@grid]`` without the part that names the encoder, which has a column of its own."""
    name, _, grid = label.removesuffix(PATIENTS).partition("@")
    rest = [part for part in grid.split(",") if part != f"features={quote(str(encoder), safe='+')}"]
    return "@".join(filter(None, [name, ",".join(rest)])) + PATIENTS * label.endswith(PATIENTS)


def encoder_table(scores: pd.DataFrame, metrics: Sequence[Metric]) -> pd.DataFrame:
    """A row an aggregator and metric, ``<encoder>_mean`` and ``_sd`` of every encoder; empty where there is one.

    Args:
        scores: of :func:`mil_zoo.report.tables.scores.score_table`.
        metrics: in their order.
    """
    if "encoder" not in scores:
        return pd.DataFrame()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in scores.to_dict("records"):
        name = without_encoder(row["aggregator"], row["encoder"])
        for metric in (metric.name for metric in metrics):
            cells = rows.setdefault((metric, name), {"metric": metric, "aggregator": name})
            cells[f"{row['encoder']}_mean"], cells[f"{row['encoder']}_sd"] = row[f"{metric}_mean"], row[f"{metric}_sd"]
    place = {metric.name: i for i, metric in enumerate(metrics)}
    return pd.DataFrame([rows[key] for key in sorted(rows, key=lambda key: place[key[0]])])


def shown_encoders(scores: pd.DataFrame, metrics: Sequence[Metric], notes: Sequence[str]) -> Document:
    """The same as it is read, a column an encoder."""
    titles = {metric.name: metric.title for metric in metrics}
    encoders = list(dict.fromkeys(scores["encoder"]))
    rows = [
        [titles[row["metric"]], row["aggregator"], *(_cell(row, encoder) for encoder in encoders)]
        for row in encoder_table(scores, metrics).to_dict("records")
    ]
    return Document("encoders", "Encoders", [Table(["Metric", "Aggregator", *encoders], rows, notes)])


def _cell(row: Mapping[Any, Any], encoder: str) -> Cell:
    mean, sd = row.get(f"{encoder}_mean"), row.get(f"{encoder}_sd")
    if mean is None or pd.isna(mean):
        return Cell("-")
    return Cell(f"{mean:.3f}", "" if sd is None or pd.isna(sd) else f"{sd:.3f}")
