"""Which numbers of slides a published accuracy or area can come from, if any.

An accuracy is k / n, and an area under the ROC curve j / 2mn: published with enough digits, they tell what they were
computed of; no number of slides fits a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mil_zoo.stats.resampling import Ints

_MOST_DIGITS = 11  # numbers written in full are rounded in their 16th digit, and sums of them earlier


def half_unit(text: str) -> float:
    """Half a unit in the last digit of a number as it is written; ``"0.815"`` gives 0.0005, ``"81.5e-2"`` too.

    Numbers written in full (11 decimals or more) were rounded by the computer: 5e-12.
    """
    mantissa, _, exponent = text.strip().lower().lstrip("+-").partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return float(0.5 * 10.0 ** -min(decimals, _MOST_DIGITS))


def fits(value: float, error: float, n: int) -> bool:
    """Whether a share of ``n``, k / n for a whole k, is ``value`` but for ``error``."""
    return bool(abs(round(value * n) / n - value) <= error * (1 + 1e-9) + 1e-15)


def possible_sizes(values: Sequence[float], errors: Sequence[float], most: int) -> Ints:
    """The numbers n up to ``most`` of which every value is a share k / n.

    ::

        possible_sizes([0.815], [0.0005], 40)  # 27, ...: 22 of 27 is .8148

    Args:
        values: accuracies on the same slides.
        errors: half a unit in the last digit of each, see :func:`half_unit`.
        most: slides that there can be.
    """
    n = np.arange(1, most + 1, dtype=np.float64)
    fit = np.ones(most, dtype=np.bool_)
    for value, error in zip(values, errors, strict=True):
        fit &= np.abs(np.rint(value * n) / n - value) <= error * (1 + 1e-9) + 1e-15
    return np.asarray(n[fit], dtype=np.int64)


def possible_positives(areas: Sequence[float], errors: Sequence[float], n: int) -> Ints:
    """The smaller class sizes m of ``n`` slides for which every area is j / (2 m (n - m)) for a whole j.

    Args:
        areas: under the ROC curve, of two classes, on the same slides.
        errors: half a unit in the last digit of each.
        n: slides.
    """
    m = np.arange(1, n // 2 + 1, dtype=np.float64)
    pairs = 2 * m * (n - m)
    fit = np.ones(len(m), dtype=np.bool_)
    for value, error in zip(areas, errors, strict=True):
        fit &= np.abs(np.rint(value * pairs) / pairs - value) <= error * (1 + 1e-9) + 1e-15
    return np.asarray(m[fit], dtype=np.int64)
