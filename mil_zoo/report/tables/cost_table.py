"""What training and prediction cost, as it was measured while the trials ran."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Table
from mil_zoo.report.tables.text import short

_COLUMNS = {
    "parameters": "Parameters",
    "epochs": "Epochs run",
    "seconds_per_epoch": "s / epoch",
    "configurations": "Configurations",
    "training_seconds": "Training (s / trial)",
    "inference_ms": "Inference (ms / slide)",
    "energy_j": "Energy (kJ / trial)",
    "peak_mem_mib": "Peak memory (MiB)",
}


def cost_table(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]``; NaN where a run of before did not record a number.

    Columns: ``aggregator``; ``parameters``; ``epochs`` that were run (mean over trials, of ``budget`` at most);
    ``seconds_per_epoch`` (median); ``configurations`` tried a trial; ``training_seconds`` a trial, all configurations
    together (median); ``inference_ms`` a test slide (median), reading it included; ``energy_j`` a trial (median), where
    it could be measured; ``peak_mem_mib`` (largest).
    """
    return results.once(_costs)


def shown_costs(results: Results) -> Table:
    """The same as it is read."""
    table = cost_table(results)
    columns = {name: title for name, title in _COLUMNS.items() if name != "energy_j" or table[name].notna().any()}
    rows = [[row["aggregator"], *(_cell(name, row) for name in columns)] for row in table.to_dict("records")]
    notes = [_NOTE, *[_ENERGY] * ("energy_j" in columns)]
    return Table(["Aggregator", *columns.values()], rows, notes)


def _cell(name: str, row: dict[Any, Any]) -> str:
    value = row[name]
    if np.isnan(value):
        return "-"
    if name == "epochs":
        return f"{value:.0f}" if np.isnan(row["budget"]) else f"{value:.0f} of {row['budget']:.0f}"
    if name == "energy_j":
        return short(value / 1000)
    return f"{value:,.0f}" if name in ("parameters", "configurations") else short(value)


_NOTE = (
    "Measured while the trials ran, on whatever machine ran them: median seconds of an epoch, of the training of a "
    "trial (all its configurations) and of the prediction of a test slide, largest memory and size. Epochs run: mean "
    "over trials, where a recipe's patience may end one before its budget. These numbers differ between runs and so "
    "stand in no other table; mil-zoo models compares models on one machine."
)

_ENERGY = (
    "Energy: what the counters of processors and GPUs counted (RAPL, NVML) while one trial ran at a time, whatever "
    "else the machine did."
)


def _costs(results: Results) -> pd.DataFrame:
    tuning, settings = results.config.tuning, results.config.model_settings
    rows: list[dict[str, Any]] = []
    for label, ok in results.finished.items():
        costs = pd.DataFrame([{name: getattr(trial, name, None) for name in _COLUMNS} for trial in ok], dtype=float)
        costs = costs.reindex(columns=list(_COLUMNS))
        known = settings.get(label)
        rows.append(
            {
                "aggregator": label,
                "parameters": costs["parameters"].max(),
                "epochs": costs["epochs"].mean(),
                "budget": np.nan if known is None else float(known.training.get("epochs", np.nan)),
                "seconds_per_epoch": costs["seconds_per_epoch"].median(),
                "configurations": 1 if tuning is None else tuning.configurations,
                "training_seconds": costs["training_seconds"].median(),
                "inference_ms": costs["inference_ms"].median(),
                "energy_j": costs["energy_j"].median(),
                "peak_mem_mib": costs["peak_mem_mib"].max(),
            }
        )
    return pd.DataFrame(rows)
