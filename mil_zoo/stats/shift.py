"""What happens to probabilities on another cohort: calibration, and what is carried over from validation slides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from mil_zoo.noted import undefined
from mil_zoo.stats.resampling import Floats

_SMALLEST = 1e-12  # of a probability, so that its log is finite
_COLDEST, _HOTTEST = 0.02, 50.0  # temperatures that are tried


def calibration_in_the_large(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """The shift of the log-odds that would make predictions right on average; 0 where they are.

    It solves ``sum sigmoid(a + logit(p_i)) = sum y_i``: above 0 the event is more frequent than predicted.

    Args:
        labels: ``[n]``, 0 or 1.
        probabilities: ``[n]``, of label 1.

    Returns:
        a; NaN, with the reason, where labels are all the same.

    Source: Cox, Biometrika 45 (1958); Steyerberg, Clinical Prediction Models (2019), chapter 15.
    """
    y, z = _labels_and_odds(labels, probabilities)
    if len(np.unique(y)) < 2:
        return undefined("labels of one class only")
    bound = np.abs(z).max() + 50
    return float(optimize.brentq(lambda a: float((special.expit(a + z) - y).sum()), -bound, bound))


def calibration_slope(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """How much steeper than predicted the log-odds of the label rise; 1 where they rise as predicted.

    The slope b of the logistic regression ``logit(y) = a + b logit(p)``: below 1 predictions are too extreme, as those
    of an overfitted model. Arguments as in :func:`calibration_in_the_large`.

    Returns:
        b; NaN, with the reason, where labels are all the same, predictions are, or they part the labels without error.
    """
    y, z = _labels_and_odds(labels, probabilities)
    if len(np.unique(y)) < 2:
        return undefined("labels of one class only")
    if np.ptp(z) < 1e-9:
        return undefined("constant predictions")
    up, down = z[y == 1], z[y == 0]
    if up.min() >= down.max() or up.max() <= down.min():
        return undefined("predictions part the classes without error")
    centre, spread = z.mean(), z.std()
    x = (z - centre) / spread

    def loss(at: Floats) -> tuple[float, Floats]:
        odds = at[0] + at[1] * x
        error = special.expit(odds) - y
        return float((np.logaddexp(0, odds) - y * odds).sum()), np.array([error.sum(), (error * x).sum()])

    found = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8})
    return float(found.x[1] / spread)


def fit_temperature(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """The temperature T that makes ``softmax(log p / T)`` most likely; above 1 the model was too sure.

    Fit it on validation slides and never on those that it is judged by.

    Args:
        labels: ``[n]`` class indices.
        probabilities: ``[n, C]``.

    Returns:
        T between 0.02 and 50; NaN, with the reason, without a label.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    y = np.asarray(labels, dtype=np.int64)
    if not len(y):
        return undefined("no validation slide")
    found = optimize.minimize_scalar(
        lambda t: negative_log_likelihood(y, at_temperature(probabilities, float(np.exp(t)))),
        bounds=(np.log(_COLDEST), np.log(_HOTTEST)),
        method="bounded",
    )
    return float(np.exp(found.x))


def at_temperature(probabilities: npt.ArrayLike, temperature: float) -> Floats:
    """``softmax(log p / T)``, ``[n, C]``."""
    logs = np.log(np.clip(np.asarray(probabilities, dtype=np.float64), _SMALLEST, 1)) / temperature
    return np.asarray(special.softmax(logs, axis=1))


def negative_log_likelihood(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean of ``-log p`` of the true class."""
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    return float(-np.log(np.clip(p[np.arange(len(y)), y], _SMALLEST, 1)).mean())


def best_threshold(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """The threshold of highest balanced accuracy (Youden), in the middle of the gap where it lies; ``p >= t`` is 1.

    Arguments as in :func:`calibration_in_the_large`; NaN, with the reason, where labels are all the same.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if len(np.unique(y)) < 2:
        return undefined("labels of one class only")
    values = np.unique(p)
    cuts = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2])
    above = p[:, None] >= cuts
    youden = above[y == 1].mean(0) - above[y == 0].mean(0)
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def _labels_and_odds(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Floats, Floats]:
    p = np.clip(np.asarray(probabilities, dtype=np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.asarray(labels, dtype=np.float64), special.logit(p)
