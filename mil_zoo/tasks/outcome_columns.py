"""The columns of a label table that say what became of a patient: a number, when something happened, whether it did."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil_zoo.errors import InputError, did_you_mean

MONTHS = {"days": 30.4375, "months": 1.0, "years": 1 / 12}  # of a unit in a month; a year has 365.25 days
_LONGEST = 150 * 12  # months: nobody is followed for longer, so the unit is another
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
_SHOWN = 5


def read_numbers(table: pd.DataFrame, column: str, where: str, task: str) -> NDArray[np.float64]:
    """A column of numbers ``[n]``, NaN where it is empty.

    Args:
        table: text columns; "slide_id" names the slide.
        column: its name.
        where: what the table is, for messages.
        task: whose column it is, for messages.

    Raises:
        InputError: the column is missing, or a value is no finite number (the message names the slide).
    """
    if column not in table:
        near = did_you_mean(column, table.columns)
        raise InputError(f"{where}: the column {column!r} of the task {task} is missing{near}")
    values = pd.to_numeric(table[column], errors="coerce")
    wrong = values.isna() & table[column].notna() | ~np.isfinite(values.fillna(0))
    if wrong.any():
        row = table[wrong].iloc[0]
        what = f"slide {row['slide_id']!r} has {column} {row[column]!r}, which is no number"
        raise InputError(f"{where}: {what}; correct it, or leave it empty where it is unknown")
    return np.asarray(values.to_numpy(dtype=np.float64))


def unit_in(name: str) -> str:
    """The unit that the end of a column's name states ("os_days"); "" where it states none."""
    ending = name.lower().rpartition("_")[2]
    return ending if ending in MONTHS else ""


def find_times(header: Sequence[str]) -> list[str]:
    """The columns that may hold the times where nothing names them: ``time``, or ``time_`` with a unit."""
    return [name for name in header if re.fullmatch(r"time(_(days|months|years))?", name.lower())]


def find_event(header: Sequence[str]) -> str:
    """The column called ``event``; "" where there is none."""
    return next((name for name in header if name.lower() == "event"), "")


def find_censorship(header: Sequence[str]) -> str:
    """The column whose name says that 1 is censored (``censorship``); "" where there is none."""
    return next((name for name in header if name.lower().startswith("censor")), "")


def check_direction(column: str, as_event: bool) -> None:
    """Refuses a column whose name says the opposite of what it is given as.

    Raises:
        InputError: a ``censorship`` given as event, or an ``event``, ``status``, ``dead`` ... given as censorship.
    """
    words = column.lower().split("_")
    if as_event and (any(word.startswith("censor") for word in words) or column.lower() == "c"):
        raise InputError(
            f"--event {column}: by its name the column is 1 where a patient is censored; pass --censorship {column}, "
            "or add --event-as-named where 1 means that the event happened"
        )
    happened = any(word.startswith("event") or word in ("dead", "status") for word in words)
    if not as_event and (happened or column.lower() == "e"):
        raise InputError(
            f"--censorship {column}: by its name the column is 1 where the event happened; pass --event {column}, or "
            "add --event-as-named where 1 means censored"
        )


def read_flags(table: pd.DataFrame, column: str, meaning: Mapping[str, int], where: str) -> NDArray[np.float64]:
    """A column of yes and no ``[n]``: 1, 0, or NaN where it is empty.

    Args:
        table: text columns.
        column: its name; values are 1 and 0 (also ``1.0``, ``true``), or those that ``meaning`` gives.
        meaning: 1 or 0 of each text; empty for the values above.
        where: what the table is, for messages.

    Raises:
        InputError: another value; the rows are named. Nothing is guessed: 2 is not yes.
    """
    text = table[column].astype(object)
    known = dict(meaning) or {**dict.fromkeys(_TRUE, 1), **dict.fromkeys(_FALSE, 0)}
    plain = text if meaning else text.str.lower()
    odd = text.notna() & ~plain.isin(list(known))
    if odd.any():
        rows = table[odd]
        shown = ", ".join(f"{slide!r} {value!r}" for slide, value in zip(rows["slide_id"], text[odd], strict=True))
        shown = ", ".join(shown.split(", ")[:_SHOWN])
        takes = ", ".join(known) if meaning else "0 and 1 (true and false)"
        raise InputError(
            f"{where}: the column {column!r} takes {takes}, not what {int(odd.sum())} slides have ({shown}); "
            f"{_remedy(text.dropna())}"
        )
    return np.asarray(plain.map(known).to_numpy(dtype=np.float64))


def _remedy(texts: pd.Series[str]) -> str:
    """What to do with a column of other texts than yes and no: they may be times, or two words."""
    values = sorted(texts.unique())
    if len(values) > 2 and pd.to_numeric(texts, errors="coerce").gt(1).mean() > 0.5:
        return "they look like times: name the column that says whether the event happened, and this one with --time"
    if len(values) == 2:
        one, other = values
        return f"say which of them is the event: --event-values {one}=1,{other}=0, or {one}=0,{other}=1"
    return "leave unknown ones empty, or say what texts mean: --event-values died=1,alive=0"


def parse_meaning(pairs: Sequence[str]) -> dict[str, int]:
    """``["died=1", "alive=0"]`` as a mapping.

    Raises:
        InputError: a pair is not ``TEXT=1`` or ``TEXT=0``.
    """
    meaning = {}
    for pair in pairs:
        text, equals, value = pair.rpartition("=")
        if not equals or value.strip() not in ("0", "1"):
            raise InputError(f"--event-values {pair!r}: write TEXT=1 for the event and TEXT=0 for none, as died=1")
        meaning[text.strip()] = int(value)
    return meaning


def check_times(times: NDArray[np.float64], slide_ids: Sequence[str], unit: str, where: str) -> None:
    """Refuses times before 0, and times longer than a life: those are of another unit.

    Raises:
        InputError: the message names a slide.
    """
    negative = np.flatnonzero(times < 0)
    if len(negative):
        raise InputError(
            f"{where}: slide {slide_ids[negative[0]]!r} has the time {times[negative[0]]:g}, before 0 "
            f"({len(negative)} such slides); correct it or leave it empty"
        )
    if unit and len(times) and np.nanmax(times, initial=0) / MONTHS[unit] > _LONGEST:
        row = int(np.nanargmax(times))
        raise InputError(
            f"{where}: slide {slide_ids[row]!r} has a time of {times[row]:g} {unit}, more than 150 years; say the unit "
            "with --time-unit (days, months, years)"
        )
