"""What was predicted beside what was observed: calibration of survival probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mil_zoo.errors import InputError
from mil_zoo.noted import undefined
from mil_zoo.survival.inputs import Bools, Floats, Ints, missing, of_patients, ratio, times_and_events, weights_of
from mil_zoo.survival.kaplan_meier import kaplan_meier, survival_of_draws

AT_RISK = 5  # patients of a group who are followed to the horizon, for it to be drawn
FEW = 100  # patients, below which there are three groups


@dataclass(frozen=True)
class DCalibration:
    """Result of :func:`d_calibration`.

    Attributes:
        p: of "the predicted probabilities are calibrated": small where they are not; NaN, with the reason, without an
            event.
        counts: patients in each bin of the predicted survival, from low to high, ``[B]``; n / B are expected in each.
    """

    p: float
    counts: Floats


@dataclass(frozen=True)
class CalibrationGroups:
    """Result of :func:`calibration_groups`; a row a group, from low to high predicted risk, ``[G]`` each.

    Attributes:
        predicted: mean predicted risk, 1 - S(t).
        observed: 1 - the Kaplan-Meier curve of the group at t; NaN beyond its follow-up.
        low, high: 95 % band of it (Greenwood, log-log); NaN where nobody or everybody has had the event.
        patients: in the group.
        at_risk: of them, followed to t.
        drawn: whether enough are (5) for the group to be shown.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    patients: Ints
    at_risk: Ints
    drawn: Bools


def d_calibration(
    event: ArrayLike, survival: ArrayLike, bins: int = 10, weights: ArrayLike | None = None
) -> DCalibration:
    """Whether the predicted survival at each patient's own time is uniform, as it is if the curves are right.

    A patient with an event counts in the bin of ``S_i(t_i)``. One censored with ``S_i(c_i) = s`` would have had it at a
    time with S anywhere in (0, s): the bin of s gets ``(s - its lower edge) / s``, each bin below ``1 / (B s)``. The
    chi2 of the counts against n / B has B - 1 degrees of freedom.

    Args:
        event: ``[n]``, 1 or 0.
        survival: ``S_i`` at the patient's own time, ``[n]``. Of one followed beyond the end of the predicted curve: S
            at its end, and no event.
        bins: B.
        weights: ``[n]``, how often each patient counts; None for once.

    Source: Haider et al., JMLR 21 (2020).
    """
    own = of_patients(survival, len(np.asarray(event)), "a predicted survival")
    _, events = times_and_events(np.zeros(len(own)), event)
    w = weights_of(weights, len(own))
    if why := missing(own, "predicted survival at their own time"):
        return DCalibration(undefined(why), np.full(bins, np.nan))
    if ((own < 0) | (own > 1)).any():
        raise InputError(f"a predicted survival lies in [0, 1]; patient {int(((own < 0) | (own > 1)).argmax())} is out")
    place = np.minimum((own * bins).astype(np.int64), bins - 1)
    lower = np.arange(bins) / bins
    some = np.where(own > 0, own, 1.0)[:, None]
    spread = np.clip(own[:, None] - lower, 0, 1 / bins) / some
    spread[:, 0] = np.where(own > 0, spread[:, 0], 1.0)
    rows = np.where(events[:, None], place[:, None] == np.arange(bins), spread)
    counts = w @ rows
    if not (w * events).any():
        return DCalibration(undefined("no event"), counts)
    from scipy.special import chdtrc

    expected = w.sum() / bins
    return DCalibration(float(chdtrc(bins - 1, ((counts - expected) ** 2 / expected).sum())), counts)


def observed_over_expected(
    time: ArrayLike, event: ArrayLike, survival: ArrayLike, t: float, weights: ArrayLike | None = None
) -> Any:
    """Events observed by t over those predicted, ``(1 - KM(t)) / mean_i (1 - S_i(t))``; 1 is best.

    Args:
        time, event: ``[n]``.
        survival: ``S_i(t)``, ``[n]``.
        t: the time.
        weights: ``[n]``, how often each patient counts, or ``[R, n]``, then ``[R]`` values come back; None for once.

    Returns:
        the ratio; NaN, with the reason, where the Kaplan-Meier curve does not reach t or no event is predicted.
    """
    predicted = of_patients(survival, len(np.asarray(time)), "a predicted survival")
    w = weights_of(weights, len(predicted))
    if why := missing(predicted, f"predicted survival at time {t:g}"):
        return undefined(why) if w.ndim == 1 else np.full(len(w), np.nan)
    if w.ndim > 1:
        with np.errstate(invalid="ignore"):  # draws without a patient
            risks = 1 - w @ predicted / w.sum(1)
        return ratio(1 - survival_of_draws(time, event, w, [t])[:, 0], risks)
    curve = kaplan_meier(time, event, w)
    observed, expected = 1 - curve.at(t), 1 - float(np.average(predicted, weights=w))
    if np.isnan(observed):
        return undefined(f"follow-up ends at time {curve.last:g}, before time {t:g}")
    return observed / expected if expected > 0 else undefined(f"no event is predicted by time {t:g}")


def calibration_groups(
    time: ArrayLike, event: ArrayLike, survival: ArrayLike, t: float, groups: int | None = None
) -> CalibrationGroups:
    """Groups of equal predicted risk at t, with what was predicted and what was observed in each.

    Args:
        time, event: ``[n]``.
        survival: ``S_i(t)``, ``[n]``.
        t: the horizon.
        groups: their number by quantiles of the predicted risk; None for 5, below 100 patients 3. Equal predictions
            stay in one group, so that there may be fewer.

    Raises:
        InputError: a prediction is missing.
    """
    times, events = times_and_events(time, event)
    risk = 1 - of_patients(survival, len(times), "a predicted survival")
    if why := missing(risk, f"predicted survival at time {t:g}"):
        raise InputError(f"{why}; leave them out of the calibration, and say so")
    number = groups or (5 if len(risk) >= FEW else 3)
    edges = np.unique(np.quantile(risk, np.arange(1, number) / number))
    place = np.searchsorted(edges, risk, side="left")
    rows = []
    for own in (place == g for g in np.unique(place)):
        curve = kaplan_meier(times[own], events[own])
        low, high = curve.band(t)
        rows.append((risk[own].mean(), 1 - curve.at(t), 1 - high, 1 - low, own.sum(), (times[own] >= t).sum()))
    table = np.array(rows, dtype=np.float64).T
    predicted, observed, low, high = table[:4]
    patients, at_risk = table[4:].astype(np.int64)
    drawn = (at_risk >= AT_RISK) & ~np.isnan(observed)
    return CalibrationGroups(predicted, observed, low, high, patients, at_risk, drawn)
