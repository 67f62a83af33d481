"""Cells of prediction tables as numbers, splits, targets and ids."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.data.labels.columns import check_once
from mil_zoo.data.labels.dialects import decimal, words_for_unknown
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.tasks import Task

_CLASS = {"false": "0", "true": "1"}  # labels of two classes as programs write them
_TEST, _TRAINED = "test", ("train", "training", "val", "valid", "validation")


def plain(table: pd.DataFrame, names: Iterable[str], path: Path) -> pd.DataFrame:
    """The table with points for decimal commas in the columns ``names``, and nothing where they say so ("NA", "-").

    Raises:
        InputError: a column occurs twice, or its commas may part thousands.
    """
    own = [name for name in names if name in table]
    check_once(table, own, path)
    said: dict[str, Any] = {}
    for name in own:
        texts = table[name].astype(object)
        unknown = words_for_unknown(set(texts.dropna().map(str)))
        texts = texts.where(~texts.isin(unknown), None)
        said[name] = decimal(texts, f"{path}: {name}") if texts.notna().any() else texts
    return table.assign(**said)


def splits_of(table: pd.DataFrame, path: Path) -> pd.Series[str]:
    """ "train" (validation too), "test", or "" where a row does not say.

    Raises:
        InputError: a row says something else.
    """
    split = column(table, "split", "").str.lower()
    odd = ~split.isin(["", _TEST, *_TRAINED])
    if odd.any():
        raise InputError(
            f"{path}: row {int(odd.argmax()) + 2} has the split {split[odd.argmax()]!r}; write train, val or test"
        )
    return split.where(~split.isin(_TRAINED), "train")


def targets_of(table: pd.DataFrame, task: Task, path: Path) -> np.ndarray[Any, Any]:
    """The targets ``[n, T]``, of labels that are empty NaN; errors as ``Task.targets``."""
    if task.family == "survival":
        return task.targets(table, str(path))
    table = table.assign(label=[_CLASS.get(str(text).lower(), whole(text)) for text in table["label"]])
    known = table["label"].notna()
    numbers = [str(i) for i in range(len(task.prediction_columns))]
    if not table["label"][known].isin(numbers).all():
        row = table[known & ~table["label"].isin(numbers)].iloc[0]
        raise InputError(
            f"{path}: {row['slide_id']!r} has the label {row['label']!r}; write the number of its class, "
            f"0 to {numbers[-1]}, or nothing where it is unknown"
        )
    targets = np.full((len(table), 1), np.nan)
    targets[known] = task.targets(table[known], str(path))
    return targets


def numbers(table: pd.DataFrame, name: str, path: Path, remedy: str = "") -> np.ndarray[Any, Any]:
    """A column of text as float64 ``[n]``, exactly; NaN where it is empty. Of an error ``remedy`` says what to do.

    Raises:
        InputError: the column is missing, or a value is no number.
    """
    if name not in table:
        raise InputError(f"{path}: the column {name!r} is missing{did_you_mean(name, map(str, table.columns))}")
    values = np.empty(len(table))
    for i, (row, text) in enumerate(zip(table.index.tolist(), table[name], strict=True)):  # rows that were kept
        try:
            values[i] = np.nan if text is None else float(text.replace("_", "no digit"))
        except ValueError:
            raise InputError(f"{path}: row {row + 2} has {name} {text!r}, which is no number{remedy}") from None
        if np.isinf(values[i]):
            raise InputError(f"{path}: row {row + 2} has {name} {text!r}; write a finite number")
    return values


def column(table: pd.DataFrame, name: str, other: str) -> pd.Series[str]:
    """A column as text; ``other`` where the table has none, "" where it is empty."""
    if name not in table:
        return pd.Series(other, index=table.index, dtype=object)
    return table[name].astype(object).where(table[name].notna(), "")


def composed(name: str) -> str:
    """An id whose accents are written in one way."""
    return unicodedata.normalize("NFC", name)


def whole(text: Any) -> Any:
    """``"3.0"`` as ``"3"``, another text as it is."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text) if isinstance(text, str) else text
