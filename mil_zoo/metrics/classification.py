"""Accuracy, balanced accuracy, AUC and F1 of class probabilities.

Each takes labels, int ``[n]``; probabilities, float ``[n, C]``, whose rows sum to 1; and weights ``[n]``, ``[R, n]``
(then R values come back) or None. The predicted class is the most probable one, of equal ones the first.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mil_zoo.metrics.registry import register_metric
from mil_zoo.noted import undefined

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def ranks_of_class(probabilities: NDArray[Any], label: int) -> Floats:
    """Whole numbers ``[..., n]`` in the order of the log-odds of a class; equal odds have equal numbers.

    Probabilities of confident bags are all 1 in the computer's numbers, while what is left for the other classes still
    tells them apart: of float64 probabilities log-odds up to 745 do. Only the order of the result means anything.

    Args:
        probabilities: ``[..., n, C]``; logits do as well.
        label: the class.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    flat = values.reshape(-1, *values.shape[-2:])
    ranks = [_dense_ranks(rows[:, label], np.delete(rows, label, axis=1).sum(1)) for rows in flat]
    return np.asarray(ranks, dtype=np.float64).reshape(values.shape[:-1])


def _dense_ranks(own: Floats, others: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        left = -np.log(others.clip(min=0)).round(9)  # sums of the same numbers in another order are equal
    left = np.where(own > 1 - 1e-6, left, 0)  # below, the probability itself tells bags apart
    order = np.lexsort((left, own))
    ranks, known = np.empty(len(order)), np.stack([own[order], left[order]])
    ranks[order] = np.cumsum(np.append(False, (known[:, 1:] != known[:, :-1]).any(0)))
    return ranks


class _Counts(NamedTuple):
    """Weights of all rows ``[...]``, and of those of, predicted to be of, and rightly so of each class ``[..., C]``."""

    total: Any
    of_class: Any
    predicted: Any
    right: Any


def _counts(labels: Ints, probabilities: Floats, weights: Floats | None) -> _Counts:
    w = np.ones(len(labels)) if weights is None else weights
    classes = np.arange(probabilities.shape[1])
    truth, guess = labels[:, None] == classes, probabilities.argmax(1)[:, None] == classes
    return _Counts(w.sum(-1), *np.split(w @ np.hstack([truth, guess, truth & guess]), 3, axis=-1))


@register_metric("accuracy", title="Accuracy", higher_is_better=True, batched=True, bounds=(0, 1))
def accuracy(labels: Ints, probabilities: Floats, weights: Floats | None = None) -> Any:
    """Share of slides whose most probable class is the true one (with two classes: threshold 0.5)."""
    counts = _counts(labels, probabilities, weights)
    with np.errstate(invalid="ignore"):
        return counts.right.sum(-1) / counts.total


@register_metric("balanced_accuracy", title="Balanced accuracy", higher_is_better=True, batched=True, bounds=(0, 1))
def balanced_accuracy(labels: Ints, probabilities: Floats, weights: Floats | None = None) -> Any:
    """Mean over the classes present of their recall."""
    counts = _counts(labels, probabilities, weights)
    present = counts.of_class > 0
    with np.errstate(invalid="ignore"):
        return (counts.right / np.where(present, counts.of_class, 1)).sum(-1) / present.sum(-1)


@register_metric("auc", title="AUC", higher_is_better=True, batched=True, bounds=(0, 1))
def auc(labels: Ints, probabilities: Floats, weights: Floats | None = None) -> Any:
    """Area under the ROC curve; with more than two classes the unweighted mean of one-against-rest areas.

    It is the share of (positive, negative) pairs in the right order, ties counting half. NaN where a class is absent.
    Bags are ordered by :func:`ranks_of_class`.
    """
    w = np.ones(len(labels)) if weights is None else weights
    num_classes = probabilities.shape[1]
    of_classes = [1] if num_classes == 2 else range(num_classes)
    areas = [roc_area(labels == label, ranks_of_class(probabilities, label), w) for label in of_classes]
    area = np.mean(areas, axis=0)
    return undefined("a class is absent") if np.ndim(area) == 0 and np.isnan(area) else area


@register_metric("f1", title="F1", higher_is_better=True, batched=True, bounds=(0, 1))
def f1(labels: Ints, probabilities: Floats, weights: Floats | None = None) -> Any:
    """F1 of class 1 with two classes, else the unweighted mean over classes; 0 where nothing is predicted."""
    counts = _counts(labels, probabilities, weights)
    both = counts.of_class + counts.predicted
    values = 2 * counts.right / np.where(both > 0, both, 1)
    return values[..., 1] if probabilities.shape[1] == 2 else values.mean(-1)


def roc_area(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Any:
    """Share of the weight of (positive, negative) pairs in the right order, of weights ``[..., n]``."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # equal scores are one step
    if np.ndim(weights) > 1:
        return _areas(positive[order], np.moveaxis(weights, -1, 0)[order], np.append(starts, len(order)))
    w, side = weights[order], positive[order]
    up, down = w * side, w * ~side
    if len(starts) < len(order):
        up, down = (np.add.reduceat(part, starts) for part in (up, down))
    below = np.cumsum(down) - down
    with np.errstate(invalid="ignore"):
        return (up * (below + 0.5 * down)).sum() / (up.sum() * down.sum())


def _areas(positive: NDArray[np.bool_], weights: Floats, ends: Ints) -> Floats:
    """The areas under many weightings ``[n, ...]`` of slides in the order of their scores, a slide at a time.

    It is what ``roc_area`` adds up, without its tables of ``n`` rows: a bootstrap is many weightings of few slides.

    Args:
        positive: ``[n]``.
        weights: of each slide.
        ends: where slides of equal scores begin, and ``n``.
    """
    area, above, below = (np.zeros(weights.shape[1:]) for _ in range(3))
    for start, end in itertools.pairwise(ends.tolist()):
        if end - start == 1 and positive[start]:
            area += weights[start] * below
            above += weights[start]
        elif end - start == 1:
            below += weights[start]
        else:
            side = positive[start:end]
            up, down = weights[start:end][side].sum(0), weights[start:end][~side].sum(0)
            area += up * (below + 0.5 * down)
            above += up
            below += down
    with np.errstate(invalid="ignore"):
        return np.asarray(area / (above * below))
