"""The csv files of trials as tables: numbers to their last digit, names as text, and many files at once."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from packaging.version import Version
from pandas.api.types import is_numeric_dtype

# Digits that say the same number again: since 3.1 pandas reads no others, and warns of the word.
_EXACT: dict[str, Any] = {} if Version(pd.__version__) >= Version("3.1") else {"float_precision": "round_trip"}
_NAMES = ("slide_id", "patient_id")  # text, also where it is NA, null, None or 007
_TEXT = (*_NAMES, "split", "name")  # columns of text in every file


def read_csv(content: bytes) -> pd.DataFrame:
    """The table in a csv; a ``ValueError`` of pandas where it is none."""
    header = content.partition(b"\n")[0].decode().split(",")
    table: pd.DataFrame = pd.read_csv(
        io.BytesIO(content),
        **_EXACT,
        dtype={column: str for column in _NAMES if column in header},
        keep_default_na=False,
        na_values={column: [""] if column in _NAMES else ["", "nan"] for column in header},
    )
    return table


def read_together(contents: Mapping[str, bytes]) -> dict[str, pd.DataFrame]:
    """The tables of several trials, each as :func:`read_csv` gives it; those are missing that must be read alone.

    Files of one header are read as one. A column's type is that of a file alone: one that is all whole numbers, in a
    column that is not so elsewhere, is to be read by itself, and so is one that is at fault.
    """
    of_header: dict[bytes, dict[str, bytes]] = {}
    found: dict[str, pd.DataFrame] = {}
    for trial, content in contents.items():
        header, _, rows = content.partition(b"\n")
        of_header.setdefault(header, {})[trial] = rows
    for header, parts in of_header.items():
        try:
            table = read_csv(b"\n".join([header, b"".join(parts.values())]))
            ends = np.cumsum([rows.count(b"\n") for rows in parts.values()])
            mixed = [column for column in table if not is_numeric_dtype(table[column]) and column not in _TEXT]
            if ends[-1] != len(table) or mixed:
                raise ValueError
        except (ValueError, pd.errors.ParserError):
            continue
        decimal = [column for column in table if table[column].dtype.kind == "f"]
        values = table[decimal].to_numpy()
        whole = np.column_stack([values == np.rint(values), np.zeros(len(values), dtype=bool)])
        for trial, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            if not whole[start:end].all(0).any():
                found[trial] = part = table.iloc[start:end]
                part.index = pd.RangeIndex(end - start)
    return found
