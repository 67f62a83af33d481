"""The table of a probe: one row a regime, from its rows of one a split."""

from __future__ import annotations

import pandas as pd

from mil_zoo.report.tables import METRICS
from mil_zoo.stats import summarise

HEADER = ["Regime", "Training slides", "Test slides", "Splits", *METRICS.values(), "Leaky splits"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a regime: sizes, splits, and of each metric mean, sd and 95 % interval (corrected resampled t).

    Args:
        rows: as ``mil_zoo.ssl.probe.probe`` gives them.
    """
    table = []
    for regime, part in rows.groupby("regime", sort=False):
        n_train, n_test = part["n_train"].mean(), part["n_test"].mean()
        row = {"regime": regime, "n_train": n_train, "n_test": n_test, "splits": len(part)}
        for metric in METRICS:
            found = summarise(part[metric].tolist(), n_train, n_test)
            row |= {f"{metric}_{name}": getattr(found, name) for name in ("mean", "sd", "low", "high")}
        row["leaky"], row["leaked"] = int((part["leaked_patients"] > 0).sum()), int(part["leaked_patients"].max())
        table.append(row)
    return pd.DataFrame(table)


def cells(table: pd.DataFrame) -> list[list[str]]:
    """Text of a summary under ``HEADER``."""
    rows = []
    for row in table.to_dict("records"):
        scores = [
            f"{row[f'{m}_mean']:.3f} ± {row[f'{m}_sd']:.3f} [{row[f'{m}_low']:.2f}, {row[f'{m}_high']:.2f}]"
            for m in METRICS
        ]
        leaks = f"{row['leaky']} (up to {row['leaked']} patients)" if row["leaky"] else "none"
        sizes = [f"{row['n_train']:.0f}", f"{row['n_test']:.0f}", str(row["splits"])]
        rows.append([str(row["regime"]), *sizes, *scores, leaks])
    return rows


def notes(rows: pd.DataFrame) -> list[str]:
    """The sentences that belong under the table."""
    lines = ["Mean ± standard deviation [95 % interval, corrected resampled t] over splits; C = 10, balanced classes."]
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


def markdown(rows: pd.DataFrame) -> str:
    """Table and notes as Markdown."""
    lines = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1), *cells(summary(rows))]
    return (
        "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n" + "".join(f"- {note}\n" for note in notes(rows))
    )
