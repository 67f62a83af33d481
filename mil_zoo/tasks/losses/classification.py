"""Cross-entropy, in float32 also where the logits come in half precision, and class probabilities in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each bag ``[B]``.

    Args:
        logits: ``[B, C]``, C >= 2; or ``[B, 1]``, then the binary cross-entropy of their sigmoid.
        labels: ``[B]``, class indices of any number type.
        weights: ``[B]``, or None for one each.
    """
    logits = _full(logits)
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    else:
        loss = F.cross_entropy(logits, labels.long(), reduction="none")
    return loss if weights is None else loss * weights


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities, float64 ``[B, max(C, 2)]``, of ``logits`` ``[B, C]``: softmax, or (1 - p, p) with one logit.

    In float64 the smaller one still tells bags apart whose larger one is 1.
    """
    logits = logits.double()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits.softmax(dim=1)


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values
