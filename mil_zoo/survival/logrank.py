"""The log-rank test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil_zoo.noted import undefined
from mil_zoo.survival.inputs import Bools, Floats, Ints, times_and_events

UNINFORMED = "no event at which both groups are at risk"


@dataclass(frozen=True)
class LogRank:
    """Result of :func:`logrank`.

    Attributes:
        chi2: the statistic; NaN, with the reason, without an event at which two groups are at risk.
        df: its degrees of freedom: groups that are at risk together with others, less one.
        p: of "all groups have one survival curve".
        groups: ``[k]``, sorted.
        observed: events of each group, ``[k]``.
        expected: those that it would have if all groups had one curve, ``[k]``.
    """

    chi2: float
    df: int
    p: float
    groups: NDArray[Any]
    observed: Floats
    expected: Floats


def logrank(time: ArrayLike, event: ArrayLike, group: ArrayLike, strata: ArrayLike | None = None) -> LogRank:
    """Log-rank test of k groups, within strata where they are given (the folds of a cross-validation).

    At each time of an event d of n patients at risk have it, and of a group with n_g at risk ``d n_g / n`` are expected
    to. ``chi2 = (O - E)' V^-1 (O - E)``, V the sum of the hypergeometric covariances; O, E and V add over strata.

    Args:
        time: ``[n]``.
        event: ``[n]``, 1 or 0.
        group: ``[n]``, any values.
        strata: ``[n]``, any values; None for one stratum.

    Source: Mantel 1966; Peto & Peto, Journal of the Royal Statistical Society A 135 (1972).
    """
    times, events = times_and_events(time, event)
    groups, member = np.unique(np.asarray(group), return_inverse=True)
    stratum = np.zeros(len(times), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    parts = [_stratum(times[own], events[own], member[own], len(groups)) for own in _each(stratum)]
    observed, expected = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
    variance = np.sum([part[2] for part in parts], axis=0)
    df = int(np.linalg.matrix_rank(variance, tol=1e-9 * max(1.0, float(np.abs(variance).max()))))
    if not df:
        return LogRank(undefined(UNINFORMED), 0, undefined(UNINFORMED), groups, observed, expected)
    from scipy.special import chdtrc

    apart = observed - expected
    chi2 = float(apart @ np.linalg.pinv(variance, rcond=1e-9, hermitian=True) @ apart)
    return LogRank(chi2, df, float(chdtrc(df, chi2)), groups, observed, expected)


def _each(numbers: Ints) -> list[Bools]:
    return [numbers == number for number in np.unique(numbers)]


def _stratum(times: Floats, events: Bools, member: Ints, k: int) -> tuple[Floats, Floats, Floats]:
    distinct, place = np.unique(times, return_inverse=True)
    of_group = [np.bincount(place[member == g], minlength=len(distinct)) for g in range(k)]
    at_risk = np.cumsum(np.array(of_group, dtype=np.float64)[:, ::-1], axis=1)[:, ::-1]  # [k, times]
    dead = np.array([np.bincount(place[(member == g) & events], minlength=len(distinct)) for g in range(k)])
    n, d = at_risk.sum(0), dead.sum(0)
    share = at_risk / n
    spread = d * (n - d) / np.maximum(n - 1, 1)
    variance = np.diag((spread * share).sum(1)) - (spread * share) @ share.T
    return dead.sum(1).astype(np.float64), (d * share).sum(1), variance
