"""Cox regression: fit, likelihood, tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mil_zoo.errors import InputError
from mil_zoo.noted import undefined
from mil_zoo.survival.inputs import Bools, Floats, Ints, missing, of_patients, times_and_events

Ties = Literal["efron", "breslow"]
_Z = 1.959963984540054
_STEPS = 100


@dataclass(frozen=True)
class Cox:
    """Result of :func:`cox`.

    Attributes:
        coefficients: log hazard ratio of one unit of each covariate, ``[p]``.
        se: their standard errors, ``[p]``; NaN of a covariate without variation.
        log_likelihood: partial, at the coefficients, without the penalty.
        null_log_likelihood: at 0.
        events: their number.
        converged: whether the steps came to an end; a covariate that separates the events does not without a ridge.
    """

    coefficients: Floats
    se: Floats
    log_likelihood: float
    null_log_likelihood: float
    events: int
    converged: bool

    def risk(self, covariates: ArrayLike) -> Floats:
        """Log hazards ``[n]`` of covariates ``[n, p]``, up to a constant."""
        return np.asarray(covariates, dtype=np.float64) @ self.coefficients


@dataclass(frozen=True)
class HazardRatio:
    """Result of :func:`hazard_ratio`: NaN, with the reason, where it is undefined.

    Attributes:
        value: hazard of the group over that of the others.
        low, high: its 95 % interval (Wald).
        p: of "the ratio is 1" (Wald).
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class LikelihoodRatio:
    """Result of :func:`likelihood_ratio`.

    Attributes:
        chi2: twice the gain in log-likelihood.
        df: number of covariates added.
        p: of "they add nothing".
    """

    chi2: float
    df: int
    p: float


def cox(
    time: ArrayLike,
    event: ArrayLike,
    covariates: ArrayLike,
    ties: Ties = "efron",
    ridge: float = 0.0,
    strata: ArrayLike | None = None,
) -> Cox:
    """Cox regression by Newton's method: maximises ``log partial likelihood - ridge / 2 |coefficients|^2``.

    Args:
        time: ``[n]``.
        event: ``[n]``, 1 or 0.
        covariates: ``[n, p]`` or ``[n]``; standardise them where there is a ridge.
        ties: how events at one time are treated.
        ridge: not negative. A small one keeps a covariate finite that separates those with the event.
        strata: ``[n]``, any values: each stratum has a baseline hazard of its own (the folds of a cross-validation).

    Raises:
        InputError: no event, or a covariate is missing.

    Source: Cox 1972; Efron, JASA 72 (1977); Breslow 1974.
    """
    times, events = times_and_events(time, event)
    x = of_patients(covariates, len(times), "covariates")
    x = x[:, None] if x.ndim == 1 else x
    if why := missing(x, "value of a covariate"):
        raise InputError(f"{why}; fill it in, with an indicator beside it")
    if not events.any():
        raise InputError("a Cox regression needs an event")
    centred = x - x.mean(0)  # the likelihood does not change, and large values do not overflow
    parts = list(_strata(times, events, strata))
    beta = np.zeros(x.shape[1])
    here = null = _derivatives(centred, beta, parts, ties)
    converged = False
    for _ in range(_STEPS):
        slope, bend = here.gradient - ridge * beta, here.information + ridge * np.eye(len(beta))
        step = np.linalg.pinv(bend, rcond=1e-12, hermitian=True) @ slope
        if slope @ step < 1e-14 * (1 + abs(here.value)):
            converged = True
            break
        height = here.value - ridge / 2 * beta @ beta
        for _ in range(40):  # halve it until the likelihood does not fall
            there = _derivatives(centred, beta + step, parts, ties)
            if there.value - ridge / 2 * (beta + step) @ (beta + step) >= height - 1e-12 * abs(height):
                break
            step = step / 2
        beta, here = beta + step, there
    bend = here.information + ridge * np.eye(len(beta))
    varies = np.ptp(x, axis=0) > 0
    with np.errstate(invalid="ignore"):
        se = np.sqrt(np.diag(np.linalg.pinv(bend, rcond=1e-14, hermitian=True)))
    return Cox(beta, np.where(varies, se, np.nan), here.value, null.value, int(events.sum()), converged)


def cox_log_likelihood(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, ties: Ties = "efron", strata: ArrayLike | None = None
) -> float:
    """The log partial likelihood of given risks (log hazards ``[n]``), by log-sum-exp: no risk is too large.

    Breslow ``sum_i [r_i - log sum_{t_j >= t_i} exp r_j]`` over events; Efron takes at a time with m events, of total T
    among the risk set's R, ``sum_{l < m} log(R - l / m T)`` instead of ``m log R``.
    """
    times, events = times_and_events(time, event)
    risks = of_patients(risk, len(times), "a risk")
    total = 0.0
    for part in _strata(times, events, strata):
        r = risks[part.order]
        among = np.logaddexp.accumulate(r)[part.end]
        tied = np.full(len(part.end), -np.inf)
        np.logaddexp.at(tied, part.group, r[part.cases])
        left = among[part.group]
        if ties == "efron":
            left = left + np.log1p(-part.fraction * np.exp(np.minimum(tied[part.group] - left, 0)))
        total += float((r[part.cases] - left).sum())
    return total


def hazard_ratio(time: ArrayLike, event: ArrayLike, group: ArrayLike, strata: ArrayLike | None = None) -> HazardRatio:
    """Hazard of one group over that of the others, from a Cox regression (Efron), within strata where they are given.

    Args:
        time, event: ``[n]``.
        group: ``[n]``, 1 of the group.
        strata: ``[n]``, any values.
    """
    times, events = times_and_events(time, event)
    inside = np.asarray(group).astype(np.bool_)
    reasons = {
        "one group is empty": inside.all() or not inside.any(),
        "no event": not events.any(),
        "one group has no event": not (events & inside).any() or not (events & ~inside).any(),
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    fit = None if why else cox(times, events, inside.astype(np.float64), strata=strata)
    if fit is not None and not (fit.converged and fit.se[0] > 0 and abs(fit.coefficients[0]) < 15):
        why = "the groups are at risk together at too few events"
    if why or fit is None:
        return HazardRatio(*(undefined(why) for _ in range(4)))
    from scipy.special import ndtr

    b, se = float(fit.coefficients[0]), float(fit.se[0])
    low, high = (float(np.exp(b + sign * _Z * se)) for sign in (-1, 1))
    return HazardRatio(float(np.exp(b)), low, high, float(2 * ndtr(-abs(b / se))))


def likelihood_ratio(larger: Cox, smaller: Cox | None = None) -> LikelihoodRatio:
    """Likelihood-ratio test of the covariates that ``larger`` has and ``smaller`` (None: no covariate) has not.

    Raises:
        InputError: the two were not fitted to the same events.
    """
    if smaller is not None and (smaller.events, smaller.null_log_likelihood) != (
        larger.events,
        larger.null_log_likelihood,
    ):
        raise InputError("a likelihood-ratio test needs two fits to the same patients, ties and strata")
    from scipy.special import chdtrc

    before = larger.null_log_likelihood if smaller is None else smaller.log_likelihood
    df = len(larger.coefficients) - (0 if smaller is None else len(smaller.coefficients))
    chi2 = max(0.0, 2 * (larger.log_likelihood - before))
    return LikelihoodRatio(chi2, df, float(chdtrc(df, chi2)))


class _Stratum(NamedTuple):
    """Patients of a stratum from the longest time to the shortest, and its distinct times of events.

    Attributes:
        order: of the patients.
        cases: places in it of the patients with an event.
        group: of each case, which time of an event it is.
        end: of each such time the last place in the order that is at risk.
        fraction: of each case ``l / m``, its number among the m events of its time.
    """

    order: Ints
    cases: Ints
    group: Ints
    end: Ints
    fraction: Floats


def _strata(times: Floats, events: Bools, strata: ArrayLike | None) -> Iterator[_Stratum]:
    number = np.zeros(len(times), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    for one in np.unique(number):
        members = np.flatnonzero(number == one)
        order = members[np.argsort(-times[members], kind="stable")]
        cases = np.flatnonzero(events[order])
        if not len(cases):
            continue
        distinct, group, size = np.unique(times[order][cases], return_inverse=True, return_counts=True)
        end = len(order) - 1 - np.searchsorted(times[order][::-1], distinct, side="left")
        by_group = np.argsort(group, kind="stable")
        within = np.empty(len(cases))
        within[by_group] = np.arange(len(cases)) - np.repeat(np.cumsum(size) - size, size)
        yield _Stratum(order, cases, group, end, within / size[group])


class _Derivatives(NamedTuple):
    value: float
    gradient: Floats
    information: Floats


def _derivatives(x: Floats, beta: Floats, parts: list[_Stratum], ties: Ties) -> _Derivatives:
    """Log partial likelihood, its gradient ``[p]`` and the observed information ``[p, p]``."""
    value, gradient, information = 0.0, np.zeros(len(beta)), np.zeros((len(beta), len(beta)))
    for part in parts:
        z = x[part.order]
        eta = z @ beta
        eta -= eta.max()
        w = np.exp(eta)
        moments = [w, w[:, None] * z, w[:, None, None] * z[:, :, None] * z[:, None, :]]
        of_case = []
        for moment in moments:
            among = np.cumsum(moment, axis=0)[part.end][part.group]
            if ties == "efron":
                tied = np.zeros((len(part.end), *moment.shape[1:]))
                np.add.at(tied, part.group, moment[part.cases])
                shape = (-1, *[1] * (moment.ndim - 1))
                among = among - part.fraction.reshape(shape) * tied[part.group]
            of_case.append(among)
        total, first, second = of_case
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = first / total[:, None]
            value += float((eta[part.cases] - np.log(total)).sum())
            gradient += (z[part.cases] - mean).sum(0)
            information += (second / total[:, None, None] - mean[:, :, None] * mean[:, None, :]).sum(0)
    return _Derivatives(value, gradient, information)
