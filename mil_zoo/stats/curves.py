"""ROC and precision-recall curves of several splits, with bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from mil_zoo.errors import InputError
from mil_zoo.metrics import ranks_of_class
from mil_zoo.stats.intervals import summarise
from mil_zoo.stats.resampling import Floats, TestSet, distinct_test_sets, drawn_variance

POINTS = 101


@dataclass(frozen=True)
class Curve:
    """A curve averaged at fixed places.

    Attributes:
        x: false-positive rate (ROC) or recall (PR), ``[POINTS]`` from 0 to 1.
        y: mean true-positive rate, or precision.
        low: lower end of the pointwise 95 % band, in [0, 1]; NaN where there is none.
        high: upper end.
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats


def mean_curve(
    test_sets: Sequence[TestSet], kind: Literal["roc", "pr"], n_train: float, n_test: float, of_class: int = 1
) -> Curve:
    """Mean over splits (and seeds) of the curve of ``of_class`` against the rest, at each x.

    The ROC curve is read between its points along straight lines, the PR curve at the best precision of this recall or
    more, since straight lines between its points are too high (Davis & Goadrich, ICML 2006). The band is the corrected
    resampled t interval at each x over test sets, cut to [0, 1], and NaN where all of them have the same value; of a
    single test set (whatever the number of splits that share it), Jeffreys' interval of a share with an effective
    number of patients, see :func:`patient_band`.

    Args:
        test_sets: one a split.
        kind: "roc" or "pr".
        n_train: slides in a training set.
        n_test: slides in a test set.
        of_class: the class.

    Raises:
        InputError: the class, or its rest, is absent from a test set.
    """
    for part in test_sets:
        if len(np.unique(part.labels == of_class)) < 2:
            raise InputError(f"a curve of class {of_class} needs slides of it and of others in every test set")
    x = np.linspace(0, 1, POINTS)
    ones = [np.ones((1, len(part.labels))) for part in test_sets]
    rows = np.concatenate(
        [_curves(part, weights, kind, of_class) for part, weights in zip(test_sets, ones, strict=True)]
    )
    number = np.array(distinct_test_sets([part.patients for part in test_sets]))
    if number.max() > 0:
        rows = np.stack([rows[number == place].mean(0) for place in range(number.max() + 1)])
        summaries = [summarise(column.tolist(), n_train, n_test) for column in rows.T]
        low, high = np.array([[summary.low, summary.high] for summary in summaries]).T
        return Curve(x, rows.mean(0), low.clip(0, 1), high.clip(0, 1))
    low, high = patient_band(test_sets, kind, rows.mean(0), of_class)
    return Curve(x, rows.mean(0), low, high)


def patient_band(
    test_sets: Sequence[TestSet], kind: Literal["roc", "pr"], y: Floats, of_class: int = 1
) -> tuple[Floats, Floats]:
    """Pointwise 95 % band of a curve over the choice of the patients of one test set; it has a width where y is 1, too.

    At each x the curve is a share: of positive patients who are found (ROC), of patients called positive who are so
    (PR). Jeffreys' interval of a share v of n is from the quantiles of ``Beta(v n + 1/2, (1 - v) n + 1/2)``, with 0 and
    1 for the ends beyond v = 0 and 1. The effective n is ``v (1 - v) / variance`` by a bootstrap over patients, which
    counts the choice of the threshold and the slides of a patient, and no more than the patients of the share.

    Where the threshold itself is hardly known, the lower end is lowered: a false-positive rate lies between those of
    two negative patients, so that the ROC curve's is read half a negative patient to the left, and below the first of
    them falls straight to 0; beyond the last positive patient but one the PR curve's falls to the share of positive
    slides, which is the precision of calling every slide positive.

    Args:
        test_sets: one a split, all of one test set.
        kind: "roc" or "pr".
        y: the mean curve, ``[POINTS]``.
        of_class: the class.

    Source:
        Brown, Cai & DasGupta, Interval Estimation for a Binomial Proportion, Statistical Science 16 (2001); effective
        sizes: Korn & Graubard, Survey Methodology 24 (1998). Coverage: ``benchmarks/results/statistics.md``.
    """
    x, v = np.linspace(0, 1, POINTS), y.clip(0, 1)
    labels, patients = (np.concatenate([getattr(part, name) for part in test_sets]) for name in ("labels", "patients"))
    positives, negatives = (len(np.unique(patients[(labels == of_class) == side])) for side in (True, False))
    most = positives if kind == "roc" else np.maximum(x * positives, 1) / np.maximum(v, 1 / len(labels))
    spread = v * (1 - v)
    variance = drawn_variance(test_sets, lambda part, weights: _curves(part, weights, kind, of_class))
    n = 1 / np.maximum(np.divide(variance, spread, out=np.zeros(POINTS), where=spread > 1e-12), 1 / most)
    low, high = (stats.beta.ppf(share, v * n + 0.5, (1 - v) * n + 0.5) for share in (0.025, 0.975))
    low, high = np.where(v <= 0, 0.0, low), np.where(v >= 1, 1.0, high)
    if kind == "roc":
        falling = low[0] * np.minimum(x * negatives, 1)
        between = np.interp(x - 0.5 / negatives, x, low)
        return np.minimum(between, np.where(x * negatives < 1, falling, 1.0)), high
    last = 1 - 1 / positives
    lowest = min(float((labels == of_class).mean()), float(low[-1]))
    falling = np.interp(x, [last, 1.0], [np.interp(last, x, low), lowest])
    return np.where(x > last, np.minimum(low, falling), low), high


def _curves(part: TestSet, weights: Floats, kind: str, of_class: int) -> Floats:
    """Curves of slides with ``weights`` ``[R, n]``, mean over seeds, ``[R, POINTS]``."""
    positive = part.labels == of_class
    name = f"ranks of class {of_class}"
    if name not in part.computed:
        part.computed[name] = ranks_of_class(part.probabilities, of_class)
    of_seeds = [_one(positive, ranks, weights, kind) for ranks in part.computed[name]]
    return np.asarray(np.mean(of_seeds, axis=0))


def _one(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats, kind: str) -> Floats:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores cannot be told apart: one point for all of them
    w = weights[:, order]
    true = np.cumsum(w * positive[order], axis=1)[:, last]
    false = np.cumsum(w * ~positive[order], axis=1)[:, last]
    recall = true / true[:, -1:]
    x = np.linspace(0, 1, POINTS)
    if kind == "roc":
        start = np.zeros((len(w), 1))
        rates = np.hstack([start, false / false[:, -1:]]), np.hstack([start, recall])
        # Of several true-positive rates at one false-positive rate the highest counts.
        shift = 1e-12 * np.arange(rates[0].shape[1])[::-1]
        return np.stack([np.interp(x, f - shift, t) for f, t in zip(*rates, strict=True)])
    precision = true / np.maximum(true + false, 1e-300)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or more
    place = [np.searchsorted(r, x - 1e-12) for r in recall]
    return np.stack([b[p] for b, p in zip(best, place, strict=True)])
