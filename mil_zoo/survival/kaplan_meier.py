"""Kaplan-Meier curves: of survival, and of censoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mil_zoo.noted import undefined
from mil_zoo.survival.inputs import Floats, times_and_events, weights_of

_Z = 1.959963984540054  # of the normal distribution, 97.5 %
_ROUNDING = 1e-12


@dataclass(frozen=True)
class KaplanMeier:
    """A step function that starts at 1 at time 0 and falls at the times of events.

    Attributes:
        time: distinct times, ``[K]``, ascending.
        survival: share that lives beyond each, ``[K]``.
        se: Greenwood's standard error, ``[K]``; NaN where the curve is 0.
        low, high: 95 % band, Greenwood's on the log-log scale, ``[K]``; NaN where the curve is 1 or 0.
        at_risk: patients with ``time >=`` each, ``[K]``.
        events: at each, ``[K]``.
        censored: at each, ``[K]``.
    """

    time: Floats
    survival: Floats
    se: Floats
    low: Floats
    high: Floats
    at_risk: Floats
    events: Floats
    censored: Floats

    @property
    def last(self) -> float:
        """The last time that anybody is followed to."""
        return float(self.time[-1])

    def at(self, times: ArrayLike) -> Any:
        """S(t) of each time: NaN beyond the last one, unless the curve has reached 0."""
        return self._read(self.survival, times, "right", before=1.0)

    def before(self, times: ArrayLike) -> Any:
        """S(t-), the value just before each time."""
        return self._read(self.survival, times, "left", before=1.0)

    def band(self, times: ArrayLike) -> tuple[Any, Any]:
        """Lower and upper end of the 95 % band at each time."""
        return self._read(self.low, times, "right", before=np.nan), self._read(self.high, times, "right", before=np.nan)

    def number_at_risk(self, times: ArrayLike) -> Floats:
        """Patients with ``time >=`` each of the times, as they stand below a plot."""
        return np.append(self.at_risk, 0.0)[np.searchsorted(self.time, times)]

    @property
    def median(self) -> float:
        """The first time at which the curve is at one half or below."""
        below = self.survival <= 0.5 + _ROUNDING
        return float(self.time[below.argmax()]) if below.any() else undefined("the curve stays above one half")

    def restricted_mean(self, until: float) -> float:
        """Mean time lived up to ``until``: the area under the curve (RMST)."""
        if until > self.last and self.survival[-1] > 0:
            return undefined(f"follow-up ends at time {self.last:g}, before time {until:g}")
        inside = self.time < until
        steps = np.concatenate([[0.0], self.time[inside], [until]])
        return float(np.diff(steps) @ np.append(1.0, self.survival[inside]))

    def _read(self, values: Floats, times: ArrayLike, side: Any, before: float) -> Any:
        at = np.asarray(times, dtype=np.float64)
        found = np.append(before, values)[np.searchsorted(self.time, at, side=side)]
        unknown = np.isnan(at) | ((at > self.last) & (self.survival[-1] > 0))
        found = np.where(unknown, np.nan, found)
        return found if found.ndim else float(found)


def kaplan_meier(time: ArrayLike, event: ArrayLike, weights: ArrayLike | None = None) -> KaplanMeier:
    """The Kaplan-Meier curve ``S(t) = prod_{t_k <= t} (1 - d_k / n_k)``, d_k events among n_k at risk.

    ::

        curve = kaplan_meier(time=[5, 8, 8, 12], event=[1, 1, 0, 0])
        curve.at(8), curve.median, curve.number_at_risk([0, 6, 12])  # 0.5, 8.0, [4, 3, 1]

    Args:
        time: ``[n]``.
        event: ``[n]``, 1 or 0.
        weights: ``[n]``, how often each patient counts; None for once.

    Raises:
        InputError: see :mod:`mil_zoo.survival`.

    Source: Kaplan & Meier, JASA 53 (1958); Greenwood 1926; band: Kalbfleisch & Prentice (1980).
    """
    times, dead, gone, at_risk = _counts(time, event, weights)
    return _curve(times, at_risk, dead, gone)


def survival_of_draws(time: ArrayLike, event: ArrayLike, weights: Floats, times: ArrayLike) -> Floats:
    """What :func:`kaplan_meier` has at ``times`` ``[T]`` for each of many weightings ``[R, n]``: ``[R, T]``."""
    sought, events = times_and_events(time, event)
    w, at = weights_of(weights, len(sought)), np.asarray(times, dtype=np.float64)
    order = np.argsort(sought, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(sought[order]) > 0))
    dead, all_of_them = (np.add.reduceat((w * one)[:, order], starts, axis=1) for one in (events, 1))
    at_risk = np.cumsum(all_of_them[:, ::-1], axis=1)[:, ::-1]
    curve = np.cumprod(1 - dead / np.where(at_risk > 0, at_risk, 1), axis=1)
    place = np.searchsorted(sought[order][starts], at, side="right")
    found = np.concatenate([np.ones((len(w), 1)), curve], axis=1)[:, place]
    last = np.where(w > 0, sought, -1).max(1, keepdims=True)
    return np.where((at > last) & (found > 0), np.nan, found)


def censoring_curve(time: ArrayLike, event: ArrayLike) -> KaplanMeier:
    """The curve G of the time to censoring; its ``events`` are the censored patients.

    At equal times an event comes before a censoring: who has it is not at risk of being censored any more. ``before``
    is G(t-), by which events are weighted.

    Args:
        time: ``[n]``.
        event: ``[n]``, 1 or 0: of the event, not of censoring.

    Source: Gerds & Schumacher, Biometrical Journal 48 (2006).
    """
    times, dead, gone, at_risk = _counts(time, event, None)
    return _curve(times, at_risk - dead, gone, dead)


def follow_up(time: ArrayLike, event: ArrayLike) -> float:
    """Median follow-up by the reverse Kaplan-Meier curve, that of being censored; NaN where it stays above one half.

    At equal times a patient with the event still counts as followed, unlike in :func:`censoring_curve`.

    Source: Schemper & Smith, Controlled Clinical Trials 17 (1996).
    """
    times, events = times_and_events(time, event)
    return kaplan_meier(times, ~events).median


def _counts(time: ArrayLike, event: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, ...]:
    times, events = times_and_events(time, event)
    w = weights_of(weights, len(times))
    distinct, place = np.unique(times[w > 0], return_inverse=True)
    w, events = w[w > 0], events[w > 0]
    dead, gone = (np.bincount(place, w * which, len(distinct)).astype(np.float64) for which in (events, ~events))
    at_risk: Floats = np.cumsum((dead + gone)[::-1])[::-1]
    return distinct, dead, gone, at_risk


def _curve(times: Floats, at_risk: Floats, events: Floats, censored: Floats) -> KaplanMeier:
    some = np.where(at_risk > 0, at_risk, 1.0)
    survival = np.asarray(np.cumprod(1 - events / some), dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.cumsum(events / (some * (some - events))))
        se = np.where(survival > 0, survival * spread, np.nan).astype(np.float64)
        power = np.exp(_Z * spread / -np.log(survival))
        inside = (survival > 0) & (survival < 1)
        low, high = (np.where(inside, survival**exponent, np.nan) for exponent in (power, 1 / power))
    return KaplanMeier(times, survival, se, low, high, at_risk, events, censored)
