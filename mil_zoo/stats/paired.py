"""Tests of the difference between two aggregators that predicted the same slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from mil_zoo.errors import InputError
from mil_zoo.stats.intervals import Summary, summarise
from mil_zoo.stats.resampling import Floats, Ints, TestSet


@dataclass(frozen=True)
class DeLong:
    """Result of :func:`delong_test`.

    Attributes:
        auc_a, auc_b: areas, means over seeds and splits.
        difference: a - b.
        se: standard error of the difference.
        p: two-sided; 1 where the difference is 0, NaN where it is not but its standard error is.
    """

    auc_a: float
    auc_b: float
    difference: float
    se: float
    p: float


def corrected_t_test(differences: Sequence[float | None], n_train: float, n_test: float) -> tuple[Summary, float]:
    """Two-sided corrected resampled t-test of the differences between two aggregators on the same splits.

    Args:
        differences: a - b, one a split; None and NaN are left out.
        n_train: slides in a training set.
        n_test: slides in a test set.

    Returns:
        the difference with its interval, and p: 1 where all differences are 0, NaN for fewer than two of them or where
        all are equal and not 0.

    Source: Nadeau & Bengio 2003, see :func:`summarise`.
    """
    summary = summarise(differences, n_train, n_test)
    if summary.n < 2:
        return summary, np.nan
    if summary.sd == 0:
        return summary, 1.0 if summary.mean == 0 else np.nan
    error = summary.sd * np.sqrt(1 / summary.n + n_test / n_train)
    return summary, float(2 * stats.t.sf(abs(summary.mean) / error, summary.n - 1))


def wilcoxon_test(differences: Sequence[float | None]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; ranks of zero differences are split between the signs (Demšar 2006).

    Over datasets its assumptions hold; over folds they do not (folds share training slides), and p is too small.
    """
    values = np.array([np.nan if value is None else value for value in differences], dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan
    return 1.0 if not values.any() else float(stats.wilcoxon(values, zero_method="zsplit").pvalue)


def delong_test(a: Sequence[TestSet], b: Sequence[TestSet], repeats: int = 1) -> DeLong:
    """DeLong's test of two AUCs on the same slides, for two classes, by midranks.

    Seeds are averaged: their structural components are. Over the folds of a cross-validation, whose test sets are
    disjoint, variances add up; repeats of it predict the same slides again, so they do not make the error smaller.

    Args:
        a: test sets of one aggregator, one a split.
        b: those of the other, same splits and slides.
        repeats: how often the splits go through the dataset.

    Raises:
        InputError: more than two classes, one class only, or different slides.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988); Sun & Xu, IEEE Signal Processing Letters 21 (2014).
    """
    areas, variances = [], []
    for left, right in _pairs(a, b):
        if left.probabilities.shape[2] != 2 or len(np.unique(left.labels)) != 2:
            raise InputError("DeLong's test compares areas of two classes, both present in every test set")
        positive = left.labels == 1
        both = [_components(positive, part.probabilities[:, :, 1]) for part in (left, right)]
        areas.append([up.mean() for up, _ in both])
        cases, controls = both[0][0] - both[1][0], both[0][1] - both[1][1]
        variances.append(_variance(cases) / len(cases) + _variance(controls) / len(controls))
    auc_a, auc_b = np.mean(areas, axis=0)
    # n variances: of a repeat's n / repeats folds, summed, over the square of their number.
    se = float(np.sqrt(np.sum(variances) * repeats) / len(variances))
    difference = float(auc_a - auc_b)
    return DeLong(float(auc_a), float(auc_b), difference, se, _two_sided(difference, se))


def permutation_test(
    a: Sequence[TestSet],
    b: Sequence[TestSet],
    metric: Literal["accuracy", "auc"],
    permutations: int = 2000,
    seed: int = 0,
) -> float:
    """Two-sided p of the difference in a metric when the two aggregators' predictions are exchanged patient by patient.

    The statistic is the mean over splits (and seeds) of the difference; p = (1 + as large or larger) / (1 + draws). The
    training slides stay as they were. The area is of class 1, or with more classes of each against the rest.

    Raises:
        InputError: different slides.
    """
    rng = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(permutations)
    pairs = _pairs(a, b)
    # A patient whom several splits test (repeats do) is exchanged in all of them or in none.
    patients = np.unique(np.concatenate([left.patients for left, _ in pairs]))
    exchanged = rng.random((permutations, len(patients))) < 0.5
    for left, right in pairs:
        swap = exchanged[:, np.searchsorted(patients, left.patients)]  # [R, n]
        seeds = list(zip(left.probabilities, right.probabilities, strict=True))
        for one, other in seeds:
            first = _scores(left.labels, one, metric), _scores(left.labels, other, metric)  # each [K, n]
            for x, y, positive in zip(*first, _positives(left, metric), strict=True):
                share = len(seeds) * len(first[0])
                observed += (_value(x[None], positive) - _value(y[None], positive)).item() / share
                drawn += (_value(np.where(swap, y, x), positive) - _value(np.where(swap, x, y), positive)) / share
    as_large = np.abs(drawn) >= abs(observed) - 1e-12
    return float((1 + as_large.sum()) / (1 + permutations))


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's step-down adjustment, for any dependence; NaN is no test and stays NaN."""
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(p)
    adjusted = np.full(len(p), np.nan)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method="holm")[1]
    return adjusted


def _pairs(a: Sequence[TestSet], b: Sequence[TestSet]) -> list[tuple[TestSet, TestSet]]:
    pairs = list(zip(a, b, strict=False))
    same = len(a) == len(b) > 0 and all(
        np.array_equal(left.labels, right.labels)
        and np.array_equal(left.patients, right.patients)
        and left.probabilities.shape == right.probabilities.shape
        for left, right in pairs
    )
    if not same:
        raise InputError("a paired test needs the predictions of both aggregators on the same slides and seeds")
    return pairs


def _components(positive: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Structural components of the area, mean over seeds: of the positives ``[m]`` and of the negatives ``[n]``.

    The component of a positive is the share of negatives below it, of a negative that of the positives above it.
    """
    up, down = scores[:, positive], scores[:, ~positive]
    m, n = up.shape[1], down.shape[1]
    ranks = stats.rankdata(scores, axis=1)
    of_up = (ranks[:, positive] - stats.rankdata(up, axis=1)) / n
    of_down = 1 - (ranks[:, ~positive] - stats.rankdata(down, axis=1)) / m
    return of_up.mean(0), of_down.mean(0)


def _two_sided(difference: float, se: float) -> float:
    if abs(difference) < 1e-12:
        return 1.0
    return float(2 * stats.norm.sf(abs(difference) / se)) if se > 1e-12 else np.nan


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _scores(labels: Ints, probabilities: Floats, metric: str) -> Floats:
    """What is exchanged, ``[K, n]``: whether a slide is right, or the probability of each class that is scored."""
    if metric == "accuracy":
        return np.asarray(probabilities.argmax(1) == labels, dtype=np.float64)[None]
    return np.asarray(probabilities.T[1:] if probabilities.shape[1] == 2 else probabilities.T)


def _positives(part: TestSet, metric: str) -> list[npt.NDArray[np.bool_] | None]:
    if metric == "accuracy":
        return [None]
    classes = part.probabilities.shape[2]
    return [part.labels == c for c in ([1] if classes == 2 else range(classes))]


def _value(scores: Floats, positive: npt.NDArray[np.bool_] | None) -> Floats:
    """Mean of ``scores`` ``[R, n]``, or with ``positive`` ``[n]`` their area under the ROC curve, ``[R]``."""
    if positive is None:
        return np.asarray(scores.mean(1))
    m, n = positive.sum(), (~positive).sum()
    ranks = stats.rankdata(scores, axis=1)[:, positive].sum(1)
    return np.asarray((ranks - m * (m + 1) / 2) / (m * n))
