"""Scores of predicted classes that have an order. Arguments: labels ``[n]`` and predicted classes ``[n]``, from 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil_zoo.metrics.registry import register_metric
from mil_zoo.noted import Noted, undefined

Numbers = NDArray[Any]


@register_metric("qwk", title="Weighted kappa", higher_is_better=True, task="ordinal", batched=True, bounds=(-1, 1))
def qwk(labels: Numbers, predicted: Numbers, weights: Numbers | None = None) -> Any:
    """Cohen's kappa with quadratic weights: 1 less the mean squared distance over that expected by chance.

    ``1 - sum_ij (i - j)^2 O_ij / sum_ij (i - j)^2 E_ij``, O the counts, E the product of their margins. The number of
    classes has no effect. NaN where truth and prediction are one and the same class; 0 of a constant prediction.

    Source: Cohen, Psychological Bulletin 70 (1968).
    """
    truth, said = np.asarray(labels, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    w = np.ones(len(truth)) if weights is None else weights
    with np.errstate(invalid="ignore"):  # draws without a patient of this part
        share = w / w.sum(-1, keepdims=True)
    observed = share @ (truth - said) ** 2
    # Of independent classes the mean squared distance is both variances and the squared distance of the means.
    means = [share @ one for one in (truth, said)]
    variances = [share @ one**2 - mean**2 for one, mean in zip((truth, said), means, strict=True)]
    expected = sum(variances) + (means[0] - means[1]) ** 2
    alike = expected <= 1e-12 * (1 + np.abs(truth).max() ** 2)
    if np.ndim(observed):
        return np.where(alike, np.nan, 1 - observed / np.where(alike, 1, expected))
    if alike:
        return undefined("truth and prediction are one and the same class")
    used = said[w > 0]
    return Noted(0.0, "constant prediction") if np.ptp(used) == 0 else float(1 - observed / expected)


@register_metric(
    "mae_class", title="Class error", higher_is_better=False, task="ordinal", batched=True, bounds=(0, np.inf)
)
def mae_class(labels: Numbers, predicted: Numbers, weights: Numbers | None = None) -> Any:
    """Mean distance of the predicted class from the true one, in classes."""
    w = np.ones(len(labels)) if weights is None else weights
    with np.errstate(invalid="ignore"):  # draws without a patient of this part
        return w @ np.abs(np.asarray(labels, dtype=np.float64) - predicted) / w.sum(-1)
