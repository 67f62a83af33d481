"""Scores at a time, of patients of whom some were not followed to it: AUC(t) and Brier score, weighted for censoring.

A patient with an event counts ``1 / G(t_i-)``, one who is alive at t ``1 / G(t)``, where G is the censoring curve of
the training patients: each stands for those who were lost before (inverse probability of censoring weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mil_zoo.errors import InputError
from mil_zoo.noted import Noted, note_of, undefined
from mil_zoo.survival.concordance import TIED, inverse_censoring, without_lost
from mil_zoo.survival.inputs import Bools, Floats, missing, of_patients, ratio, times_and_events, weights_of
from mil_zoo.survival.kaplan_meier import censoring_curve, kaplan_meier, survival_of_draws


@dataclass(frozen=True)
class TimeDependentAUC:
    """Result of :func:`cumulative_dynamic_auc`.

    Attributes:
        times: ``[T]``.
        auc: of each, ``[T]``; NaN where undefined.
        reasons: why, ``[T]``; "" where it is defined.
        mean: weighted by the fall of the test patients' Kaplan-Meier curve up to each time.
    """

    times: Floats
    auc: Floats
    reasons: tuple[str, ...]
    mean: float


def cumulative_dynamic_auc(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    train_time: ArrayLike,
    train_event: ArrayLike,
    times: ArrayLike,
    weights: ArrayLike | None = None,
) -> TimeDependentAUC:
    """AUC(t): of pairs of one with the event by t and one followed beyond t, the share with the higher risk first.

    ``sum_i sum_j 1[t_i <= t, event] 1[t_j > t] 1[r_i > r_j] / G(t_i-)`` over the same without the order; risks tied
    (within 1e-8) count half.

    Args:
        time, event, risk: of the test patients, ``[n]``.
        train_time, train_event: of the training patients, ``[m]``.
        times: t, ``[T]`` or one, ascending.
        weights: ``[n]``, how often each patient counts; None for once.

    Source: Uno et al., JASA 102 (2007); Hung & Chiang, Canadian Journal of Statistics 38 (2010); the mean: Lambert &
        Chevret, Statistical Methods in Medical Research 25 (2016).
    """
    at = np.atleast_1d(np.asarray(times, dtype=np.float64))
    values = [auc_at(time, event, risk, train_time, train_event, t, weights) for t in at]
    curve = kaplan_meier(time, event, weights)
    survival = np.append(1.0, curve.at(at))
    falls, mean = -np.diff(survival), undefined("no event up to the last time")
    if np.isnan(survival).any():
        mean = undefined(f"follow-up ends at time {curve.last:g}, before time {at[-1]:g}")
    elif falls.sum() > 0:
        needed = [value for value, fall in zip(values, falls, strict=True) if fall > 0]
        why = next((note_of(value) for value in needed if np.isnan(value)), "")
        total = np.where(falls > 0, falls * np.nan_to_num(np.array(values)), 0).sum() / falls.sum()
        mean = undefined(why) if why else total
    return TimeDependentAUC(at, np.array(values, dtype=np.float64), tuple(map(note_of, values)), mean)


def mean_auc_of_draws(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    train_time: ArrayLike,
    train_event: ArrayLike,
    times: ArrayLike,
    weights: Floats,
) -> Floats:
    """The mean of :func:`cumulative_dynamic_auc` for each of many weightings ``[R, n]``: ``[R]``."""
    at = np.atleast_1d(np.asarray(times, dtype=np.float64))
    values = np.stack([auc_at(time, event, risk, train_time, train_event, t, weights) for t in at], axis=1)
    survival = np.concatenate([np.ones((len(weights), 1)), survival_of_draws(time, event, weights, at)], axis=1)
    falls = -np.diff(survival, axis=1)
    return np.asarray(ratio(np.where(falls == 0, 0, falls * values).sum(1), falls.sum(1)))


def auc_at(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    train_time: ArrayLike,
    train_event: ArrayLike,
    t: float,
    weights: ArrayLike | None = None,
) -> Any:
    """AUC at one time, see :func:`cumulative_dynamic_auc`; of weights ``[R, n]`` the values ``[R]``."""
    sought, events = times_and_events(time, event)
    risks = of_patients(risk, len(sought), "a risk")
    w = weights_of(weights, len(sought))
    if gone := missing(risks, "risk"):
        return undefined(gone) if w.ndim == 1 else np.full(len(w), np.nan)
    case, control = events & (sought <= t), sought > t
    censoring = censoring_curve(*times_and_events(train_time, train_event, "training patients"))
    inverse, lost = inverse_censoring(censoring, sought, case)
    order = np.argsort(risks, kind="stable")
    sums = np.concatenate([np.zeros((*w.shape[:-1], 1)), np.cumsum((w * control)[..., order], axis=-1)], axis=-1)
    lower = sums[..., np.searchsorted(risks[order], risks - TIED, side="left")]
    upto = sums[..., np.searchsorted(risks[order], risks + TIED, side="right")]
    mine = w * inverse
    value = ratio((mine * (lower + upto) / 2).sum(-1), mine.sum(-1) * sums[..., -1])
    if not value.ndim:
        if not (w * case).any():
            return undefined(f"no event up to time {t:g}")
        if not (w * control).any():
            return undefined(f"nobody is followed beyond time {t:g}")
        value = float(value)
    return without_lost(value, lost, sought, weights)


def brier_survival(
    time: ArrayLike,
    event: ArrayLike,
    survival: ArrayLike,
    train_time: ArrayLike,
    train_event: ArrayLike,
    t: float,
    weights: ArrayLike | None = None,
) -> Any:
    """The Brier score at t: the mean squared distance of the predicted survival from what happened.

    ``1 / n sum_i [S_i(t)^2 / G(t_i-)`` if dead by t, ``(1 - S_i(t))^2 / G(t)`` if alive at t, 0 if lost before].

    Args:
        time, event: of the test patients, ``[n]``.
        survival: ``S_i(t)``, the predicted probability to live beyond t, ``[n]``.
        train_time, train_event: of the training patients, ``[m]``.
        t: the time.
        weights: ``[n]``, how often each patient counts, or ``[R, n]``, then ``[R]`` values come back.

    Returns:
        the score, with a remark where nobody is followed beyond t; NaN, with the reason, where t is beyond the training
        patients' follow-up, G is 0 where it is needed, or a prediction is missing.

    Source: Graf et al., Statistics in Medicine 18 (1999).
    """
    sought, events = times_and_events(time, event)
    predicted = of_patients(survival, len(sought), "a predicted survival")
    if predicted.ndim != 1:
        raise InputError(f"the Brier score at time {t:g} takes a survival of each patient, not {predicted.shape}")
    train = times_and_events(train_time, train_event, "training patients")
    w = weights_of(weights, len(sought))
    score = _brier_scores(sought, events, predicted[:, None], *train, np.array([t]), w)[..., 0]
    if score.ndim:
        return score
    if not np.isnan(score):
        followed = (w * (sought > t)).any()
        return float(score) if followed else Noted(float(score), f"nobody is followed beyond time {t:g}")
    longest = float(train[0].max())
    if t > longest:
        return undefined(f"the training patients are followed to time {longest:g}, not to time {t:g}")
    if why := missing(predicted, f"predicted survival at time {t:g}"):
        return undefined(why)
    return undefined(
        f"the training patients' censoring curve is 0 or not known at or before time {t:g}; choose a smaller horizon"
    )


def _brier_scores(
    time: Floats,
    event: Bools,
    survival: Floats,
    train_time: Floats,
    train_event: Bools,
    times: Floats,
    weights: Floats,
) -> Floats:
    """The Brier scores ``[..., T]`` of survival ``[n, T]`` at times ``[T]``; NaN where one is undefined."""
    censoring = censoring_curve(train_time, train_event)
    inverse, lost = inverse_censoring(censoring, time, event)
    dead, alive = event[:, None] & (time[:, None] <= times), time[:, None] > times
    at_t = np.atleast_1d(censoring.at(times))
    unknown = (dead & lost[:, None]) | (alive & ~(at_t > 0))
    error = np.where(dead, survival**2 * inverse[:, None], 0)
    error += np.where(alive, (1 - survival) ** 2 / np.where(at_t > 0, at_t, 1), 0)
    beyond = (times > train_time.max()) | np.isnan(survival).any(0)
    scores = ratio(weights @ np.where(np.isnan(error), 0, error), weights.sum(-1, keepdims=True))
    return np.where(beyond | (weights @ unknown > 0), np.nan, scores)


def integrated_brier(
    time: ArrayLike,
    event: ArrayLike,
    survival: ArrayLike,
    train_time: ArrayLike,
    train_event: ArrayLike,
    times: ArrayLike,
    weights: ArrayLike | None = None,
) -> Any:
    """The mean of the Brier score over a span of time: the trapezoid rule over ``times``, divided by their span.

    Args:
        time, event, train_time, train_event, weights: as in :func:`brier_survival`.
        survival: ``[n, T]``, at each of the times.
        times: ``[T]``, ascending, two or more.

    Raises:
        InputError: times and survival of other shapes.
    """
    at = np.asarray(times, dtype=np.float64)
    predicted = np.asarray(survival, dtype=np.float64)
    if at.ndim != 1 or predicted.shape[1:] != at.shape:
        raise InputError(f"times {at.shape} need a survival [patients, times], not {predicted.shape}")
    if len(at) < 2 or not at[-1] > at[0]:
        return undefined("fewer than two times, which are no span to integrate over")
    sought, events = times_and_events(time, event)
    of_patients(predicted, len(sought), "a predicted survival")
    train = times_and_events(train_time, train_event, "training patients")
    scores = _brier_scores(sought, events, predicted, *train, at, weights_of(weights, len(sought)))
    area = (scores[..., 1:] + scores[..., :-1]) @ np.diff(at) / 2 / (at[-1] - at[0])
    if np.ndim(area) or not np.isnan(area):
        return area if np.ndim(area) else float(area)
    first = int(np.isnan(scores).argmax())
    why = note_of(brier_survival(sought, events, predicted[:, first], *train, at[first], weights))
    return undefined(why)
