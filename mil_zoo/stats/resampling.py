"""Test sets, which of them are the same one, and intervals by drawing their patients again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError
from mil_zoo.metrics import metrics_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_EQUAL = 1e-9  # values that differ by less than this part of the largest are equal: it is rounding
_SAME = 0.9  # test sets that share this part of their patients are one


@dataclass(frozen=True)
class TestSet:
    """The predictions of one aggregator on the test slides of one split.

    Attributes:
        labels: ``[n]`` class indices.
        probabilities: ``[S, n, C]``: of S seeds; rows sum to 1.
        patients: ``[n]`` a patient of each slide; slides of one patient are drawn together.
        computed: what many comparisons need of it, by name, once it was computed.
    """

    __test__ = False  # not a test, for pytest

    labels: Ints
    probabilities: Floats
    patients: npt.NDArray[np.str_]
    computed: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.probabilities.ndim != 3 or self.probabilities.shape[1] != n or len(self.patients) != n:
            raise InputError(
                f"a test set of {n} slides needs probabilities [seeds, {n}, classes] and {n} patients, not "
                f"{self.probabilities.shape} and {len(self.patients)}"
            )


def distinct_test_sets(patients: Sequence[npt.ArrayLike]) -> list[int]:
    """Which test set each split has, numbered from 0 in order of appearance; equal numbers are one test set.

    Trainings that are tested on the same patients are several seeds of one split: they say nothing of other patients,
    however many there are. Two splits share a test set where their patients agree but for a tenth (of the union).

    Args:
        patients: the test patients of each split (repeated as they may be).
    """
    known: list[set[str]] = []
    number = []
    for names in patients:
        one = set(np.asarray(names).astype(str).tolist())
        same = (i for i, other in enumerate(known) if len(one & other) >= _SAME * len(one | other))
        place = next(same, len(known))
        if place == len(known):
            known.append(one)
        number.append(place)
    return number


class Tested(Protocol):
    """What patients are drawn of: the patient ``[n]`` of each row, and a label ``[n]`` that tells kinds apart."""

    @property
    def patients(self) -> npt.NDArray[np.str_]: ...

    @property
    def labels(self) -> Ints: ...


@dataclass(frozen=True)
class Patients:
    """The patients of several test sets.

    Attributes:
        names: ``[P]``.
        strata: ``[P]`` a number for each kind of patient: the highest class of its slides, and where no patient is
            tested twice, the split.
        places: for each test set the patient of each slide, ``[n]``.
    """

    names: npt.NDArray[np.str_]
    strata: Ints
    places: list[Ints]

    @classmethod
    def of(cls, test_sets: Sequence[Tested]) -> Patients:
        """The patients of ``test_sets``."""
        together = np.concatenate([part.patients for part in test_sets])
        names, place = np.unique(together, return_inverse=True)
        places = np.split(place, np.cumsum([len(part.labels) for part in test_sets])[:-1])
        labels = np.concatenate([part.labels for part in test_sets])
        strata = np.zeros(len(names), dtype=np.int64)
        np.maximum.at(strata, place, labels)
        if sum(len(np.unique(one)) for one in places) == len(names):
            for number, one in enumerate(places):
                strata[one] += number * (int(labels.max()) + 1)
        return cls(names, strata, places)

    def draws(self, replicates: int, seed: int) -> Floats:
        """How often each patient is drawn, ``[replicates, P]``: with replacement, within each stratum."""
        rng = np.random.default_rng(seed)
        counts = np.zeros((len(self.names), replicates))  # of one patient they lie together: whole rows are taken
        for stratum in np.unique(self.strata):
            members = np.flatnonzero(self.strata == stratum)
            drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), replicates)
            counts[members] = drawn.T
        return counts.T


def bootstrap(
    test_sets: Sequence[TestSet], replicates: int = 1000, seed: int = 0, task: str = "classification"
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the mean over splits (and seeds) of every metric, over the choice of test patients.

    Patients are drawn with replacement, within each class, once for all splits: one who is tested in several splits
    counts equally often in each of them. Where no patient is tested twice they are drawn within each split, so that
    none lacks a class; else a split without one in a replicate is left out of it. The training slides stay as they are:
    the interval tells of these trained models. Near the ends of a metric's range it is too short, and of no width where
    every slide is right: :func:`mil_zoo.stats.patient_interval` is better there.

    Args:
        test_sets: one a split.
        replicates: number of draws.
        seed: of the draws.
        task: the family of tasks whose metrics are meant.

    Returns:
        ``(low, high)`` by name of metric; NaN where a metric is undefined.
    """
    patients = Patients.of(test_sets)
    counts = patients.draws(replicates, seed)
    drawn: dict[str, list[Floats]] = {metric.name: [] for metric in metrics_of(task)}
    for part, place in zip(test_sets, patients.places, strict=True):
        weights = counts.T[place].T
        for metric in metrics_of(task):
            drawn[metric.name] += [metric.weighted(part.labels, one, weights=weights) for one in part.probabilities]
    intervals = {}
    for name, values in drawn.items():
        defined = ~np.isnan(values)
        total = np.where(defined, values, 0).sum(0)[defined.any(0)] / defined.sum(0)[defined.any(0)]
        low, high = np.quantile(total, [0.025, 0.975]) if len(total) else (np.nan, np.nan)
        intervals[name] = float(low), float(high)
    return intervals


def drawn_variance(
    test_sets: Sequence[TestSet],
    statistic: Callable[[TestSet, Floats], Floats],
    replicates: int = 500,
    seed: int = 0,
) -> Floats:
    """Variance ``[points]`` of the mean over splits of ``statistic(test_set, weights [R, n]) -> [R, points]``.

    A patient is drawn once for all splits, as in :func:`bootstrap`.
    """
    patients = Patients.of(test_sets)
    counts = patients.draws(replicates, seed)
    places = zip(test_sets, patients.places, strict=True)
    values = np.mean([statistic(part, counts[:, place]) for part, place in places], axis=0)
    return np.asarray(np.nanvar(values, axis=0))


def all_equal(numbers: Floats) -> bool:
    """Whether the numbers differ by no more than rounding: a part of 1e-9 of the largest, or 1e-12."""
    return bool(np.ptp(numbers) <= max(_EQUAL * np.abs(numbers).max(), 1e-12)) if len(numbers) else True
