"""Test sets, and intervals by drawing their patients again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError
from mil_zoo.metrics import metrics_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TestSet:
    """The predictions of one aggregator on the test slides of one split.

    Attributes:
        labels: ``[n]`` class indices.
        probabilities: ``[S, n, C]``: of S seeds; rows sum to 1.
        patients: ``[n]`` a patient of each slide; slides of one patient are drawn together.
    """

    __test__ = False  # not a test, for pytest

    labels: Ints
    probabilities: Floats
    patients: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.probabilities.ndim != 3 or self.probabilities.shape[1] != n or len(self.patients) != n:
            raise InputError(
                f"a test set of {n} slides needs probabilities [seeds, {n}, classes] and {n} patients, not "
                f"{self.probabilities.shape} and {len(self.patients)}"
            )


def bootstrap(
    test_sets: Sequence[TestSet], replicates: int = 1000, seed: int = 0, task: str = "classification"
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the mean over splits (and seeds) of every metric, over the choice of test slides.

    Patients are drawn with replacement within each test set and each class, so that no replicate lacks a class. The
    training slides stay as they were: the interval tells of these trained models.

    Args:
        test_sets: one a split.
        replicates: number of draws.
        seed: of the draws.
        task: the family of tasks whose metrics are meant.

    Returns:
        ``(low, high)`` by name of metric; NaN where a metric is undefined.
    """
    rng = np.random.default_rng(seed)
    totals: dict[str, list[Floats]] = {}
    for part in test_sets:
        weights = _draws(part, replicates, rng)
        for one_seed in part.probabilities:
            for metric in metrics_of(task):
                values = metric.weighted(part.labels, one_seed, weights=weights)
                totals.setdefault(metric.name, []).append(values)
    intervals = {}
    for name, of_splits in totals.items():
        low, high = np.quantile(np.mean(of_splits, axis=0), [0.025, 0.975])
        intervals[name] = float(low), float(high)
    return intervals


def bands(
    test_set: TestSet, statistic: Callable[[TestSet, Floats], Floats], replicates: int = 500, seed: int = 0
) -> tuple[Floats, Floats]:
    """Pointwise 95 % percentile band of ``statistic(test_set, weights [R, n]) -> [R, points]``."""
    values = statistic(test_set, _draws(test_set, replicates, np.random.default_rng(seed)))
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high


def _draws(part: TestSet, replicates: int, rng: np.random.Generator) -> Floats:
    """How often each slide is drawn, ``[replicates, n]``; a patient counts to the highest class of their slides."""
    patients, place = np.unique(part.patients, return_inverse=True)
    strata = np.zeros(len(patients), dtype=np.int64)
    np.maximum.at(strata, place, part.labels)
    counts = np.zeros((replicates, len(patients)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), replicates)
    return counts[:, place]
