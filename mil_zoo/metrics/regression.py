"""Scores of a predicted number. Arguments: targets ``[n]`` and predictions ``[n]``, in one unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mil_zoo.metrics.registry import register_metric
from mil_zoo.noted import undefined

Floats = NDArray[np.float64]


class _Moments(NamedTuple):
    """Of the rows that count: their weights (sum 1), targets, predictions; and why these cannot be compared."""

    share: Floats
    target: Floats
    predicted: Floats
    constant_target: str
    constant_prediction: str

    def covariance(self, a: Floats, b: Floats) -> float:
        return float(self.share @ ((a - self.share @ a) * (b - self.share @ b)))


def _moments(targets: Any, predicted: Any, weights: Any) -> _Moments:
    t, p = np.asarray(targets, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    w = np.ones(len(t)) if weights is None else np.asarray(weights, dtype=np.float64)
    t, p, w = t[w > 0], p[w > 0], w[w > 0]
    few = "fewer than two bags" if len(t) < 2 else ""
    reasons = [
        few or (f"constant {name}" if np.ptp(one) == 0 else "") for name, one in (("target", t), ("prediction", p))
    ]
    return _Moments(w / w.sum(), t, p, *reasons)


@register_metric("mae", title="MAE", higher_is_better=False, task="regression", batched=True, bounds=(0, np.inf))
def mae(targets: Floats, predicted: Floats, weights: Floats | None = None) -> Any:
    """Mean absolute error, in the unit of the target."""
    w = np.ones(len(targets)) if weights is None else weights
    with np.errstate(invalid="ignore"):  # draws without a patient of this part
        return w @ np.abs(targets - predicted) / w.sum(-1)


@register_metric("rmse", title="RMSE", higher_is_better=False, task="regression", batched=True, bounds=(0, np.inf))
def rmse(targets: Floats, predicted: Floats, weights: Floats | None = None) -> Any:
    """Root of the mean squared error, in the unit of the target."""
    w = np.ones(len(targets)) if weights is None else weights
    with np.errstate(invalid="ignore"):
        return np.sqrt(w @ (targets - predicted) ** 2 / w.sum(-1))


@register_metric("r2", title="R2", higher_is_better=True, task="regression", bounds=(-np.inf, 1))
def r2(targets: Floats, predicted: Floats, weights: Floats | None = None) -> float:
    """``1 - sum (y - p)^2 / sum (y - mean y)^2``: 0 is the mean for all, below 0 is worse than that."""
    m = _moments(targets, predicted, weights)
    if m.constant_target:
        return undefined(m.constant_target)
    return float(1 - m.share @ (m.target - m.predicted) ** 2 / m.covariance(m.target, m.target))


@register_metric("pearson", title="Pearson's r", higher_is_better=True, task="regression", bounds=(-1, 1))
def pearson(targets: Floats, predicted: Floats, weights: Floats | None = None) -> float:
    """Correlation of targets and predictions."""
    m = _moments(targets, predicted, weights)
    if why := m.constant_target or m.constant_prediction:
        return undefined(why)
    scale = np.sqrt(m.covariance(m.target, m.target) * m.covariance(m.predicted, m.predicted))
    return float(m.covariance(m.target, m.predicted) / scale)


@register_metric("spearman", title="Spearman's rho", higher_is_better=True, task="regression", bounds=(-1, 1))
def spearman(targets: Floats, predicted: Floats, weights: Floats | None = None) -> float:
    """Correlation of their ranks; equal values share their mean rank."""
    w = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=np.float64)
    return pearson(_ranks(np.asarray(targets), w), _ranks(np.asarray(predicted), w), weights)


@register_metric("ccc", title="CCC", higher_is_better=True, task="regression", bounds=(-1, 1))
def ccc(targets: Floats, predicted: Floats, weights: Floats | None = None) -> float:
    """Lin's concordance, ``2 s_yp / (s_y^2 + s_p^2 + (mean y - mean p)^2)``, with n: agreement, not only correlation.

    Source: Lin, Biometrics 45 (1989).
    """
    m = _moments(targets, predicted, weights)
    if m.constant_target:
        return undefined(m.constant_target)
    apart = float(m.share @ m.target - m.share @ m.predicted)
    spread = m.covariance(m.target, m.target) + m.covariance(m.predicted, m.predicted)
    return 2 * m.covariance(m.target, m.predicted) / (spread + apart**2)


def _ranks(values: NDArray[Any], weights: Floats) -> Floats:
    """Mean ranks of rows that stand as often as their weights say."""
    _, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weights)
    return np.asarray((np.cumsum(mass) - mass / 2)[place])
