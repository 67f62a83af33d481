"""What the spread of results is made of: splits, seeds, and what belongs to neither."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError
from mil_zoo.stats.resampling import Floats


@dataclass(frozen=True)
class Components:
    """Result of :func:`variance_components`.

    Attributes:
        split, seed, rest: variances; those that came out negative are 0.
        raw: the same as the method gives them, (split, seed, rest).
        splits, seeds: their numbers.
    """

    split: float
    seed: float
    rest: float
    raw: tuple[float, float, float]
    splits: int
    seeds: int

    @property
    def negative(self) -> list[str]:
        """Which of them came out negative: "split", "seed"."""
        return [name for name, value in zip(("split", "seed"), self.raw[:2], strict=True) if value < 0]

    @property
    def total(self) -> float:
        """Variance of one result, of any split and seed."""
        return self.split + self.seed + self.rest


def variance_components(values: npt.ArrayLike) -> Components:
    """Variances of a two-way random-effects model by the method of moments.

    ``y_fs = mean + split_f + seed_s + rest_fs`` for results of every split f with every seed s. With the mean squares
    of the analysis of variance, ``rest = MS_rest``, ``split = (MS_split - MS_rest) / S`` and ``seed = (MS_seed -
    MS_rest) / F``. A component that is 0 comes out negative in about half of all tables: it is then given as 0, and
    ``raw`` keeps it.

    ::

        variance_components([[0.80, 0.82], [0.90, 0.92], [0.70, 0.72]])  # split .01, seed .0002, rest 0

    Args:
        values: ``[F, S]``, without gaps; a row a split, a column a seed.

    Raises:
        InputError: fewer than two splits or seeds, or a value is missing.

    Source: Searle, Casella & McCulloch, Variance Components (1992), section 4.3.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 2 or min(y.shape) < 2 or not np.isfinite(y).all():
        raise InputError(f"variance components need a table [splits, seeds], two of each at least, not {y.shape}")
    splits, seeds = y.shape
    rows, columns, mean = y.mean(1), y.mean(0), y.mean()
    rest = _tiny(((y - rows[:, None] - columns + mean) ** 2).sum() / ((splits - 1) * (seeds - 1)), y)
    by_split = _tiny(seeds * ((rows - mean) ** 2).sum() / (splits - 1), y)
    by_seed = _tiny(splits * ((columns - mean) ** 2).sum() / (seeds - 1), y)
    raw = (by_split - rest) / seeds, (by_seed - rest) / splits, rest
    return Components(max(raw[0], 0.0), max(raw[1], 0.0), rest, raw, splits, seeds)


def _tiny(square: float, y: Floats) -> float:
    """A mean square; 0 where it is rounding."""
    return 0.0 if square < 1e-24 * max(1.0, float(np.abs(y).max())) ** 2 else float(square)
