"""Scores of predicted risks and survival curves. Each is an estimator of :mod:`mil_zoo.survival` under its name.

The arguments, of n patients, of which a metric takes the first ones: ``time [n]``; ``event [n]``, 1 where it happened;
``risk [n]``, higher means earlier; ``survival [n, H + 100]``, S(t) at the times of :func:`survival_times`; ``own [n]``,
S at the patient's own time (of one followed beyond the last training time: there); ``hazard [n, K]``, of discrete
hazards. What a task does not predict is NaN. The context: ``train_time`` and ``train_event [m]`` of the training
patients; ``horizons``, name -> time, ascending, in the unit of the times; ``edges`` of the bins; ``ties`` of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil_zoo.metrics.registry import register_metric
from mil_zoo.noted import undefined
from mil_zoo.survival import (
    brier_survival,
    concordance,
    concordance_ipcw,
    cox_log_likelihood,
    cumulative_dynamic_auc,
    d_calibration,
    integrated_brier,
    kaplan_meier,
    observed_over_expected,
    time_bins,
)
from mil_zoo.survival.censored_scores import auc_at, mean_auc_of_draws

Floats = NDArray[np.float64]
Horizons = Mapping[str, float]
POINTS = 100  # of the span that ibs is over
_NO_HORIZON = (
    "no horizon, as too few patients are followed beyond one; earlier ones: --task 'survival:horizons=[6,12]' (months)"
)
_UNPREDICTED = (
    "no survival is predicted there: a task that ranks predicts none, others do where 10 training patients are "
    "followed for longer; earlier horizons: --task 'survival:horizons=[6,12]' (months)"
)
_TRAIN = ("train_time", "train_event")
_FAR = 2.0**-53  # what is left of a hazard of 1 in double precision


def survival_times(horizons: Horizons) -> Floats:
    """The times ``[H + 100]`` at which metrics take S(t): the horizons, then 100 from the first to the last of them."""
    times = np.array(list(horizons.values()), dtype=np.float64)
    span = np.linspace(times[0], times[-1], POINTS) if len(times) else np.full(POINTS, np.nan)
    return np.concatenate([times, span])


@register_metric("c_index", title="C", higher_is_better=True, task="survival", batched=True, bounds=(0, 1))
def c_index(time: Floats, event: Floats, risk: Floats, weights: Floats | None = None) -> Any:
    """Harrell's C, see :func:`mil_zoo.survival.concordance`."""
    return concordance(time, event, risk, weights)


@register_metric(
    "c_uno",
    title="Uno's C",
    higher_is_better=True,
    task="survival",
    needs=(*_TRAIN, "horizons"),
    batched=True,
    bounds=(0, 1),
)
def c_uno(
    time: Floats,
    event: Floats,
    risk: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizons: Horizons,
    weights: Floats | None = None,
) -> Any:
    """Uno's C of events before the largest horizon, see :func:`mil_zoo.survival.concordance_ipcw`."""
    tau = max(horizons.values(), default=None)
    return concordance_ipcw(time, event, risk, train_time, train_event, tau, weights)


@register_metric(
    "auc",
    title="AUC at {}",
    higher_is_better=True,
    task="survival",
    needs=_TRAIN,
    each=("horizon", "horizons"),
    batched=True,
    bounds=(0, 1),
)
def auc(
    time: Floats,
    event: Floats,
    risk: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizon: float,
    weights: Floats | None = None,
) -> Any:
    """Cumulative/dynamic AUC, see :func:`mil_zoo.survival.cumulative_dynamic_auc`."""
    return auc_at(time, event, risk, train_time, train_event, horizon, weights)


@register_metric(
    "auc_mean",
    title="Mean AUC",
    higher_is_better=True,
    task="survival",
    needs=(*_TRAIN, "horizons"),
    batched=True,
    bounds=(0, 1),
)
def auc_mean(
    time: Floats,
    event: Floats,
    risk: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizons: Horizons,
    weights: Floats | None = None,
) -> Any:
    """The AUC at the horizons, weighted by the fall of the Kaplan-Meier curve up to each."""
    arguments = time, event, risk, train_time, train_event, list(horizons.values())
    if weights is not None and weights.ndim > 1:
        return mean_auc_of_draws(*arguments, weights) if horizons else np.full(len(weights), np.nan)
    return cumulative_dynamic_auc(*arguments, weights).mean if horizons else undefined(_NO_HORIZON)


@register_metric(
    "brier",
    title="Brier at {}",
    higher_is_better=False,
    task="survival",
    needs=(*_TRAIN, "horizons"),
    each=("horizon", "horizons"),
    batched=True,
    bounds=(0, np.inf),
)
def brier(
    time: Floats,
    event: Floats,
    risk: Floats,
    survival: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizons: Horizons,
    horizon: float,
    weights: Floats | None = None,
) -> Any:
    """Brier score of S(t), see :func:`mil_zoo.survival.brier_survival`."""
    column = survival[:, list(horizons.values()).index(horizon)]
    if np.isnan(column).all() and (weights is None or weights.ndim == 1):
        return undefined(_UNPREDICTED)
    return brier_survival(time, event, column, train_time, train_event, horizon, weights)


@register_metric(
    "brier_km",
    title="Brier at {} of Kaplan-Meier",
    higher_is_better=False,
    task="survival",
    needs=_TRAIN,
    each=("horizon", "horizons"),
    batched=True,
    bounds=(0, np.inf),
)
def brier_km(
    time: Floats,
    event: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizon: float,
    weights: Floats | None = None,
) -> Any:
    """The Brier score of one curve for all, the training patients' Kaplan-Meier: what a model must be below."""
    same = np.full(len(time), kaplan_meier(train_time, train_event).at(horizon))
    return brier_survival(time, event, same, train_time, train_event, horizon, weights)


@register_metric(
    "ibs",
    title="Integrated Brier",
    higher_is_better=False,
    task="survival",
    needs=(*_TRAIN, "horizons"),
    batched=True,
    bounds=(0, np.inf),
)
def ibs(
    time: Floats,
    event: Floats,
    risk: Floats,
    survival: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizons: Horizons,
    weights: Floats | None = None,
) -> Any:
    """The mean Brier score from the first to the last horizon, see :func:`mil_zoo.survival.integrated_brier`."""
    columns, times = survival[:, len(horizons) :], survival_times(horizons)[len(horizons) :]
    return integrated_brier(time, event, columns, train_time, train_event, times, weights)


@register_metric(
    "ibs_km",
    title="Integrated Brier of Kaplan-Meier",
    higher_is_better=False,
    task="survival",
    needs=(*_TRAIN, "horizons"),
    batched=True,
    bounds=(0, np.inf),
)
def ibs_km(
    time: Floats,
    event: Floats,
    *,
    train_time: ArrayLike,
    train_event: ArrayLike,
    horizons: Horizons,
    weights: Floats | None = None,
) -> Any:
    """The same of one curve for all, the training patients' Kaplan-Meier."""
    times = survival_times(horizons)[len(horizons) :]
    same = np.broadcast_to(kaplan_meier(train_time, train_event).at(times), (len(time), POINTS))
    return integrated_brier(time, event, same, train_time, train_event, times, weights)


@register_metric(
    "d_calibration",
    title="D-calibration p",
    higher_is_better=None,
    task="survival",
    needs=("train_time",),
    bounds=(0, 1),
)
def distribution_calibration(
    time: Floats,
    event: Floats,
    risk: Floats,
    survival: Floats,
    own: Floats,
    *,
    train_time: ArrayLike,
    weights: Floats | None = None,
) -> float:
    """p of :func:`mil_zoo.survival.d_calibration`; beyond the last training time a patient counts as censored there."""
    known = np.asarray(event, dtype=np.bool_) & (time <= np.max(train_time))
    return d_calibration(known, own, weights=weights).p


@register_metric(
    "oe",
    title="Observed / expected at {}",
    higher_is_better=None,
    task="survival",
    needs=("horizons",),
    each=("horizon", "horizons"),
    batched=True,
    bounds=(0, np.inf),
)
def oe(
    time: Floats,
    event: Floats,
    risk: Floats,
    survival: Floats,
    *,
    horizons: Horizons,
    horizon: float,
    weights: Floats | None = None,
) -> Any:
    """Events observed over those predicted, see :func:`mil_zoo.survival.observed_over_expected`; 1 is best."""
    column = survival[:, list(horizons.values()).index(horizon)]
    if np.isnan(column).all() and (weights is None or weights.ndim == 1):
        return undefined(_UNPREDICTED)
    return observed_over_expected(time, event, column, horizon, weights)


@register_metric(
    "nll", title="NLL", higher_is_better=False, task="survival", needs=("edges",), batched=True, bounds=(0, np.inf)
)
def nll(
    time: Floats,
    event: Floats,
    risk: Floats,
    survival: Floats,
    own: Floats,
    hazard: Floats,
    *,
    edges: ArrayLike,
    weights: Floats | None = None,
) -> Any:
    """Mean negative log-likelihood of discrete hazards, of events and censored patients alike (alpha 0).

    ``-log h_y - sum_(k<y) log(1 - h_k)`` of an event in bin y, ``-sum_(k<=y) log(1 - h_k)`` of a censored patient.
    Hazards of 1 and 0 to the last bit count as within 1e-16 of them.
    """
    h = hazard[:, : len(np.asarray(edges)) + 1]
    place, own_bin = np.arange(h.shape[1]), time_bins(time, edges)[:, None]
    happened = np.asarray(event, dtype=np.bool_)[:, None]
    lived = (place < own_bin) | ((place == own_bin) & ~happened)
    terms = np.where(lived, np.log(np.maximum(1 - h, _FAR)), 0) + np.where(
        (place == own_bin) & happened, np.log(np.maximum(h, _FAR)), 0
    )
    w = np.ones(len(time)) if weights is None else weights
    with np.errstate(invalid="ignore"):  # draws without a patient of this part
        return -(w @ terms.sum(1)) / w.sum(-1)


@register_metric(
    "partial_likelihood", title="Partial likelihood", higher_is_better=False, task="survival", needs=("ties",)
)
def partial_likelihood(time: Floats, event: Floats, risk: Floats, *, ties: Any) -> float:
    """Negative log partial likelihood of the risks over the number of events."""
    if not event.any():
        return undefined("no event")
    return -cox_log_likelihood(time, event, risk, ties) / float(event.sum())
