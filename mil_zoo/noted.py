"""A number with a sentence on it: why it is undefined, or what its reader must know."""

from __future__ import annotations

import re
from math import nan


class Noted(float):
    """A float that carries a note. It counts, prints and compares as the float that it is.

    ::

        value = undefined("no comparable pair")
        math.isnan(value), note_of(value)  # (True, 'no comparable pair')

    Attributes:
        note: of NaN the reason; of a number a remark that belongs beside it ("constant risk").
    """

    note: str

    def __new__(cls, value: float, note: str) -> Noted:
        self = super().__new__(cls, value)
        self.note = note
        return self

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]  # so that it can be copied and pickled
        return float(self), self.note


def undefined(reason: str) -> Noted:
    """NaN, with the reason."""
    return Noted(nan, reason)


def note_of(value: float) -> str:
    """The note on a value; "" where it has none."""
    return value.note if isinstance(value, Noted) else ""


def with_unit_of_time(value: float, unit: str) -> float:
    """The value, whose note's times ("beyond time 91.3") have their unit ("beyond time 91.3 days")."""
    if not unit or not (note := note_of(value)):
        return value
    return Noted(value, re.sub(r"\btime (\d+(?:\.\d+)?(?:e[+-]\d+)?)", rf"time \1 {unit}", note))
