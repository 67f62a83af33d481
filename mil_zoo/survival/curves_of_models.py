"""Survival curves of models: discrete hazards in bins of time, and the baseline of proportional hazards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mil_zoo.errors import InputError
from mil_zoo.survival.inputs import Floats, Ints, missing, of_patients, times_and_events


def bin_edges(time: ArrayLike, event: ArrayLike, bins: int = 4) -> Floats:
    """Inner edges of bins of time: the quantiles 1/K, ..., (K - 1)/K of the times of events.

    Of the training patients of a split, and of nobody else. Equal edges are one, so that there may be fewer than
    ``bins`` - 1: say so, and predict fewer hazards.

    Args:
        time, event: ``[n]``.
        bins: K.

    Raises:
        InputError: no event.

    Source: Zadeh & Schmid, IEEE TPAMI 43 (2020).
    """
    times, events = times_and_events(time, event)
    if not events.any():
        raise InputError("none of the training patients has the event; bins of time are made of the times of events")
    return np.unique(np.quantile(times[events], np.arange(1, bins) / bins))


def time_bins(time: ArrayLike, edges: ArrayLike) -> Ints:
    """The bin ``[n]`` of each time: the number of inner edges ``<= t``; a bin is [a, b), and the last one is open."""
    return np.searchsorted(np.asarray(edges, dtype=np.float64), np.asarray(time, dtype=np.float64), side="right")


def discrete_survival(hazard: ArrayLike, edges: ArrayLike, last: float, times: ArrayLike) -> Floats:
    """S(t) of discrete hazards: at the edges ``prod (1 - h)`` of the bins before, between them linear.

    Args:
        hazard: ``[n, K]``, the probability of the event in each bin of those who reach it.
        edges: the K - 1 inner edges.
        last: the largest training time, where the last bin ends; beyond it S is NaN.
        times: ``[T]`` the same for all, or ``[n, 1]`` one of each patient.

    Returns:
        ``[n, T]`` or ``[n, 1]``.

    Raises:
        InputError: other numbers of hazards and bins.

    Source: Kvamme & Borgan, Lifetime Data Analysis 27 (2021).
    """
    h, inner = np.asarray(hazard, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if h.ndim != 2 or h.shape[1] != len(inner) + 1:
        raise InputError(f"{len(inner)} inner edges make {len(inner) + 1} bins; the hazards are {h.shape}")
    knots = np.concatenate([[0.0], inner, [max(last, inner[-1]) if len(inner) else last]])
    survival = np.concatenate([np.ones((len(h), 1)), np.cumprod(1 - h, axis=1)], axis=1)
    at = np.asarray(times, dtype=np.float64)
    at = np.broadcast_to(at, (len(h), at.shape[-1]))
    place = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, h.shape[1] - 1)
    width = knots[place + 1] - knots[place]
    share = np.where(width > 0, (at - knots[place]) / np.where(width > 0, width, 1), 1.0)
    low, high = (np.take_along_axis(survival, place + shift, axis=1) for shift in (0, 1))
    return np.where(at <= knots[-1], low + share * (high - low), np.nan)


@dataclass(frozen=True)
class Baseline:
    """The baseline of a model whose risk is a log hazard.

    Attributes:
        time: distinct times of events, ``[K]``, ascending.
        log_hazard: log of the cumulative baseline hazard from each on, ``[K]``.
        last: the largest training time; beyond it survival is NaN.
    """

    time: Floats
    log_hazard: Floats
    last: float

    def survival(self, risk: ArrayLike, times: ArrayLike) -> Floats:
        """``S(t) = exp(-H_0(t) exp(risk))``, ``[n, T]``.

        Args:
            risk: log hazards, ``[n]``.
            times: ``[T]`` the same for all, or ``[n, 1]`` one of each patient.
        """
        r = np.asarray(risk, dtype=np.float64)[:, None]
        at = np.asarray(times, dtype=np.float64)
        reached = np.append(-np.inf, self.log_hazard)[np.searchsorted(self.time, at, side="right")]
        with np.errstate(over="ignore"):
            return np.where(at <= self.last, np.exp(-np.exp(reached + r)), np.nan)


def breslow_baseline(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> Baseline:
    """Breslow's baseline, ``H_0(t) = sum_{t_k <= t} d_k / sum_{t_j >= t_k} exp(risk_j)``.

    Args:
        time, event: of the training patients, ``[n]``.
        risk: their final log hazards, ``[n]``.

    Raises:
        InputError: no event, or a risk is missing.

    Source: Breslow, discussion of Cox, Journal of the Royal Statistical Society B 34 (1972).
    """
    times, events = times_and_events(time, event, "training patients")
    risks = of_patients(risk, len(times), "a risk")
    if why := missing(risks, "risk"):
        raise InputError(f"{why}; a baseline needs the risk of every training patient")
    if not events.any():
        raise InputError("none of the training patients has the event, so that there is no baseline")
    order = np.argsort(-times, kind="stable")
    among = np.logaddexp.accumulate(risks[order])
    distinct, count = np.unique(times[events], return_counts=True)
    end = len(times) - 1 - np.searchsorted(times[order][::-1], distinct, side="left")
    return Baseline(distinct, np.logaddexp.accumulate(np.log(count) - among[end]), float(times.max()))
