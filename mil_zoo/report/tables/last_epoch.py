"""The chosen epoch beside the last one: what choosing a checkpoint on validation slides changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Document, Table
from mil_zoo.report.tables.text import fixed


def last_epoch_table(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]`` of the trials that chose an epoch; empty where each chose its last, or none did.

    Columns: ``aggregator``; ``epochs`` of the budget; ``chosen`` epoch (median over trials), ``earliest`` and
    ``latest``; of each headline metric ``<metric>_chosen`` and ``<metric>_last``, means over trials on test slides.
    """
    return results.once(_last_epochs)


def shown_last_epochs(results: Results) -> Document:
    """The same as it is read."""
    header = ["Aggregator", "Epochs", "Chosen epoch (range)"]
    header += [f"{metric.title}, {which}" for metric in results.headline for which in ("chosen", "last")]
    rows = []
    for row in last_epoch_table(results).to_dict("records"):
        chosen = f"{row['chosen']:.0f} ({row['earliest']:.0f} to {row['latest']:.0f})"
        scores = [row[f"{metric.name}_{which}"] for metric in results.headline for which in ("chosen", "last")]
        rows.append([row["aggregator"], f"{row['epochs']:.0f}", chosen, *(fixed(score) for score in scores)])
    return Document("last_epoch", "Chosen and last epoch", [Table(header, rows, [_NOTE])])


_NOTE = (
    "Mean test scores over trials of the checkpoint that validation chose and of the last epoch, which --select last "
    "would keep. Choosing between the two by these numbers would be a choice on test slides."
)


def _last_epochs(results: Results) -> pd.DataFrame:
    if not any(trial.last_metrics for trial in results.trials):
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for label, trials in results.finished.items():
        known = [trial for trial in trials if trial.epochs is not None and trial.selected_epoch is not None]
        if not known:
            continue
        chosen = [float(trial.selected_epoch or 0) for trial in known]
        row: dict[str, Any] = {"aggregator": label, "epochs": max(trial.epochs or 0 for trial in known)}
        row |= {"chosen": float(np.median(chosen)), "earliest": min(chosen), "latest": max(chosen)}
        for metric in results.headline:
            row[f"{metric.name}_chosen"] = _mean([trial.metrics.get(metric.name) for trial in known])
            row[f"{metric.name}_last"] = _mean([_last(trial).get(metric.name) for trial in known])
        rows.append(row)
    return pd.DataFrame(rows)


def _last(trial: Trial) -> dict[str, float | None]:
    """The scores of the last epoch: the chosen one's where that is the last."""
    return trial.last_metrics or (trial.metrics if trial.selected_epoch == trial.epochs else {})


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan
