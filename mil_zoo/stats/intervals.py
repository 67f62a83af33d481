"""Mean, spread and an honest interval of the results of resampled splits, or of one test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mil_zoo.errors import InputError
from mil_zoo.metrics import Metric
from mil_zoo.noted import undefined
from mil_zoo.stats.drawn import Scored, bootstrap_patients
from mil_zoo.stats.influence import area, area_variance, each_slide, jackknife_variance, leave_one_out
from mil_zoo.stats.resampling import Floats, Patients, TestSet, all_equal, distinct_test_sets

ALL_EQUAL = "all test sets have the same value, so that there is no spread to take an interval from"


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and 95 % interval of ``n`` values; NaN where they are undefined.

    Attributes:
        mean: NaN for n = 0.
        sd: sample standard deviation (ddof 1); NaN for n < 2.
        low: lower end of the interval, never clipped to the metric's range; NaN for n < 2, and with its reason where
            all values are equal.
        high: upper end.
        n: number of values that were defined.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Interval:
    """Result of :func:`patient_interval`.

    Attributes:
        value: mean over splits and seeds; NaN where the metric is undefined.
        low, high: the interval; NaN where it is undefined.
        se: standard error by patients, 0 where no patient matters.
        effective: the number of independent patients whose binomial has the interval; NaN without bounds.
    """

    value: float
    low: float
    high: float
    se: float
    effective: float


@dataclass(frozen=True)
class Estimate:
    """Result of :func:`estimate`: what a table, a figure and a page show of one metric of one aggregator.

    Attributes:
        mean: over test sets (of a single one: over its trainings); NaN where the metric is undefined.
        sd: sample standard deviation of the same values; NaN for fewer than two.
        low, high: ends of the 95 % interval; NaN where it is undefined.
        n: number of values.
        test_sets: number of different test sets.
        method: "corrected t", "patients" or "", where there is no interval.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int
    test_sets: int
    method: str


def summarise(values: Sequence[float | None], n_train: float, n_test: float) -> Summary:
    """Summary of one metric over repeated or k-fold splits, with the corrected resampled t interval.

    Training sets of different splits overlap, so their results are not independent, and the usual standard error
    s / sqrt(n) is too small. Nadeau and Bengio's correction takes the variance of the mean to be
    ``(1 / n + n_test / n_train) s^2``; the interval is ``mean ± t_(0.975, n - 1)`` of its root.

    Args:
        values: one a split (splits of one test set averaged first, see :func:`estimate`); None and NaN (an undefined
            metric) are left out and not counted. Values that differ by rounding only are equal: sd is 0, the interval
            NaN, with the reason. No spread over a few test sets is no knowledge of the next one.
        n_train: slides in a training set (the mean over splits, where they differ), before any labels are withheld.
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
    numbers = defined(values)
    n = len(numbers)
    if n < 2:
        return Summary(float(numbers[0]) if n else np.nan, np.nan, np.nan, np.nan, n)
    mean = float(numbers.mean())
    if all_equal(numbers):
        return Summary(mean, 0.0, undefined(ALL_EQUAL), undefined(ALL_EQUAL), n)
    sd = float(numbers.std(ddof=1))
    half_width = float(stats.t.ppf(0.975, n - 1)) * sd * float(np.sqrt(1 / n + n_test / n_train))
    return Summary(mean, sd, mean - half_width, mean + half_width, n)


def estimate(
    values: Mapping[Any, Sequence[float | None]],
    test_sets: Mapping[Any, TestSet] | Mapping[Any, Sequence[Scored]],
    metric: Metric,
    n_train: float,
    n_test: float,
) -> Estimate:
    """The one interval of a metric of an aggregator, as the design supports it.

    Over several test sets: the corrected resampled t of their means (:func:`summarise`), which tells of the training
    procedure. On a single test set, however often it was trained for: :func:`patient_interval`, of other predictions
    than class probabilities :func:`mil_zoo.stats.bootstrap_patients`, which tell of these trained models.

    Args:
        values: the metric by split, one a seed; None where it is undefined.
        test_sets: the predictions by split, of other tasks than classification one of each seed; empty where they are
            not kept (every split then counts as a test set of its own).
        metric: what was measured.
        n_train: slides in a training set, see :func:`summarise`.
        n_test: slides in a test set.
    """
    known = [split for split in values if split in test_sets]
    parts = [test_sets[split] for split in known]
    patients = [part.patients if isinstance(part, TestSet) else part[0].patients for part in parts]
    number = dict(zip(known, distinct_test_sets(patients), strict=True))
    groups: dict[Any, list[float | None]] = {}
    for split, of_seeds in values.items():
        mean = float(found.mean()) if len(found := defined(of_seeds)) else None
        groups.setdefault(number.get(split, ("alone", split)), []).append(mean)
    if len(groups) > 1:
        means = [float(found.mean()) if len(found := defined(group)) else None for group in groups.values()]
        summary = summarise(means, n_train, n_test)
        method = "corrected t" if summary.n > 1 else ""
        return Estimate(summary.mean, summary.sd, summary.low, summary.high, summary.n, len(groups), method)
    # One test set: the spread is that of its trainings, seeds and splits alike.
    numbers = defined([value for of_seeds in values.values() for value in of_seeds])
    mean = float(numbers.mean()) if len(numbers) else np.nan
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else np.nan
    classes = [part for part in parts if isinstance(part, TestSet)]
    others = [one for part in parts if not isinstance(part, TestSet) for one in part]
    low = high = np.nan
    if classes:
        by_patients = patient_interval(classes, metric)
        low, high = by_patients.low, by_patients.high
    elif others:
        drawn = bootstrap_patients(others, metric)
        low, high = drawn.low, drawn.high
    return Estimate(mean, sd, low, high, len(numbers), len(groups), "" if np.isnan(low) else "patients")


def patient_interval(
    test_sets: Sequence[TestSet],
    metric: Metric,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of a metric over splits and seeds, over the choice of test patients.

    It is Wilson's score interval of a share, ``(v + z^2 / 2n ± z sqrt(v (1 - v) / n + z^2 / 4n^2)) / (1 + z^2 / n)``,
    with an effective number of patients ``n``: it stays within the bounds and has a width where every slide is right.
    ``1 / n`` is the mean of two:

    - ``variance / (v (1 - v))``, the variance by patients: of the area Obuchowski's, of others the jackknife's;
    - ``deff / n_0``, with ``n_0`` the number that the metric would have if slides were independent (of accuracy all
      slides; of balanced accuracy ``C^2 / sum 1 / n_c``; of F1 ``U (1 + J)^2 / 2``, U slides that are or are said to be
      positive, J the share of them that are both; of the area Newcombe's ``m n / (1 + (N - 1) ((1 - v) / (2 - v) + v /
      (1 + v)))`` with N the mean of m and n) and ``deff`` the variance by patients over that by slides, from 1 to the
      slides of a patient. Where the variance is 0 (every slide right) it stands alone, with the slides of a patient
      for ``deff``.

    A metric that is none of these has the first alone, and where that is 0 the patients of the smallest class for n.
    Its coverage by simulation is in ``benchmarks/results/statistics.md``.

    Args:
        test_sets: one a split.
        metric: of the task of the test sets. Without bounds (a mean error, for instance) the interval is ``v ± t se``,
            t with one degree of freedom less than there are patients.
        level: of confidence.

    Source:
        Wilson, JASA 22 (1927); effective sizes: Korn & Graubard, Survey Methodology 24 (1998); area: Newcombe,
        Statistics in Medicine 25 (2006), method 5; Obuchowski, Biometrics 53 (1997).
    """
    found = [metric(part.labels, one) for part in test_sets for one in part.probabilities]
    numbers = defined(found)
    value = float(numbers.mean()) if len(numbers) else np.nan
    patients, slides = Patients.of(test_sets), each_slide(test_sets)
    variance, by_slide = _variance(test_sets, metric, patients), _variance(test_sets, metric, slides)
    se = float(np.sqrt(variance))
    if np.isnan(value) or np.isnan(se):
        return Interval(value, np.nan, np.nan, np.nan, np.nan)
    z = float(stats.norm.ppf(0.5 + level / 2))
    bounds = metric.bounds
    if not np.isfinite(bounds).all() or not bounds[0] <= value <= bounds[1]:
        several = len(patients.names) > 1 and se > 0
        t = float(stats.t.ppf(0.5 + level / 2, len(patients.names) - 1)) if several else np.nan
        return Interval(value, value - t * se, value + t * se, se, np.nan)
    width = bounds[1] - bounds[0]
    share = (value - bounds[0]) / width
    most = float(np.mean([len(part.labels) / len(np.unique(part.patients)) for part in test_sets]))
    certain = variance < 1e-15 * width**2 or not 0 < share < 1
    alone = _independent(test_sets, metric.name, share)
    if certain:
        n = alone / most if alone is not None else _smallest_class(test_sets)
    else:
        n = share * (1 - share) * width**2 / variance
        if alone is not None:
            deff = float(np.clip(variance / by_slide, 1, most)) if by_slide > 0 else most
            n = 2 / (1 / n + deff / alone)
    if not n > 0:
        return Interval(value, np.nan, np.nan, se, np.nan)
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    low, high = (bounds[0] + width * float(np.clip(end, 0, 1)) for end in (low, high))
    return Interval(value, low, high, se, float(n))


def defined(values: Sequence[float | None]) -> Floats:
    """The values that are neither None nor NaN."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return numbers[~np.isnan(numbers)]


def _variance(test_sets: Sequence[TestSet], metric: Metric, patients: Patients) -> float:
    if metric.name != "auc":
        return jackknife_variance(leave_one_out(test_sets, metric, patients))
    areas = [area(part) for part in test_sets]
    usable = [i for i, one in enumerate(areas) if not np.isnan(one.value)]
    if not usable:
        return np.nan
    kept = Patients(patients.names, patients.strata, [patients.places[i] for i in usable])
    return area_variance([test_sets[i] for i in usable], [areas[i] for i in usable], kept)


def _independent(test_sets: Sequence[TestSet], name: str, share: float) -> float | None:
    """The binomial size of a metric whose slides were independent, of all different test sets together."""
    number = distinct_test_sets([part.patients for part in test_sets])
    first = [test_sets[number.index(i)] for i in range(max(number) + 1)]
    sizes = [_size(part, name, share) for part in first]
    tested = Patients.of(first)
    again = sum(len(np.unique(place)) for place in tested.places) / len(tested.names)  # times that a patient is tested
    if any(size is None for size in sizes):
        return None
    inverse = [1 / size for size in sizes if size]
    # The mean of K test sets has 1 / K of a test set's variance if these share nobody, and all of it if they are one.
    return len(inverse) ** 2 / sum(inverse) / again if inverse else None


def _size(part: TestSet, name: str, share: float) -> float | None:
    classes = part.probabilities.shape[2]
    of_class = np.bincount(part.labels, minlength=classes)
    if name == "accuracy":
        return float(len(part.labels))
    if name == "balanced_accuracy":
        present = of_class[of_class > 0]
        return float(len(present) ** 2 / (1 / present).sum())
    if name == "f1":
        said = part.probabilities.argmax(2)
        either = [((said == c) | (part.labels == c)).sum(1).mean() for c in ([1] if classes == 2 else range(classes))]
        overlap = share / (2 - share)
        return float(np.min(either) * (1 + overlap) ** 2 / 2)
    if name == "auc":
        inverse = 0.0
        for positives in of_class[1:] if classes == 2 else of_class:
            negatives = len(part.labels) - positives
            if not positives or not negatives:
                return 0.0
            spread = 1 + (len(part.labels) / 2 - 1) * ((1 - share) / (2 - share) + share / (1 + share))
            inverse += spread / (positives * negatives)
        return (1 if classes == 2 else classes) / inverse
    return None


def _smallest_class(test_sets: Sequence[TestSet]) -> float:
    """Patients of the rarest class of all test sets together."""
    labels, patients = (np.concatenate([getattr(part, name) for part in test_sets]) for name in ("labels", "patients"))
    return float(min(len(np.unique(patients[labels == label])) for label in np.unique(labels)))
