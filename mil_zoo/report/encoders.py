"""Aggregators against encoders, where a run compares several sets of features."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pandas as pd

from mil_zoo.report.results import METRICS
from mil_zoo.report.text import bullets, csv, markdown

PATIENTS = " (patients)"  # ends the label of a row that scores patients


def without_encoder(label: str, encoder: Any) -> str:
    """``aggregator[@grid]`` without the part that names the encoder, which has a column of its own."""
    name, _, grid = label.removesuffix(PATIENTS).partition("@")
    rest = [part for part in grid.split(",") if part != f"features={quote(str(encoder), safe='')}"]
    return "@".join(filter(None, [name, ",".join(rest)])) + PATIENTS * label.endswith(PATIENTS)


def write_encoders(table: pd.DataFrame, lines: list[str]) -> dict[str, str]:
    """``encoders.csv|md``: a row an aggregator and metric, a column an encoder; empty where there is one encoder.

    Args:
        table: of :func:`mil_zoo.report.tables.comparison_table`.
        lines: notes below the Markdown table.
    """
    if "encoder" not in table:
        return {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _, row in table.iterrows():
        name = without_encoder(row["aggregator"], row["encoder"])
        for metric in METRICS:
            cells = rows.setdefault((metric, name), {"metric": metric, "aggregator": name})
            cells[f"{row['encoder']}_mean"], cells[f"{row['encoder']}_sd"] = row[f"{metric}_mean"], row[f"{metric}_sd"]
    encoders = list(dict.fromkeys(table["encoder"]))
    wide = pd.DataFrame(sorted(rows.values(), key=lambda cells: list(METRICS).index(cells["metric"])))
    text = [
        [METRICS[cells["metric"]], cells["aggregator"], *(_cell(cells, encoder) for encoder in encoders)]
        for cells in wide.to_dict("records")
    ]
    page = markdown(["Metric", "Aggregator", *encoders], text) + "\n" + bullets(lines)
    return {"encoders.csv": csv(wide), "encoders.md": page}


def _cell(cells: dict[Any, Any], encoder: str) -> str:
    mean, sd = cells.get(f"{encoder}_mean"), cells.get(f"{encoder}_sd")
    if mean is None or pd.isna(mean):
        return "-"
    return f"{mean:.3f}" + ("" if sd is None or pd.isna(sd) else f" ± {sd:.3f}")
