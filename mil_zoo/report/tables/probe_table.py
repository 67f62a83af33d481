"""The table of a probe: one row a regime, from its rows of one a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.metrics import Metric, metrics_of
from mil_zoo.report.tables.table import Cell, Table
from mil_zoo.report.tables.text import interval
from mil_zoo.stats import summarise


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a regime: sizes, splits, and of each metric mean, sd and 95 % interval (corrected resampled t).

    Args:
        rows: as ``mil_zoo.ssl.probe.probe`` gives them.
    """
    table = []
    for regime, part in rows.groupby("regime", sort=False):
        n_train, n_test = part["n_train"].mean(), part["n_test"].mean()
        row = {"regime": regime, "n_train": n_train, "n_test": n_test, "splits": len(part)}
        for metric in _metrics(rows):
            found = summarise(part[metric].tolist(), n_train, n_test)
            row |= {f"{metric}_{name}": getattr(found, name) for name in ("mean", "sd", "low", "high")}
        row["leaky"], row["leaked"] = int((part["leaked_patients"] > 0).sum()), int(part["leaked_patients"].max())
        table.append(row)
    return pd.DataFrame(table)


def probe_table(rows: pd.DataFrame) -> Table:
    """The summary of the rows as it is read, with the sentences that belong under it."""
    metrics = _metrics(rows)
    titles = [metric.title for metric in metrics.values()]
    header = ["Regime", "Training slides", "Test slides", "Splits", *titles, "Leaky splits"]
    cells = []
    for row in summary(rows).to_dict("records"):
        leaks = f"{row['leaky']} (up to {row['leaked']} patients)" if row["leaky"] else "none"
        sizes = [f"{row['n_train']:.0f}", f"{row['n_test']:.0f}", str(row["splits"])]
        cells.append([str(row["regime"]), *sizes, *(_cell(row, metric) for metric in metrics.values()), leaks])
    return Table(header, cells, _notes(rows))


def _metrics(rows: pd.DataFrame) -> dict[str, Metric]:
    """The metrics that the probe recorded, by name."""
    return {metric.name: metric for metric in metrics_of("classification") if metric.name in rows}


def _cell(row: dict[Any, Any], metric: Metric) -> Cell:
    mean, sd, low, high = (row[f"{metric.name}_{name}"] for name in ("mean", "sd", "low", "high"))
    return Cell(f"{mean:.3f}", f"{sd:.3f}", (interval(*np.clip([low, high], *metric.bounds)),))


def _notes(rows: pd.DataFrame) -> list[str]:
    lines = [
        "Mean ± standard deviation [95 % interval, corrected resampled t, shown within the bounds of the metric] over "
        "splits; C = 10, balanced classes."
    ]
    leaky = rows[rows["leaked_patients"] > 0]
    if len(leaky):
        lines.append(
            f"LEAKS: {len(leaky)} of {len(rows)} splits have patients in both train and test (up to "
            f"{leaky['leaked_patients'].max()}); their scores are too good."
        )
    missing = int(rows["missing"].max())
    if missing:
        lines.append(f"Up to {missing} slides of a split were left out: they have no embedding or no label.")
    return lines
