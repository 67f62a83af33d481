"""What all estimators take, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil_zoo.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def times_and_events(time: ArrayLike, event: ArrayLike, whose: str = "patients") -> tuple[Floats, Bools]:
    """Times, float ``[n]``, and events, bool ``[n]``.

    Raises:
        InputError: other shapes, a time that is negative or no number, an event that is neither 0 nor 1, or nobody.
    """
    times, events = np.asarray(time, dtype=np.float64), np.asarray(event)
    if times.ndim != 1 or times.shape != events.shape or not len(times):
        raise InputError(
            f"the {whose} need a time and an event each, at least one of them; got {times.shape} and {events.shape}"
        )
    wrong = ~(times >= 0) | np.isinf(times)
    if wrong.any():
        place = int(wrong.argmax())
        raise InputError(f"the time of {whose}[{place}] is {times[place]:g}; a time is a number from 0")
    if events.dtype != np.bool_:
        wrong = (events != 0) & (events != 1)
        if wrong.any():
            place = int(wrong.argmax())
            raise InputError(
                f"the event of {whose}[{place}] is {events[place]}; 1 means that it happened, 0 that it did not"
            )
    return times, events.astype(np.bool_)


def of_patients(values: ArrayLike, n: int, what: str) -> Floats:
    """Float ``[n, ...]``, one a patient.

    Raises:
        InputError: another number of rows.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 1 or len(array) != n:
        raise InputError(f"{n} patients need {what} each; got an array of shape {array.shape}")
    return array


def missing(values: Floats, what: str) -> str:
    """Why values of patients ``[n, ...]`` cannot be scored: "3 of 50 patients have no risk (NaN)"; "" if all can."""
    gone = np.isnan(values).reshape(len(values), -1).any(1)
    return f"{int(gone.sum())} of {len(values)} patients have no {what} (NaN)" if gone.any() else ""


def weights_of(weights: ArrayLike | None, n: int) -> Floats:
    """Weights ``[n]`` or ``[R, n]``; 1 each for None.

    Raises:
        InputError: another number of patients.
    """
    if weights is None:
        return np.ones(n)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape[-1:] != (n,):
        raise InputError(f"{n} patients need a weight each; got an array of shape {array.shape}")
    return array


def ratio(above: Any, below: Any) -> Any:
    """``above / below``, NaN where below is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(below) > 0, above / np.where(np.asarray(below) > 0, below, 1), np.nan)
