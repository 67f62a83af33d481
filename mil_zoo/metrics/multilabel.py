"""Scores of several labels a bag. Arguments: labels ``[n, L]``, 1, 0 or NaN (unknown), and probabilities ``[n, L]``.

Only known entries count. The context: ``labels``, name -> column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil_zoo.metrics.classification import roc_area
from mil_zoo.metrics.registry import register_metric
from mil_zoo.noted import undefined

Floats = NDArray[np.float64]
ONE_CLASS = "all known bags are of one class"


@register_metric("auc_macro", title="Macro AUC", higher_is_better=True, task="multilabel", batched=True, bounds=(0, 1))
def auc_macro(labels: Floats, probabilities: Floats, weights: Floats | None = None) -> Any:
    """Mean over the labels with both classes of their area under the ROC curve; ``labels_defined`` says how many."""
    return _macro(roc_area, labels, probabilities, weights)


@register_metric("ap_macro", title="Macro AP", higher_is_better=True, task="multilabel", batched=True, bounds=(0, 1))
def ap_macro(labels: Floats, probabilities: Floats, weights: Floats | None = None) -> Any:
    """Mean over the labels with both classes of their average precision ``sum (R_k - R_(k-1)) P_k``."""
    return _macro(average_precision, labels, probabilities, weights)


@register_metric(
    "hamming", title="Hamming loss", higher_is_better=False, task="multilabel", batched=True, bounds=(0, 1)
)
def hamming(labels: Floats, probabilities: Floats, weights: Floats | None = None) -> Any:
    """Share of the known entries that a threshold of 0.5 gets wrong."""
    known = ~np.isnan(labels)
    w = np.ones(len(labels)) if weights is None else weights
    wrong, total = ((w @ which).sum(-1) for which in (known & ((probabilities > 0.5) != (labels == 1)), known))
    if not np.ndim(total) and not total:
        return undefined("no label is known")
    return np.where(total > 0, wrong / np.where(total > 0, total, 1), np.nan)


@register_metric(
    "labels_defined", title="Labels with both classes", higher_is_better=None, task="multilabel", bounds=(0, np.inf)
)
def labels_defined(labels: Floats, probabilities: Floats, weights: Floats | None = None) -> float:
    """How many labels have known bags with and without them: those that the macro means are over."""
    w = np.ones(len(labels)) if weights is None else weights
    return float(((w @ (labels == 1) > 0) & (w @ (labels == 0) > 0)).sum())


@register_metric(
    "auc",
    title="AUC of {}",
    higher_is_better=True,
    task="multilabel",
    each=("label", "labels"),
    batched=True,
    bounds=(0, 1),
)
def auc(labels: Floats, probabilities: Floats, *, label: int, weights: Floats | None = None) -> Any:
    """Area under the ROC curve of one label."""
    return _one_label(roc_area, labels, probabilities, label, weights)


@register_metric(
    "ap",
    title="AP of {}",
    higher_is_better=True,
    task="multilabel",
    each=("label", "labels"),
    batched=True,
    bounds=(0, 1),
)
def ap(labels: Floats, probabilities: Floats, *, label: int, weights: Floats | None = None) -> Any:
    """Average precision of one label; of a model that knows nothing it is the share of the bags that have the label."""
    return _one_label(average_precision, labels, probabilities, label, weights)


def _one_label(
    score: Callable[..., Any], labels: Floats, probabilities: Floats, label: int, weights: Floats | None
) -> Any:
    value = _of_label(score, labels[:, label], probabilities[:, label], weights)
    return value if np.ndim(value) or not np.isnan(value) else undefined(ONE_CLASS)


def _macro(score: Callable[..., Any], labels: Floats, probabilities: Floats, weights: Floats | None) -> Any:
    columns = zip(labels.T, probabilities.T, strict=True)
    values = np.array([_of_label(score, *column, weights) for column in columns])
    defined = ~np.isnan(values)
    number = defined.sum(0)
    mean = np.where(defined, values, 0).sum(0) / np.maximum(number, 1)
    if np.ndim(mean):
        return np.where(number > 0, mean, np.nan)
    return float(mean) if number else undefined(f"no label is defined: {ONE_CLASS}")


def _of_label(score: Callable[..., Any], truth: Floats, scores: Floats, weights: Floats | None) -> Any:
    known = ~np.isnan(truth)
    w = (np.ones(len(truth)) if weights is None else weights)[..., known]
    if not known.any():
        return np.full(w.shape[:-1], np.nan)
    return score(truth[known] == 1, scores[known], w)


def average_precision(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Any:
    """Mean precision over recall, of weights ``[..., n]``; NaN where there are only positive rows, or none."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one step
    true = np.cumsum((weights * positive)[..., order], axis=-1)[..., last]
    said = np.cumsum(weights[..., order], axis=-1)[..., last]
    gained = np.diff(true, axis=-1, prepend=0)
    both = (true[..., -1] > 0) & (true[..., -1] < said[..., -1])
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (gained * np.where(said > 0, true / said, 0)).sum(-1) / true[..., -1]
    return np.where(both, value, np.nan)
