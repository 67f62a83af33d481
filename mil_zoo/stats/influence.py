"""How much each patient moves a number: the variance of a metric over the choice of patients, slides kept together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mil_zoo.metrics import Metric, ranks_of_class
from mil_zoo.stats.resampling import Floats, Ints, Patients, TestSet

_ROWS = 4_000_000  # weights that are held at once


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve of one test set, mean over seeds, and what each slide adds to its error.

    Attributes:
        value: with more than two classes the mean of one-against-rest areas; NaN where a class is absent.
        up: ``[C, n]`` of each slide as a positive of each class that is scored (one row for two classes): its share of
            negatives below it less the area, over the number of positives; 0 for negatives.
        down: ``[C, n]`` of each slide as a negative: the share of positives above it less the area, over the number of
            negatives.
    """

    value: float
    up: Floats
    down: Floats


def area(part: TestSet) -> Area:
    """Structural components of the area (DeLong's ``V10``, ``V01``) by midranks; of C classes one against the rest.

    They are computed once for a test set.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988); Sun & Xu, IEEE Signal Processing Letters 21 (2014).
    """
    if "area" not in part.computed:
        part.computed["area"] = _area(part)
    found: Area = part.computed["area"]
    return found


def _area(part: TestSet) -> Area:
    classes = part.probabilities.shape[2]
    values, ups, downs = [], [], []
    for label in [1] if classes == 2 else range(classes):
        positive, scores = part.labels == label, ranks_of_class(part.probabilities, label)
        m, n = int(positive.sum()), int((~positive).sum())
        up, down = np.zeros(len(positive)), np.zeros(len(positive))
        if not m or not n:
            return Area(np.nan, up[None], down[None])
        ranks = stats.rankdata(scores, axis=1)
        above = (ranks[:, positive] - stats.rankdata(scores[:, positive], axis=1)).mean(0) / n
        below = 1 - (ranks[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)).mean(0) / m
        value = float(above.mean())
        up[positive], down[~positive] = (above - value) / m, (below - value) / n
        values.append(value)
        ups.append(up)
        downs.append(down)
    return Area(float(np.mean(values)), np.stack(ups), np.stack(downs))


def area_variance(test_sets: Sequence[TestSet], areas: Sequence[Area], patients: Patients | None = None) -> float:
    """Variance of the mean over splits (and classes) of areas, or of their differences, over the choice of patients.

    With ``a_p`` the sum over splits of what the slides of patient p add as positives, ``b_p`` as negatives, it is
    ``sum_p a_p^2 + b_p^2 + 2 a_p b_p``, each with its factor I / (I - 1) for the I patients that have such slides. A
    patient's slides are taken together, in all splits that test it: repeats of a cross-validation do not make the error
    smaller, nor do slides of one patient. For one split of one slide a patient it is DeLong's variance.

    Args:
        test_sets: one a split.
        areas: of each of them :func:`area`, or the difference of two (the areas' ``up`` and ``down`` subtracted).
        patients: what a slide belongs to; None for the test sets' patients.

    Source: Obuchowski, Nonparametric Analysis of Clustered ROC Curve Data, Biometrics 53 (1997).
    """
    patients = patients or Patients.of(test_sets)
    count = len(patients.names)
    positives, negatives, both = np.zeros(count), np.zeros(count), np.zeros((2, count))
    for part, one, place in zip(test_sets, areas, patients.places, strict=True):
        classes = len(one.up)
        tested = len(np.unique(place))
        for label, up, down in zip([1] if classes == 1 else range(classes), one.up, one.down, strict=True):
            positive = part.labels == label
            share = 1 / (len(test_sets) * classes)
            a, b = (np.bincount(place, values, count) * share for values in (up, down))
            positives += a * np.sqrt(_factor(len(np.unique(place[positive]))))
            negatives += b * np.sqrt(_factor(len(np.unique(place[~positive]))))
            both += np.stack([a, b]) * np.sqrt(_factor(tested))
    value = (positives**2).sum() + (negatives**2).sum() + 2 * (both[0] * both[1]).sum()
    if any(len(one.up) > 1 for one in areas):  # a slide is a positive of one class and a negative of the others
        value = ((both[0] + both[1]) ** 2).sum()
    return max(float(value), 0.0)


def leave_one_out(test_sets: Sequence[TestSet], metric: Metric, patients: Patients | None = None) -> Floats:
    """The mean over splits and seeds of a metric without each patient in turn, ``[P]``; NaN where it is undefined.

    Args:
        test_sets: one a split.
        metric: of the task of the test sets.
        patients: what is left out together, in all splits; None for the test sets' patients.
    """
    patients = patients or Patients.of(test_sets)
    count = len(patients.names)
    totals, defined = np.zeros(count), np.zeros(count)
    for part, place in zip(test_sets, patients.places, strict=True):
        tested = np.unique(place)  # leaving out anybody else changes nothing here
        full = np.array([metric(part.labels, one) for one in part.probabilities])
        without = np.repeat(full[:, None], count, axis=1)  # [S, P]
        for block in np.array_split(tested, -(-len(tested) * len(place) // _ROWS)):
            weights = (place[None] != block[:, None]).astype(np.float64)
            for row, one in zip(without, part.probabilities, strict=True):
                row[block] = metric.weighted(part.labels, one, weights=weights)
        there = ~np.isnan(without)
        totals += np.where(there, without, 0).sum(0)
        defined += there.sum(0)
    return np.where(defined > 0, totals / np.maximum(defined, 1), np.nan)


def jackknife_variance(without: Floats) -> float:
    """Variance of a number over the choice of patients from its values without each of them, ``[P]``.

    ``(P - 1) / P sum_p (value without p - their mean)^2``; undefined values are left out, NaN for fewer than two.

    Source: Efron & Stein, Annals of Statistics 9 (1981); a patient's slides are left out together (Rust & Rao 1996).
    """
    values = without[~np.isnan(without)]
    return float((len(values) - 1) * values.var()) if len(values) > 1 else np.nan


def each_slide(test_sets: Sequence[TestSet]) -> Patients:
    """The slides of ``test_sets`` as patients of their own; a patient's n-th slide is the same one in every split."""
    places: list[Ints] = []
    names: dict[tuple[str, int], int] = {}
    for part in test_sets:
        seen: dict[str, int] = {}
        place = []
        for patient in part.patients.tolist():
            seen[patient] = seen.get(patient, 0) + 1
            place.append(names.setdefault((patient, seen[patient]), len(names)))
        places.append(np.array(place, dtype=np.int64))
    return Patients(np.arange(len(names)).astype(str), np.zeros(len(names), dtype=np.int64), places)


def _factor(number: int) -> float:
    return number / (number - 1) if number > 1 else 1.0
