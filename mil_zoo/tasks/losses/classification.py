"""Cross-entropy, in float32 also where the logits come in half precision, and class probabilities in float64."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels import devices


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
    labels, wrong = check_labels(labels, count)
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    else:
        loss = F.cross_entropy(logits, labels.clamp(0, count - 1), reduction="none")
    if wrong is not None:
        loss = loss.masked_fill(wrong, torch.nan)
    return loss if weights is None else loss * weights


def one_hot(labels: Tensor, count: int) -> Tensor:
    """Float ``[B, count]`` with 1 at the class of each bag; ``labels`` as in :func:`cross_entropy`.

    Raises:
        InputError: as :func:`cross_entropy`.
    """
    labels, wrong = check_labels(labels, count)
    hot = (labels[:, None] == torch.arange(count, device=labels.device)).float()
    return hot if wrong is None else hot.masked_fill(wrong[:, None], torch.nan)


def check_labels(labels: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Labels ``[B]`` as int64, and where they are no class if they lie on a GPU: looking there would wait.

    Raises:
        InputError: a label of the CPU is not a whole number from 0 to ``count - 1``.
    """
    whole = labels.long()
    if devices.runs_ahead(labels.device):
        return whole, (whole < 0) | (whole >= count) | (whole != labels)
    numbers = labels.detach().double().numpy()  # which takes a tenth of torch's comparisons of a few numbers
    wrong = ~((numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers)))  # NaN is wrong, too
    if wrong.any():
        place = int(wrong.argmax())
        raise InputError(
            f"bag {place} of the batch has the label {labels[place].item():g}; classes count from 0, here 0 to "
            f"{count - 1}"
        )
    return whole, None


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
