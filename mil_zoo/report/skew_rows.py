"""What the trials of a run recorded of their attention (``skew.csv``), read and summed for many trials at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mil_zoo.bench.run_directory import RunDirectory

TINY = 2  # instances: in a bag of no more one always holds half of the attention, whatever the aggregator does
TINY_BAGS = "tiny_bags"  # the name under which the training rows count them


class SkewRows(NamedTuple):
    """The rows of several trials, one trial after the other.

    Attributes:
        test: trial, epoch, slide_id, split, name, value of the test slides, as the files have them.
        training: trial, epoch, name, ``sum`` and ``count`` over the training slides.
    """

    test: pd.DataFrame
    training: pd.DataFrame


def skew_rows(run: RunDirectory, named: Sequence[str], trials: Sequence[str], first: int = 0) -> SkewRows:
    """Reads the files of ``trials``.

    Args:
        run: where they lie.
        named: those of ``trials`` whose row says that there is a file.
        trials: names of trials; one without a file has no rows.
        first: the column ``trial`` counts ``trials`` from here.

    Raises:
        InputError: a file is missing or was changed.
    """
    tables = run.tables(named, "skew.csv")
    ordered = [tables[trial] if trial in tables else run.skew(trial) for trial in trials]
    lengths = [len(table) for table in ordered]
    rows = pd.concat([table for table in ordered if len(table)] or ordered, ignore_index=True)
    rows.insert(0, "trial", np.repeat(np.arange(first, first + len(trials)), lengths))
    if not len(rows):
        return SkewRows(rows, pd.DataFrame(columns=["trial", "epoch", "name", "sum", "count"]))
    split = rows["split"].to_numpy(dtype=object)
    return SkewRows(rows[split == "test"], _sums(rows[split == "train"]))


def _sums(train: pd.DataFrame) -> pd.DataFrame:
    """Sum and count by trial, epoch and name.

    Of ``high_count`` they are of slides that hold such an instance, tiny bags left out; these have a name of their own.
    """
    # Rows are compared and grouped by whole numbers: that is fast.
    place, names = pd.factorize(np.append(train["name"].to_numpy(dtype=object), TINY_BAGS), sort=True)
    number = {name: i for i, name in enumerate(names)}
    rows = pd.DataFrame(
        {
            "trial": train["trial"].to_numpy(),
            "epoch": train["epoch"].to_numpy(),
            "slide_id": pd.factorize(train["slide_id"].to_numpy(dtype=object))[0],
            "name": place[:-1],
            "value": train["value"].to_numpy(dtype=np.float64),
        }
    )
    of_high = rows["name"].to_numpy() == number.get("high_count", -1)
    rows.loc[of_high, "value"] = (rows["value"][of_high] > 0).astype(float)
    tiny = _tiny(rows, number)
    marks = rows[["trial", "epoch"]].drop_duplicates().merge(tiny, on="trial").assign(name=number[TINY_BAGS])
    held = rows[of_high][["trial", "slide_id"]].merge(tiny[tiny["value"] > 0], how="left")
    rows = rows.drop(index=rows.index[of_high][held["value"].notna()])
    sums = pd.concat([rows, marks]).groupby(["trial", "epoch", "name"])["value"].agg(["sum", "count"]).reset_index()
    return sums.assign(name=names[sums["name"]])


def _tiny(train: pd.DataFrame, number: Mapping[str, int]) -> pd.DataFrame:
    """trial, slide_id, and ``value``: 1 where a training slide's bag is tiny, else 0. N is N x maximum over maximum."""
    n_x_max, largest = (number.get(name, -1) for name in ("n_x_max", "max_attention"))
    first = train[train["epoch"] == train.groupby("trial")["epoch"].transform("min")]
    first = first[first["name"].isin([n_x_max, largest])]
    wide = first.drop_duplicates(["trial", "slide_id", "name"]).pivot(
        index=["trial", "slide_id"], columns="name", values="value"
    )
    if not {n_x_max, largest} <= set(wide):
        return train.iloc[:0][["trial", "slide_id", "value"]]
    instances = (wide[n_x_max] / wide[largest]).round()
    instances = instances[instances.groupby("trial").transform("count") > 0]
    return (instances <= TINY).astype(float).rename("value").reset_index()
