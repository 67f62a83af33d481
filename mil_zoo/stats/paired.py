"""Tests of the difference between two aggregators that predicted the same slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import stats

from mil_zoo.errors import InputError
from mil_zoo.metrics import Metric, find_metric, ranks_of_class
from mil_zoo.noted import undefined
from mil_zoo.stats.influence import Area, area, area_variance, jackknife_variance, leave_one_out
from mil_zoo.stats.intervals import Summary, defined, summarise
from mil_zoo.stats.resampling import Floats, Patients, TestSet, all_equal

_UNMOVED = "no patient changes the difference, so that there is no spread to take an interval from"
EXCHANGED = ("accuracy", "balanced_accuracy", "auc", "f1")  # metrics that the permutation test knows


@dataclass(frozen=True)
class DeLong:
    """Result of :func:`delong_test`.

    Attributes:
        auc_a, auc_b: areas, means over seeds and splits.
        difference: a - b.
        se: standard error of the difference.
        p: two-sided; 1 where the difference is 0, NaN where it is not but its standard error is.
        p_worse: one-sided, of "a is not worse than b": small where a is worse.
    """

    auc_a: float
    auc_b: float
    difference: float
    se: float
    p: float
    p_worse: float


@dataclass(frozen=True)
class PairedT:
    """Result of :func:`corrected_t_test`.

    Attributes:
        difference: a - b with its interval.
        se: its standard error; NaN where there is no spread to take it from (fewer than two differences, all equal).
        p: two-sided; 1 where all differences are 0, NaN where it is undefined.
        p_worse: one-sided, of "a is not worse than b": small where a is worse.
        reason: why p, or else the interval alone, is NaN, as a sentence; else "".
    """

    difference: Summary
    se: float
    p: float
    p_worse: float
    reason: str


def corrected_t_test(differences: Sequence[float | None], n_train: float, n_test: float, scale: float = 1.0) -> PairedT:
    """Two-sided corrected resampled t-test of the differences between two aggregators on the same splits.

    Args:
        differences: a - b, one a test set (splits of one test set averaged first); None and NaN are left out.
        n_train: slides in a training set, before any labels are withheld.
        n_test: slides in a test set.
        scale: size of the metric; differences below 1e-12 of it are rounding, and count as 0, as does such a mean.

    Returns:
        the difference with its interval, and p: 1 where all differences are 0; NaN, with the reason, for fewer than two
        of them or where all are equal and not 0 (up to a part of 1e-9, which is rounding): they have no spread to test
        against. Where all are equal, 0 or not, the interval is NaN.

    Source: Nadeau & Bengio 2003, see :func:`mil_zoo.stats.summarise`.
    """
    numbers = defined(differences)
    numbers = np.where(np.abs(numbers) < 1e-12 * scale, 0.0, numbers)
    summary = summarise(numbers.tolist(), n_train, n_test)
    if abs(summary.mean) < 1e-12 * scale:
        summary = replace(summary, mean=0.0)
    if summary.n < 2:
        which = "1 test set has" if summary.n else "0 test sets have"
        return PairedT(summary, np.nan, np.nan, np.nan, f"{which} a difference; a test needs two.")
    if all_equal(numbers):
        if not numbers.any():
            reason = "The difference is 0 in every split, so that there is no spread to take an interval from."
            return PairedT(summary, np.nan, 1.0, 0.5, reason)
        reason = "The difference is the same in every split, so that there is no spread to test it against."
        return PairedT(summary, np.nan, np.nan, np.nan, reason)
    error = float(summary.sd * np.sqrt(1 / summary.n + n_test / n_train))
    t = summary.mean / error
    p = float(2 * stats.t.sf(abs(t), summary.n - 1))
    return PairedT(summary, error, p, float(stats.t.cdf(t, summary.n - 1)), "")


def wilcoxon_test(differences: Sequence[float | None]) -> float:
    """Two-sided exact p of Wilcoxon's signed-rank test over datasets, with zeros and ties.

    The p is the share of the ``2^n`` assignments of signs to the n differences that are not 0 whose sum of signed ranks
    is as large. Ranks are those among all differences, zeros included (Pratt 1959; Demšar splits the ranks of zeros
    between the signs, which adds the same to both sums); equal sizes share their mean rank. All assignments are
    counted, so that no table of another case is used. Fewer than six differences can't reach 0.05.

    Over datasets its assumptions hold; over folds they do not (folds share training slides), and p is too small.

    Args:
        differences: one a dataset; None and NaN are left out. NaN where none is left, 1 where all are 0.
    """
    values = defined(differences)
    if not len(values):
        return np.nan
    values = np.where(np.abs(values) < 1e-12, 0.0, values)
    sizes = np.abs(values)
    order = np.argsort(sizes, kind="stable")
    for one, other in pairwise(order):  # sizes that differ by rounding are tied
        if sizes[other] - sizes[one] <= 1e-9 * sizes[other]:
            sizes[other] = sizes[one]
    ranks = np.rint(2 * stats.rankdata(sizes)).astype(np.int64)[values != 0]  # doubled: whole numbers
    if not len(ranks):
        return 1.0
    total = int(ranks.sum())
    ways = np.zeros(total + 1)  # of each sum of the ranks with a plus, as shares of all assignments
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] = (ways[rank:] + ways[: total + 1 - rank]) / 2
        ways[:rank] /= 2
    plus = int(ranks[values[values != 0] > 0].sum())
    distance = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, ways[distance >= abs(2 * plus - total)].sum()))


def delong_test(a: Sequence[TestSet], b: Sequence[TestSet]) -> DeLong:
    """Test of two areas under the ROC curve on the same slides, by midranks; of many classes one against the rest.

    Seeds are averaged: their structural components are. The variance is by patient over all splits: slides of one
    patient, test parts that overlap, and repeats of a cross-validation do not make the error smaller. Of one split with
    one slide a patient it is DeLong's. It speaks of these trained models, not of their training.

    Args:
        a: test sets of one aggregator, one a split.
        b: those of the other, same splits and slides.

    Raises:
        InputError: a class is absent from a test set, or the slides differ.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988); by patient: Obuchowski, Biometrics 53 (1997); Sun &
        Xu, IEEE Signal Processing Letters 21 (2014).
    """
    both = [(area(left), area(right)) for left, right in _pairs(a, b)]
    if any(np.isnan(one.value) for pair in both for one in pair):
        raise InputError("a comparison of areas needs every class, all present in every test set")
    auc_a, auc_b = np.mean([[one.value, other.value] for one, other in both], axis=0)
    apart = [Area(x.value - y.value, x.up - y.up, x.down - y.down) for x, y in both]
    se = float(np.sqrt(area_variance(a, apart)))
    difference = float(auc_a - auc_b)
    if abs(difference) < 1e-12:
        p, worse = 1.0, 0.5
    elif se > 1e-12:
        p, worse = float(2 * stats.norm.sf(abs(difference) / se)), float(stats.norm.cdf(difference / se))
    else:
        p = worse = np.nan
    return DeLong(float(auc_a), float(auc_b), difference, se, p, worse)


def patient_test(a: Sequence[TestSet], b: Sequence[TestSet], metric: Metric) -> PairedT:
    """Test of the difference in any metric on the same slides, by leaving out one patient at a time in all splits.

    ``t = difference / se`` with P - 1 degrees of freedom, se by the jackknife over the P patients. It speaks of these
    trained models. For the area :func:`delong_test` is sharper, for accuracy and F1 :func:`permutation_test` is exact.

    Args:
        a: test sets of one aggregator, one a split.
        b: those of the other, same splits and slides.
        metric: of the task of the test sets.

    Returns:
        the difference with its interval ``± t se`` (its ``n`` is 1); p as in :class:`PairedT`.

    Raises:
        InputError: different slides.
    """
    _pairs(a, b)
    values = [defined([metric(part.labels, one) for part in parts for one in part.probabilities]) for parts in (a, b)]
    difference = float(values[0].mean() - values[1].mean()) if all(map(len, values)) else np.nan
    without = leave_one_out(a, metric) - leave_one_out(b, metric)
    se, df = float(np.sqrt(jackknife_variance(without))), int((~np.isnan(without)).sum()) - 1
    if np.isnan(difference) or np.isnan(se):
        reason = "The metric is undefined on these slides."
        return PairedT(Summary(difference, np.nan, np.nan, np.nan, 1), np.nan, np.nan, np.nan, reason)
    if se < 1e-12:
        summary = Summary(difference, np.nan, undefined(_UNMOVED), undefined(_UNMOVED), 1)
        p, worse = (1.0, 0.5) if abs(difference) < 1e-12 else (np.nan, np.nan)
        return PairedT(summary, np.nan, p, worse, f"{_UNMOVED[0].upper()}{_UNMOVED[1:]}.")
    half = float(stats.t.ppf(0.975, df)) * se
    summary = Summary(difference, np.nan, difference - half, difference + half, 1)
    if abs(difference) < 1e-12:
        return PairedT(summary, se, 1.0, 0.5, "")
    t = difference / se
    return PairedT(summary, se, float(2 * stats.t.sf(abs(t), df)), float(stats.t.cdf(t, df)), "")


def permutation_test(
    a: Sequence[TestSet],
    b: Sequence[TestSet],
    metric: str,
    permutations: int = 2000,
    seed: int = 0,
) -> float:
    """Two-sided p of the difference in a metric when the two aggregators' predictions are exchanged patient by patient.

    The statistic is the mean over splits (and seeds) of the difference; p = (1 + as large or larger) / (1 + draws). The
    training slides stay as they were. Of the area the slides' ranks within a model are exchanged, not their
    probabilities: a model may be shifted against the other (less confident, another threshold) and rank as well. Of the
    others the predicted classes are.

    Args:
        a: test sets of one aggregator, one a split.
        b: those of the other.
        metric: one of ``EXCHANGED``; the area is of class 1, or with more classes of each against the rest.
        permutations: number of draws.
        seed: of the draws.

    Returns:
        p; NaN where the metric is undefined in every test set.

    Raises:
        InputError: different slides, or another metric.

    Source: Venkatraman & Begg, Biometrika 83 (1996), for the exchange of ranks.
    """
    if metric not in EXCHANGED:
        raise InputError(f"the permutation test knows {', '.join(EXCHANGED)}, not {metric!r}")
    observed, drawn, used = 0.0, np.zeros(permutations), 0
    pairs = _pairs(a, b)
    # A patient whom several splits test (repeats do) is exchanged in all of them or in none.
    patients = Patients.of(a)
    exchanged = np.random.default_rng(seed).random((permutations, len(patients.names))) < 0.5
    for (left, right), place in zip(pairs, patients.places, strict=True):
        if metric == "auc" and len(np.unique(left.labels)) < left.probabilities.shape[2]:
            continue
        swap = exchanged[:, place]  # [R, n]
        for one, other in zip(left.probabilities, right.probabilities, strict=True):
            used += 1
            difference = _area_difference if metric == "auc" else _class_difference
            first, others = difference(left.labels, one, other, swap, metric)
            observed += first
            drawn += others
    if not used:
        return np.nan
    as_large = np.abs(drawn) >= abs(observed) - 1e-9
    return float((1 + as_large.sum()) / (1 + permutations))


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


def _area_difference(
    labels: npt.NDArray[np.int64], one: Floats, other: Floats, swap: npt.NDArray[np.bool_], metric: str
) -> tuple[float, Floats]:
    """The difference of areas, and those ``[R]`` after exchanges: linear in the ranks of the positives."""
    classes = one.shape[1]
    observed, drawn = 0.0, np.zeros(len(swap))
    of_classes = [1] if classes == 2 else list(range(classes))
    for label in of_classes:
        positive = labels == label
        m, n = int(positive.sum()), int((~positive).sum())
        x, y = (stats.rankdata(ranks_of_class(values, label)) for values in (one, other))
        observed += (x - y)[positive].sum() / (m * n) / len(of_classes)
        for sign, first, second in ((1, x, y), (-1, y, x)):  # exchanged ranks are ranked anew
            ranks = stats.rankdata(np.where(swap, second, first), axis=1)
            drawn += sign * ranks[:, positive].sum(1) / (m * n) / len(of_classes)
    return float(observed), drawn


def _class_difference(
    labels: npt.NDArray[np.int64], one: Floats, other: Floats, swap: npt.NDArray[np.bool_], metric: str
) -> tuple[float, Floats]:
    """The difference of a metric of predicted classes, and those ``[R]`` after exchanges.

    Rows with both predictions stand below each other, and weights choose: one of each slide's two predictions.
    """
    function = find_metric(metric)
    twice, both = np.tile(labels, 2), np.concatenate([one, other])
    mine = np.concatenate([~swap, swap], axis=1).astype(np.float64)
    whole = function(labels, one) - function(labels, other)
    drawn = function.weighted(twice, both, weights=mine) - function.weighted(twice, both, weights=1 - mine)
    return float(whole), drawn
