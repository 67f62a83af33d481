"""What the scores vary by: the split, the seed, or what belongs to neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Document, Table
from mil_zoo.report.test_parts import scores_of
from mil_zoo.stats import variance_components


def variance_table(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]`` and metric, where several seeds were trained on several splits.

    Columns: ``metric``, ``aggregator``, ``splits``, ``seeds``, ``split_sd``, ``seed_sd``, ``rest_sd`` (roots of the
    components of a two-way random-effects model), ``split_share``, ``seed_share``, ``rest_share`` of their sum, and
    ``split_raw``, ``seed_raw``, ``rest_raw``, the components as the method of moments gives them. Splits that lack a
    seed are left out.
    """
    return results.once(_variances)


def shown_variances(results: Results) -> Document:
    """The headline metrics as they are read."""
    rows, negative = [], False
    titles = {metric.name: metric.title for metric in results.headline}
    for row in variance_table(results).to_dict("records"):
        if row["metric"] not in titles:
            continue
        cells = []
        for part in ("split", "seed", "rest"):
            below = row[f"{part}_raw"] < 0
            negative |= below
            share = f" ({row[f'{part}_share']:.0%})" if row[f"{part}_share"] == row[f"{part}_share"] else ""
            cells.append(f"{row[f'{part}_sd']:.4f}{share}" + "*" * below)
        rows.append([titles[row["metric"]], row["aggregator"], row["splits"], row["seeds"], *cells])
    header = ["Metric", "Aggregator", "Splits", "Seeds", "Split", "Seed", "Rest"]
    several = len({results.test_set_of(trial.split) for trial in results.trials}) > 1
    notes = [_COMPONENTS, _OVER_SPLITS if several else _OVER_PATIENTS, *[_NEGATIVE] * negative]
    return Document("variance", "What scores vary by", [Table(header, rows, notes)])


_COMPONENTS = (
    "Standard deviation of a score from split to split, from seed to seed, and of the rest (how a seed fares on a "
    "split, and noise), with its share of the variance of one result: more seeds can only reduce the last two, and a "
    "difference between two single trainings that is not larger than them may be chance. Two-way random effects, "
    "method of moments."
)
_OVER_SPLITS = (
    "The interval of a mean is over test sets, with seeds averaged: it holds the variance of the splits, and that of "
    "the others as far as these seeds have averaged it."
)
_OVER_PATIENTS = (
    "All splits test the same patients: the interval of a mean is over the choice of these and holds nothing of this "
    "table, whose splits are those of training and validation slides."
)
_NEGATIVE = "*: the method gives a negative component, which is shown as 0: it is too small to be told from none."


def _variances(results: Results) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for metric in results.metrics:
        for label, trials in results.finished.items():
            cells = {(trial.split, trial.seed): scores_of(trial).get(metric.name) for trial in trials}
            seeds = sorted({seed for _, seed in cells})
            splits = [
                split
                for split in sorted({split for split, _ in cells})
                if all(cells.get((split, seed)) is not None for seed in seeds)
            ]
            if len(splits) < 2 or len(seeds) < 2:
                continue
            found = variance_components(np.array([[cells[split, seed] for seed in seeds] for split in splits], float))
            row: dict[str, Any] = {
                "metric": metric.name,
                "aggregator": label,
                "splits": len(splits),
                "seeds": len(seeds),
            }
            parts = {"split": found.split, "seed": found.seed, "rest": found.rest}
            row |= {f"{name}_sd": float(np.sqrt(value)) for name, value in parts.items()}
            row |= {f"{name}_share": value / found.total if found.total else np.nan for name, value in parts.items()}
            row |= {f"{name}_raw": value for name, value in zip(parts, found.raw, strict=True)}
            rows.append(row)
    return pd.DataFrame(rows)
