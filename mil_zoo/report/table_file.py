"""Tables of a run as somebody kept them, without its trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo.data.labels.columns import check_once
from mil_zoo.data.labels.dialects import read_csv
from mil_zoo.errors import InputError
from mil_zoo.stats import Summary


def numbers_in(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Columns of numbers by ``aggregator[@grid]``; NaN where a column or a value is not there.

    Raises:
        InputError: the file is no table of a run, names an aggregator twice, or a value is no number.
    """
    remedy = f"bring back the {path.name} that the run wrote"
    table = read_csv(path, remedy)
    if "aggregator" not in table:
        raise InputError(f"{path} is no table of a run (it has no column aggregator); {remedy}")
    table = table.dropna(subset="aggregator")
    check_once(table, ["aggregator", *(name for name in names if name in table)], path)
    if (twice := table["aggregator"].duplicated()).any():
        raise InputError(f"{path} names {table['aggregator'][twice].iloc[0]!r} twice; {remedy}")
    numbers = table.set_index("aggregator").reindex(columns=list(names))
    try:
        return numbers.apply(pd.to_numeric).astype(float)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {', '.join(names)} hold something that is no number ({error}); {remedy}") from None


def summaries_in(path: Path, metric: str) -> dict[str, Summary]:
    """Summary of a metric by ``aggregator[@grid]``, of those that have one; errors as :func:`numbers_in`."""
    table = numbers_in(path, [f"{metric}_{part}" for part in ("mean", "sd", "low", "high", "n")])
    rows = table[np.isfinite(table.iloc[:, [0, -1]]).all(axis=1)]
    return {
        str(label): Summary(mean, sd, low, high, int(n))
        for label, (mean, sd, low, high, n) in zip(rows.index, rows.to_numpy(), strict=True)
    }
