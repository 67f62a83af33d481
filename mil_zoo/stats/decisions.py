"""What may be said of several aggregators: which can be the best, what differs from a control, what could be seen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from mil_zoo.errors import InputError
from mil_zoo.stats.resampling import Floats

LEVEL = 0.05


@dataclass(frozen=True)
class Best:
    """Result of :func:`could_be_best`.

    Attributes:
        p: of "this one is the best", ``[k]``: small where another one is better.
        members: positions of those that can be the best (p >= the level), in order.
    """

    p: Floats
    members: list[int]


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's step-down adjustment, for any dependence; NaN is no test and stays NaN.

    Adjust only the p-values that answer one question: k aggregators against a control are k - 1 of them, not all pairs.

    Of m tests the i-th smallest p becomes ``max_{j <= i} min(1, (m - j + 1) p_(j))``.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN is sorted last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def could_be_best(p_worse: npt.ArrayLike, level: float = LEVEL) -> Best:
    """Which of k aggregators can be the best: a set that holds the best one with probability ``1 - level``.

    Each is taken as the control in turn and compared with the k - 1 others; it is out where another one is better,
    ``p_i = 2 (k - 1) min_j p_ij < level``. Twice the one-sided p is the pair's two-sided one, so that one of two
    aggregators is out exactly where their test finds a difference, and the set errs half as often as it may. Choosing
    the largest of k means and testing against it would be a choice by the same numbers; here the best one is wrongly
    left out only if one of *its own* k - 1 comparisons errs, whichever it is, so that nothing has to be paid for not
    knowing it. Hsu's multiple comparisons with the best rest on the same argument; Bonferroni's bound stands for
    Dunnett's table, as the correlations differ from pair to pair.

    Args:
        p_worse: ``[k, k]``, at i, j one-sided p of "i is not worse than j", small where i is worse; the diagonal is not
            read, NaN (no test) leaves nobody out.
        level: of the set.

    Raises:
        InputError: not a square table.

    Source: Hsu, Annals of Statistics 9 (1981), and Multiple Comparisons (1996), chapter 4; Edwards & Hsu, JASA 78
        (1983).
    """
    table = np.array(p_worse, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise InputError(f"comparisons with the best need a table [k, k], not {table.shape}")
    k = len(table)
    np.fill_diagonal(table, np.nan)
    smallest = np.where(np.isnan(table), 1.0, table).min(axis=1, initial=1.0)
    p = np.minimum(1.0, 2 * (k - 1) * smallest) if k > 1 else np.ones(k)
    return Best(p, [i for i in range(k) if p[i] >= level])


def detectable_difference(
    se: float, df: float = np.inf, power: float = 0.8, level: float = LEVEL, comparisons: int = 1
) -> float:
    """The least true difference that a two-sided test of this standard error finds with probability ``power``.

    It solves ``P(|T| > t_(1 - level / 2c, df)) = power`` for T noncentral t with ``df`` degrees of freedom and
    noncentrality difference / se (normal for infinite ``df``). Print it beside "no pair differs": a difference below it
    may exist and would not have been seen.

    Args:
        se: standard error of a difference, observed (``PairedT``, ``DeLong``) or assumed (:func:`design_error`).
        df: degrees of freedom; of the corrected t the number of test sets less one.
        power: wanted probability.
        level: of the test.
        comparisons: c, tests that the level is shared by.

    Returns:
        the difference, in the metric's unit; NaN for a standard error that is NaN or 0, or ``df`` below 1.

    Source: Cohen, Statistical Power Analysis (1988), chapter 2, with the corrected error of Nadeau & Bengio 2003.
    """
    if not se > 0 or not df >= 1:
        return np.nan
    tail = level / (2 * comparisons)
    nodes, weights = _nodes()
    if np.isinf(df):
        limits = np.full(len(nodes), stats.norm.isf(tail))
    else:  # T is noncentral t: normal over the root of a chi2 / df, whose quantiles are averaged over
        limits = stats.t.isf(tail, df) * np.sqrt(stats.chi2.ppf((nodes + 1) / 2, df) / df)

    def short_of(noncentrality: float) -> float:
        beyond = stats.norm.sf(limits - noncentrality) + stats.norm.cdf(-limits - noncentrality)
        return float((weights * beyond).sum() / 2 - power)

    high = 1.0
    while short_of(high) < 0:
        high *= 2
    return float(se * optimize.brentq(short_of, 0, high))


def area_error(value: float, positives: float, negatives: float) -> float:
    """Standard error of an area under the ROC curve that is expected to be ``value``.

    ``sqrt((A (1 - A) + (m - 1) (A / (2 - A) - A^2) + (n - 1) (2 A^2 / (1 + A) - A^2)) / (m n))``

    Args:
        value: A.
        positives: m, independent slides (patients) of one class.
        negatives: n, of the other.

    Source: Hanley & McNeil, Radiology 143 (1982).
    """
    a, m, n = value, positives, negatives
    return float(
        np.sqrt((a * (1 - a) + (m - 1) * (a / (2 - a) - a**2) + (n - 1) * (2 * a**2 / (1 + a) - a**2)) / (m * n))
    )


@functools.cache
def _nodes() -> tuple[Floats, Floats]:
    """Nodes and weights of a quadrature on [-1, 1]; they take longer than all that is done with them."""
    return np.polynomial.legendre.leggauss(400)


def design_error(sd: float, test_sets: int, n_train: float, n_test: float, correlation: float = 0.0) -> float:
    """Standard error of a difference that a design would have, by the corrected resampled t.

    ``sd sqrt(2 (1 - correlation)) sqrt(1 / test_sets + n_test / n_train)``.

    Args:
        sd: standard deviation over test sets of one aggregator's metric.
        test_sets: their number.
        n_train: slides in a training set.
        n_test: slides in a test set.
        correlation: of two aggregators' values over test sets.
    """
    return float(sd * np.sqrt(2 * (1 - correlation)) * np.sqrt(1 / test_sets + n_test / n_train))
