"""Mean, spread and an honest interval of the results of resampled splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mil_zoo.errors import InputError


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and 95 % interval of ``n`` values; NaN where they are undefined.

    Attributes:
        mean: NaN for n = 0.
        sd: sample standard deviation (ddof 1); NaN for n < 2.
        low: lower end of the interval, never clipped to the metric's range; NaN for n < 2.
        high: upper end.
        n: number of values that were defined.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def summarise(values: Sequence[float | None], n_train: float, n_test: float) -> Summary:
    """Summary of one metric over repeated or k-fold splits, with the corrected resampled t interval.

    Training sets of different splits overlap, so their results are not independent, and the usual standard error
    s / sqrt(n) is too small. Nadeau and Bengio's correction takes the variance of the mean to be
    ``(1 / n + n_test / n_train) s^2``; the interval is ``mean ± t_(0.975, n - 1)`` of its root.

    Args:
        values: one a split; None and NaN (an undefined metric) are left out and not counted.
        n_train: slides in a training set (the mean over splits, where they differ).
        n_test: slides in a test set.

    Raises:
        InputError: ``n_train`` or ``n_test`` is not positive.

    Source:
        Nadeau & Bengio, Inference for the Generalization Error, Machine Learning 52 (2003); for repeated k-fold
        Bouckaert & Frank, Evaluating the Replicability of Significance Tests, PAKDD 2004.
    """
    if not (n_train > 0 and n_test > 0):
        raise InputError(
            f"a summary needs slides on both sides of a split, not {n_train} for training, {n_test} for test"
        )
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    n = len(numbers)
    if n < 2:
        return Summary(float(numbers[0]) if n else np.nan, np.nan, np.nan, np.nan, n)
    mean, sd = float(numbers.mean()), float(numbers.std(ddof=1))
    half_width = float(stats.t.ppf(0.975, n - 1)) * sd * float(np.sqrt(1 / n + n_test / n_train))
    return Summary(mean, sd, mean - half_width, mean + half_width, n)
