"""Aggregators over several datasets: mean ranks, Friedman's test, Nemenyi's critical difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from mil_zoo.errors import InputError
from mil_zoo.stats.resampling import Floats


@dataclass(frozen=True)
class FriedmanNemenyi:
    """Result of :func:`friedman_nemenyi`.

    Attributes:
        ranks: mean rank of each aggregator, 1 is best, ``[k]``.
        chi2: Friedman's statistic (ties corrected for), with k - 1 degrees of freedom.
        p_chi2: of it.
        f: Iman & Davenport's less conservative statistic, with k - 1 and (k - 1)(N - 1) degrees of freedom; infinite
            where the datasets rank all aggregators alike.
        p_f: of it.
        critical_difference: mean ranks further apart than this differ (Nemenyi, 5 %, all pairs).
        datasets: N.
    """

    ranks: Floats
    chi2: float
    p_chi2: float
    f: float
    p_f: float
    critical_difference: float
    datasets: int

    def groups(self) -> list[list[int]]:
        """Maximal sets of aggregators, by position and best first, whose mean ranks do not differ (k >= 2 in a set)."""
        order = np.argsort(self.ranks, kind="stable")
        found: list[list[int]] = []
        for i, first in enumerate(order):
            group = [int(j) for j in order[i:] if self.ranks[j] - self.ranks[first] <= self.critical_difference]
            if len(group) > 1 and not (found and set(group) <= set(found[-1])):
                found.append(group)
        return found


def friedman_nemenyi(scores: npt.ArrayLike, alpha: float = 0.05) -> FriedmanNemenyi:
    """Friedman's test whether k aggregators rank alike on N datasets, and Nemenyi's critical difference.

    Args:
        scores: ``[N, k]``, larger is better; ties share their mean rank.
        alpha: level of the critical difference.

    Raises:
        InputError: fewer than two datasets or three aggregators, or a score that is missing.

    Source: Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006), section 3.2.
        Demšar's chi2 has no correction for ties; scipy's has, and is larger where there are ties.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 3 or not np.isfinite(table).all():
        raise InputError(
            "ranks over datasets need a finite score of at least 3 aggregators on at least 2 datasets, not of "
            f"{table.shape[-1]} on {len(table)}"
        )
    n, k = table.shape
    by_dataset = stats.rankdata(-table, axis=1)
    ranks = by_dataset.mean(0)
    all_tied = (by_dataset == by_dataset[:, :1]).all()
    chi2 = 0.0 if all_tied else float(stats.friedmanchisquare(*table.T).statistic)
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 else np.inf
    return FriedmanNemenyi(
        ranks,
        chi2,
        float(stats.chi2.sf(chi2, k - 1)),
        float(f),
        float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))),
        float(stats.studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))),
        n,
    )
