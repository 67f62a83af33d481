"""Losses of ordered classes, from C - 1 logits: logit k speaks of "the class is above k"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.tasks.losses.classification import check_labels


def corn(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Conditional ordinal regression: logit k is of ``P(y > k | y >= k)``, learnt of the bags with ``y >= k``.

    The binary cross-entropies of all k together, divided by the number (weight) of these conditional examples.

    Args:
        logits: ``[B, C - 1]``.
        labels: ``[B]``, 0 to C - 1.
        weights: ``[B]``, or None for one each.

    Returns:
        ``[B]``: a bag has B / examples times the sum of its own, so that the mean over bags is that over examples.

    Source: Shi, Cao & Raschka, Pattern Analysis and Applications 26 (2023).
    """
    z, above, place = _above(logits, labels)
    seen = (labels.long()[:, None] >= place).to(z)
    w = torch.ones_like(z[:, 0]) if weights is None else weights.to(z)
    each = F.binary_cross_entropy_with_logits(z, above, reduction="none") * seen * w[:, None]
    return each.sum(1) * len(z) / (seen * w[:, None]).sum()


def corn_probabilities(logits: Tensor) -> Tensor:
    """Class probabilities, float64 ``[B, C]``: ``P(y > k) = prod_{j <= k} sigmoid(z_j)``, and their differences."""
    return _from_above(F.logsigmoid(logits.double()).cumsum(1).exp())


def coral(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Consistent rank logits: the sum over k of the binary cross-entropy of ``P(y > k) = sigmoid(z_k)``.

    Args:
        logits: ``[B, C - 1]``; with one weight vector and C - 1 biases they fall from k to k.
        labels: ``[B]``, 0 to C - 1.
        weights: ``[B]``, or None for one each.

    Source: Cao, Mirjalili & Raschka, Pattern Recognition Letters 140 (2020).
    """
    z, above, _ = _above(logits, labels)
    loss = F.binary_cross_entropy_with_logits(z, above, reduction="none").sum(1)
    return loss if weights is None else loss * weights


def coral_probabilities(logits: Tensor) -> Tensor:
    """Class probabilities, float64 ``[B, C]``, of ``P(y > k) = sigmoid(z_k)``; logits that rise are levelled first."""
    return _from_above(logits.double().sigmoid().cummin(1).values)


def _above(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = logits.float() if logits.dtype.itemsize < 4 else logits
    place = torch.arange(z.shape[1], device=z.device)
    whole, wrong = check_labels(labels, z.shape[1] + 1)
    above = (whole[:, None] > place).to(z)
    return z, above if wrong is None else above.masked_fill(wrong[:, None], torch.nan), place


def _from_above(above: Tensor) -> Tensor:
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    return torch.cat([ones, above], dim=1) - torch.cat([above, zeros], dim=1)
