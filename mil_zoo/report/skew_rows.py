"""What the trials of a run recorded of their attention (``skew.csv``), read and summed for many trials at a time."""

from __future__ import annotations

from collections.abc import Sequence
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
    return SkewRows(rows[rows["split"] == "test"], _sums(rows[rows["split"] == "train"]))


def _sums(train: pd.DataFrame) -> pd.DataFrame:
    """Sum and count by trial, epoch and name.

    Of ``high_count`` they are of slides that hold such an instance, tiny bags left out; these have a name of their own.
    """
    train = train.assign(value=train["value"].where(train["name"] != "high_count", train["value"] > 0).astype(float))
    tiny = _tiny(train)
    marks = train[["trial", "epoch"]].drop_duplicates().merge(tiny, on="trial")
    held = train[train["name"] == "high_count"][["trial", "slide_id"]].merge(tiny[tiny["value"] > 0], how="left")
    train = train.drop(index=train.index[train["name"] == "high_count"][held["value"].notna()])
    train = pd.concat([train, marks.assign(split="train", name=TINY_BAGS)])
    return train.groupby(["trial", "epoch", "name"])["value"].agg(["sum", "count"]).reset_index()


def _tiny(train: pd.DataFrame) -> pd.DataFrame:
    """trial, slide_id, and ``value``: 1 where a training slide's bag is tiny, else 0. N is N x maximum over maximum."""
    first = train[train["epoch"] == train.groupby("trial")["epoch"].transform("min")]
    wide = first.drop_duplicates(["trial", "slide_id", "name"]).pivot(
        index=["trial", "slide_id"], columns="name", values="value"
    )
    if not {"n_x_max", "max_attention"} <= set(wide):
        return train.iloc[:0][["trial", "slide_id", "value"]]
    instances = (wide["n_x_max"] / wide["max_attention"]).round()
    instances = instances[instances.groupby("trial").transform("count") > 0]
    return (instances <= TINY).astype(float).rename("value").reset_index()
