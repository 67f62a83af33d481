"""Intervals and comparisons of any metric by drawing the test patients again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError
from mil_zoo.metrics import Metric
from mil_zoo.noted import Noted, note_of, undefined
from mil_zoo.stats.resampling import Floats, Ints, Patients, all_equal
from mil_zoo.survival import concordance_pairs
from mil_zoo.survival.concordance import NO_PAIR

LOST = 0.05  # share of draws that may be undefined


@dataclass(frozen=True)
class Scored:
    """The predictions of one model for the patients of one test set, as the metrics of its task take them.

    Attributes:
        arguments: of the metrics, n rows each: of survival times, events, risks, ...
        patients: ``[n]``, each once, unless rows are of slides.
        labels: ``[n]``, from 0: the strata within which patients are drawn; of survival the events.
        context: what metrics need besides (training times, horizons).
        of_slides: rows are slides, of which a patient may have several; they are drawn together.
    """

    arguments: tuple[npt.NDArray[Any], ...]
    patients: npt.NDArray[np.str_]
    labels: Ints
    context: Mapping[str, Any] = field(default_factory=dict)
    of_slides: bool = False

    def __post_init__(self) -> None:
        sizes = {len(array) for array in (*self.arguments, self.patients, self.labels)}
        if len(sizes) > 1:
            raise InputError(f"a test set holds one row a patient in every array; these have {sorted(sizes)} rows")
        names, counts = np.unique(self.patients, return_counts=True)
        if (counts > 1).any() and not self.of_slides:
            raise InputError(
                f"patient {str(names[counts.argmax()])!r} is scored {counts.max()} times in one test set; combine the "
                "slides of a patient first"
            )


@dataclass(frozen=True)
class Drawn:
    """A value, and its spread over draws of the test patients.

    Attributes:
        value: of the patients as they are; NaN, with the reason, where it is undefined. A note on a mean over folds
            says of how many, where some are undefined.
        low, high: 95 % percentile interval; NaN, with the reason, where over 5 % of the draws are undefined, or where
            all give the same value.
        p: two-sided, of "the value is 0", for differences.
        replicates: number of draws.
        lost: of them, those in which the value is undefined (no comparable pair).
        se: standard deviation of the draws.
        p_worse: one-sided, of "the value is not below 0": small where it is below.
    """

    value: float
    low: float
    high: float
    p: float
    replicates: int
    lost: int
    se: float = np.nan
    p_worse: float = np.nan


@dataclass(frozen=True, eq=False)
class Draws:
    """A value of the test patients as they are, and in each draw of them.

    Attributes:
        value: NaN, with the reason, where it is undefined.
        drawn: ``[R]``, NaN in draws in which it is undefined.
    """

    value: float
    drawn: Floats

    def __sub__(self, other: Draws) -> Draws:
        """Of the difference: of two models with one draw of the patients for both, or of two cohorts."""
        return Draws(_minus(self.value, other.value), self.drawn - other.drawn)

    def interval(self) -> Drawn:
        """The value with its interval and p."""
        known = self.drawn[~np.isnan(self.drawn)]
        lost, n = len(self.drawn) - len(known), len(self.drawn)
        reason = note_of(self.value) if np.isnan(self.value) else ""
        if not np.isnan(self.value) and lost > LOST * n:
            reason = f"the value is undefined in {lost} of {n} draws of the patients"
        if np.isnan(self.value) or lost > LOST * n:
            gone = undefined(reason)
            return Drawn(self.value, gone, gone, gone, n, lost, gone, gone)
        low, high = map(float, np.quantile(known, [0.025, 0.975]))
        if all_equal(known):
            low = high = undefined("every draw of the patients gives the same value")
        below, above = int((known < 0).sum()), int((known > 0).sum())
        p = min(1.0, 2 * (1 + len(known) - max(below, above)) / (1 + len(known)))
        worse = (0.5 + above + (len(known) - below - above) / 2) / (1 + len(known))
        se = float(known.std(ddof=1)) if len(known) > 1 else np.nan
        return Drawn(self.value, low, high, p, n, lost, se, worse)


Statistic = Callable[[Sequence[Scored], Sequence[Floats]], Floats]
"""Of test sets and weights ``[R, n]`` of the patients of each the values ``[R]``."""


def pooled_concordance(parts: Sequence[Scored]) -> float:
    """C of the comparable pairs *within* test sets, all together: concordant over comparable pairs, each summed.

    Risks of different folds are never compared: their scales differ. A fold of many pairs weighs as many as it has,
    where the mean over folds weighs all alike.

    Args:
        parts: whose arguments begin with times, events, risks.
    """
    value = float(_pooled(parts, [np.ones((1, len(part.labels))) for part in parts])[0])
    return undefined(f"{NO_PAIR}, in every fold") if np.isnan(value) else value


def bootstrap_patients(
    parts: Sequence[Scored], what: Metric | None = None, replicates: int = 2000, seed: int = 0
) -> Drawn:
    """A metric with its interval over the choice of test patients; the trained models stay as they are.

    Patients are drawn with replacement within their stratum (those with the event, those without), one who is in
    several test sets equally often in each.

    Args:
        parts: one a fold.
        what: the metric, of which the mean over folds is taken; None for :func:`pooled_concordance`.
        replicates: number of draws.
        seed: of the draws.

    Raises:
        InputError: no test set.
    """
    return patient_draws(parts, what, replicates, seed).interval()


def patient_draws(parts: Sequence[Scored], what: Metric | None = None, replicates: int = 2000, seed: int = 0) -> Draws:
    """The draws of :func:`bootstrap_patients`: those of two models on the same patients can be subtracted.

    Args:
        parts, what, replicates, seed: as there. Equal patients, in the same order, are drawn alike by the same seed.
    """
    statistic, value = _statistic(parts, what)
    return Draws(value, statistic(parts, _weights(parts, replicates, seed)))


def bootstrap_difference(
    a: Sequence[Scored], b: Sequence[Scored], what: Metric | None = None, replicates: int = 2000, seed: int = 0
) -> Drawn:
    """The difference a - b of two models on the same patients, one draw for both.

    Args:
        a: test sets of one model, one a fold.
        b: those of the other, same folds and patients, in any order.
        what, replicates, seed: as in :func:`bootstrap_patients`.

    Raises:
        InputError: the patients differ; the message names those that one of the two lacks.
    """
    own = patient_draws(a, what, replicates, seed)
    return (own - patient_draws(_aligned(a, b), what, replicates, seed)).interval()


def external_difference(
    internal: Sequence[Scored],
    external: Sequence[Scored],
    what: Metric | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Drawn:
    """What a model loses on another cohort: internal minus external, each drawn for itself.

    Args:
        internal: its test sets in the cohort that it was trained in, one a fold.
        external: its predictions for the other cohort: one, or one of each fold's model (then drawn together).
        what, replicates, seed: as in :func:`bootstrap_patients`.
    """
    inside = patient_draws(internal, what, replicates, seed)
    return (inside - patient_draws(external, what, replicates, seed + 1)).interval()


def design_difference(
    a: Sequence[Scored], b: Sequence[Scored], metric: Metric, replicates: int = 2000, seed: int = 0
) -> Drawn:
    """The difference a - b of one model under two ways of splitting the same patients, one draw of them for both.

    The trained models stay as they are. A fold that lacks a class in a draw is left out of it.

    Args:
        a: test sets of one way, one a fold.
        b: those of the other; any folds, the same patients.
        metric: of which the mean over folds is taken.
        replicates, seed: as in :func:`bootstrap_patients`.
    """
    if not a or not b:
        raise InputError("there is no test set to draw patients of")
    weights = _weights([*a, *b], replicates, seed)
    own, other = (_of_some_folds(parts, w, metric) for parts, w in ((a, weights[: len(a)]), (b, weights[len(a) :])))
    return (own - other).interval()


def _of_some_folds(parts: Sequence[Scored], weights: Sequence[Floats], metric: Metric) -> Draws:
    places = zip(parts, weights, strict=True)
    drawn = np.array([metric.weighted(*part.arguments, weights=w, **part.context) for part, w in places])
    known = ~np.isnan(drawn)
    total, count = np.where(known, drawn, 0).sum(0), known.sum(0)
    return Draws(_statistic(parts, metric)[1], np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _statistic(parts: Sequence[Scored], metric: Metric | None) -> tuple[Statistic, float]:
    if not parts:
        raise InputError("there is no test set to draw patients of")
    if metric is None:
        return _pooled, pooled_concordance(parts)
    values = [metric(*part.arguments, **part.context) for part in parts]
    known = [not np.isnan(value) for value in values]
    if not any(known):
        return _nowhere, undefined(note_of(values[0]) or f"{metric.name} is undefined in every fold")
    mean = float(np.mean([value for value in values if not np.isnan(value)]))
    value = mean if all(known) else Noted(mean, f"mean of {sum(known)} of {len(known)} folds: {_reasons(values)}")

    def of_folds(parts: Sequence[Scored], weights: Sequence[Floats]) -> Floats:
        folds = zip(parts, weights, known, strict=True)
        drawn = [metric.weighted(*part.arguments, weights=w, **part.context) for part, w, use in folds if use]
        return np.asarray(np.mean(drawn, axis=0))

    return of_folds, value


def _nowhere(parts: Sequence[Scored], weights: Sequence[Floats]) -> Floats:
    """Of a metric that no test set has: undefined in every draw."""
    return np.full(len(weights[0]), np.nan)


def _reasons(values: Sequence[float]) -> str:
    return "; ".join(dict.fromkeys(note_of(value) or "undefined" for value in values if np.isnan(value)))


def _pooled(parts: Sequence[Scored], weights: Sequence[Floats]) -> Floats:
    pairs = []
    for part, w in zip(parts, weights, strict=True):
        time, event, risk = part.arguments[:3]
        pairs.append(concordance_pairs(time, event, risk, w))
    right, comparable = (
        np.sum(counts, axis=0)
        for counts in ([one.concordant + one.tied / 2 for one in pairs], [one.comparable for one in pairs])
    )
    return np.where(comparable > 0, right / np.where(comparable > 0, comparable, 1), np.nan)


def _weights(parts: Sequence[Scored], replicates: int, seed: int) -> list[Floats]:
    patients = Patients.of(parts)
    counts = patients.draws(replicates, seed)
    return [counts[:, place] for place in patients.places]


def _minus(a: float, b: float) -> float:
    if np.isnan(a) or np.isnan(b):
        return undefined(note_of(a) or note_of(b))
    note = "; ".join(dict.fromkeys(filter(None, (note_of(a), note_of(b)))))
    return Noted(a - b, note) if note else a - b


def _aligned(a: Sequence[Scored], b: Sequence[Scored]) -> list[Scored]:
    """The test sets of ``b`` with their patients in the order of ``a``'s."""
    if len(a) != len(b):
        raise InputError(f"a comparison needs the same folds of both models, not {len(a)} and {len(b)}")
    aligned = []
    for number, (one, other) in enumerate(zip(a, b, strict=True)):
        missing = [
            f"{which} model lacks {', '.join(sorted(gone)[:5])}{' ...' if len(gone) > 5 else ''} ({len(gone)})"
            for which, gone in (
                ("the second", set(one.patients.tolist()) - set(other.patients.tolist())),
                ("the first", set(other.patients.tolist()) - set(one.patients.tolist())),
            )
            if gone
        ]
        if missing:
            raise InputError(f"fold {number}: the two models did not predict the same patients: {'; '.join(missing)}")
        order = np.argsort(other.patients)[np.argsort(np.argsort(one.patients))]
        aligned.append(
            Scored(
                tuple(array[order] for array in other.arguments),
                other.patients[order],
                other.labels[order],
                other.context,
            )
        )
    return aligned
