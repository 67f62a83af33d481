"""Cross-entropy and class probabilities, in float32 also where the logits come in half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.errors import InputError


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each bag ``[B]``.

    Args:
        logits: ``[B, C]``, C >= 2; or ``[B, 1]``, then the binary cross-entropy of their sigmoid.
        labels: ``[B]``, class indices of any number type.
        weights: ``[B]``, or None for one each.

    Raises:
        InputError: a label is no class. On a GPU, which nothing here waits for, its loss is NaN instead.
    """
    logits = _full(logits)
    count = max(2, logits.shape[1])
    labels = checked_labels(labels, count)
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    else:
        loss = F.cross_entropy(logits, labels.clamp(0, count - 1), reduction="none")
    if labels.device.type != "cpu":
        loss = torch.where((labels >= 0) & (labels < count), loss, torch.nan)
    return loss if weights is None else loss * weights


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Returns ``labels`` ``[B]`` as int64; those of a GPU are not looked at, because that would wait for it.

    Raises:
        InputError: a label is not a whole number from 0 to ``count - 1``.
    """
    whole = labels.long()
    if labels.device.type == "cpu":
        wrong = (whole < 0) | (whole >= count) | (whole != labels)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise InputError(
                f"bag {place} of the batch has the label {labels[place].item():g}; classes count from 0, here 0 to "
                f"{count - 1}"
            )
    return whole


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities ``[B, max(C, 2)]`` of ``logits`` ``[B, C]``: softmax, or (1 - p, p) with one logit."""
    logits = _full(logits)
    if logits.shape[1] == 1:
        positive = logits.sigmoid()
        return torch.cat([1 - positive, positive], dim=1)
    return logits.softmax(dim=1)


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values
