"""Concordance: of the pairs whose order is known, the share that the risk puts in the right order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mil_zoo.noted import Noted, undefined
from mil_zoo.survival.inputs import Bools, Floats, Ints, missing, of_patients, ratio, times_and_events, weights_of
from mil_zoo.survival.kaplan_meier import KaplanMeier, censoring_curve

TIED = 1e-8  # risks that differ by no more are one
_ENTRIES = 4_000_000  # weights that are held at once
NO_EVENT = "no event"
NO_PAIR = "no comparable pair: every event is at or after all other times"
CONSTANT = "constant risk"


@dataclass(frozen=True)
class Pairs:
    """Comparable pairs (of weight): a float each, or ``[R]`` of R weightings.

    Attributes:
        concordant: the patient with the earlier event has the higher risk.
        discordant: has the lower one.
        tied: their risks differ by no more than 1e-8.
    """

    concordant: Any
    discordant: Any
    tied: Any

    @property
    def comparable(self) -> Any:
        """All of them."""
        return self.concordant + self.discordant + self.tied

    @property
    def share(self) -> Any:
        """``(concordant + tied / 2) / comparable``; NaN without any pair."""
        return ratio(self.concordant + self.tied / 2, self.comparable)


def concordance(time: ArrayLike, event: ArrayLike, risk: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Harrell's C: the share of comparable pairs in the right order, tied risks counting half.

    Comparable are a patient i with an event and a patient j with ``t_j > t_i``, or ``t_j = t_i`` and j censored. A risk
    that is the same for all gives 0.5, with the remark "constant risk". C below 0.5 stays below: nobody turns it round.

    ::

        concordance(time=[5, 8, 12], event=[1, 0, 1], risk=[2.0, 0.5, 1.0])  # 1.0: both pairs with patient 0

    Args:
        time: ``[n]``.
        event: ``[n]``, 1 or 0.
        risk: ``[n]``, higher means earlier.
        weights: ``[n]``, how often each patient counts, or ``[R, n]``, then ``[R]`` values come back.

    Returns:
        C; NaN, with the reason, where no pair is comparable or a risk is missing.

    Raises:
        InputError: see :mod:`mil_zoo.survival`.

    Source: Harrell, Lee & Mark, Statistics in Medicine 15 (1996).
    """
    times, events = times_and_events(time, event)
    risks = of_patients(risk, len(times), "a risk")
    if gone := missing(risks, "risk"):
        return _all_undefined(gone, weights)
    pairs = concordance_pairs(times, events, risks, weights)
    return _share(pairs, risks, weights, NO_PAIR if events.any() else NO_EVENT)


def concordance_ipcw(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    train_time: ArrayLike,
    train_event: ArrayLike,
    tau: float | None = None,
    weights: ArrayLike | None = None,
) -> Any:
    """Uno's C: as :func:`concordance`, each pair weighted by ``1 / G(t_i-)^2``, for events before ``tau``.

    G is the censoring curve of the training patients. With it C does not depend on how patients happened to be
    censored; ``tau`` keeps the weights bounded.

    Args:
        time, event, risk: as in :func:`concordance`.
        train_time, train_event: of the training patients, ``[m]``.
        tau: events at or beyond it do not count; None for no limit.
        weights: as in :func:`concordance`.

    Returns:
        C; NaN, with the reason, where no pair has its event before tau, or G is 0 or unknown at such an event.

    Source: Uno et al., Statistics in Medicine 30 (2011).
    """
    times, events = times_and_events(time, event)
    risks = of_patients(risk, len(times), "a risk")
    if gone := missing(risks, "risk"):
        return _all_undefined(gone, weights)
    censoring = censoring_curve(*times_and_events(train_time, train_event, "training patients"))
    counted = events if tau is None else events & (times < tau)
    inverse, lost = inverse_censoring(censoring, times, counted)
    pairs = concordance_pairs(times, events, risks, weights, inverse**2)
    why = NO_PAIR if events.any() else NO_EVENT
    if tau is not None and not np.any(pairs.comparable) and np.any(concordance_pairs(times, events, risks).comparable):
        why = f"no comparable pair with its event before time {tau:g}"
    return without_lost(_share(pairs, risks, weights, why), lost, times, weights)


def concordance_pairs(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    weights: ArrayLike | None = None,
    event_weights: ArrayLike | None = None,
) -> Pairs:
    """The comparable pairs of :func:`concordance`, counted in ``O(n log^2 n)``.

    Args:
        time, event, risk: as there; no risk is NaN.
        weights: ``[n]`` or ``[R, n]``; a pair's weight is the product of its patients'.
        event_weights: ``[n]``, by which the pairs of an event are multiplied; None for 1.
    """
    times, events = times_and_events(time, event)
    risks = of_patients(risk, len(times), "a risk")
    w = weights_of(weights, len(times))
    key = 2 * np.unique(times, return_inverse=True)[1] + ~events  # at equal times events come first
    order = np.argsort(key, kind="stable")
    place = np.empty(len(times), dtype=np.int64)
    place[np.argsort(risks, kind="stable")] = np.arange(len(times))
    cases = np.flatnonzero(events)
    start = np.searchsorted(key[order], key[cases], side="right")
    ranked = np.sort(risks)
    below = np.searchsorted(ranked, risks[cases] - TIED, side="left")
    upto = np.searchsorted(ranked, risks[cases] + TIED, side="right")
    factor = np.ones(len(cases)) if event_weights is None else np.asarray(event_weights, dtype=np.float64)[cases]
    rows = w.reshape(-1, len(times))
    counts = []
    for block in np.array_split(rows, max(1, -(-rows.size // _ENTRIES))):
        later = block[:, order]
        lower, not_higher = np.split(
            _weight_below(place[order], later, np.tile(start, 2), np.concatenate([below, upto])), 2, axis=1
        )
        after = np.concatenate([np.cumsum(later[:, ::-1], axis=1)[:, ::-1], np.zeros((len(later), 1))], axis=1)
        mine = block[:, cases] * factor
        both = [lower, after[:, start] - not_higher, not_higher - lower]
        counts.append([(mine * one).sum(1) for one in both])
    sums = [np.concatenate(one).reshape(w.shape[:-1]) for one in zip(*counts, strict=True)]
    return Pairs(*(one if one.ndim else float(one) for one in sums))


def inverse_censoring(censoring: KaplanMeier, times: Floats, counted: Bools) -> tuple[Floats, Bools]:
    """``1 / G(t_i-)`` of the patients that count, 0 of the others; and for whom it is not known or infinite."""
    left = np.where(counted, censoring.before(times), 1.0)
    lost = ~(left > 0)
    return np.where(counted & ~lost, 1 / np.where(lost, 1.0, left), 0.0), lost


def without_lost(value: Any, lost: Bools, times: Floats, weights: ArrayLike | None) -> Any:
    """The value; NaN where a patient of some weight is lost to the weighting (never a weight of 0 in its place)."""
    touched = (weights_of(weights, len(times)) * lost).sum(-1) > 0
    if np.ndim(touched):
        return np.where(touched, np.nan, value)
    if not touched:
        return value
    return undefined(
        f"the training patients' censoring curve is 0 or not known at time {times[lost].min():g}; choose a smaller tau "
        "or horizon"
    )


def _all_undefined(reason: str, weights: ArrayLike | None) -> Any:
    return undefined(reason) if np.ndim(weights if weights is not None else 0) < 2 else np.full(len(weights), np.nan)  # type: ignore[arg-type]


def _share(pairs: Pairs, risks: Floats, weights: ArrayLike | None, why: str) -> Any:
    share = pairs.share
    if share.ndim:
        return share
    if np.isnan(share):
        return undefined(why)
    used = risks if weights is None else risks[np.asarray(weights) > 0]
    return Noted(float(share), CONSTANT) if np.ptp(used) <= TIED else float(share)


def _weight_below(numbers: Ints, weights: Floats, start: Ints, limit: Ints) -> Floats:
    """Of each query the weight of the places from ``start`` on whose number is below ``limit``.

    A wavelet tree: bit by bit from the highest, the numbers are parted into those with a 0 and those with a 1; a query
    whose limit has a 1 takes all the zeros of its range and goes on among the ones, else it goes on among the zeros.

    Args:
        numbers: ``[n]``, a permutation of 0 to n - 1.
        weights: ``[R, n]``, of each place.
        start: ``[Q]``.
        limit: ``[Q]``, 0 to n.

    Returns:
        ``[R, Q]``.
    """
    total = np.zeros((len(weights), len(start)))
    order = np.arange(len(numbers))
    left, right = start, np.full(len(start), len(numbers))
    for bit in reversed(range(len(numbers).bit_length())):
        zero = (numbers[order] >> bit) & 1 == 0
        before = np.append(0, np.cumsum(zero))
        order = np.concatenate([order[zero], order[~zero]])
        sums = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, order[: before[-1]]], axis=1)], axis=1)
        among = (limit >> bit) & 1 == 1
        low, high = before[left], before[right]
        total += np.where(among, sums[:, high] - sums[:, low], 0.0)
        left, right = np.where(among, before[-1] + left - low, low), np.where(among, before[-1] + right - high, high)
    return total
