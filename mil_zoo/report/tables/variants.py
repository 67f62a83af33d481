"""The variants of a grid: metrics and attention skew against each setting that varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.report.load import Results

_COLUMNS = ["model", "option", "value", "rest", "name", "mean", "low", "high"]


@dataclass(frozen=True)
class Axis:
    """One grid of one aggregator.

    Attributes:
        model: registry key.
        option: what varies.
        rows: those of :func:`variant_table`: a row a value, rest of the grid and name.
    """

    model: str
    option: str
    rows: pd.DataFrame


def variant_table(results: Results) -> pd.DataFrame:
    """One row a variant and number, for aggregators with a grid.

    Columns: ``model``; ``option`` and ``value`` of one grid; ``rest``, the variant's other settings; ``name``: a metric
    (``mean``, ``low``, ``high``: over splits, corrected resampled t, cut to its bounds) or a number of attention
    (median and quartiles over test slides of all trials).
    """
    return results.once(_variants)


def axes_of(table: pd.DataFrame) -> list[Axis]:
    """The grids of a :func:`variant_table` with at least two values each."""
    groups = table.groupby(["model", "option"], sort=False)
    return [Axis(str(model), str(option), rows) for (model, option), rows in groups if rows["value"].nunique() > 1]


def _variants(results: Results) -> pd.DataFrame:
    rows = []
    for trials in results.finished.values():
        if not trials or not trials[0].grid:
            continue
        settings = dict(part.split("=", 1) for part in trials[0].grid.split(","))
        numbers = _numbers(results, trials)
        for option, value in settings.items():
            rest = ",".join(f"{key}={other}" for key, other in settings.items() if key != option)
            known = {"model": trials[0].aggregator, "option": option, "value": value, "rest": rest}
            rows += [
                known | {"name": name, "mean": m, "low": low, "high": high} for name, (m, low, high) in numbers.items()
            ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _numbers(results: Results, trials: Sequence[Trial]) -> dict[str, tuple[float, float, float]]:
    numbers = {}
    for metric in results.metrics:
        found = results.estimate(trials[0].label, metric.name)
        low, high = np.clip([found.low, found.high], *metric.bounds)
        numbers[metric.name] = found.mean, float(low), float(high)
    for name, group in results.test_skew(*trials).groupby("name"):
        low, middle, high = group["value"].quantile([0.25, 0.5, 0.75])
        numbers[str(name)] = middle, low, high
    return numbers
