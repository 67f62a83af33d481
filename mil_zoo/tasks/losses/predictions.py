"""Predictions of tasks as tensors, which tasks themselves load no torch for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil_zoo.tasks.losses.classification import probabilities
from mil_zoo.tasks.losses.ordinal import coral_probabilities, corn_probabilities


def of_grades(logits: Tensor, criterion: str) -> Tensor:
    """Predictions of ordered classes, float64 ``[B, C + 2]``.

    The probabilities; how many of ``P(y > k)`` exceed 1/2; and the mean class ``sum_k k P(y = k)``.

    Args:
        logits: ``[B, C - 1]``, with "ce" ``[B, C]``.
        criterion: "corn", "coral" or "ce".
    """
    of_loss = {"ce": probabilities, "corn": corn_probabilities, "coral": coral_probabilities}
    known = of_loss[criterion](logits)
    above = 1 - known.cumsum(1)[:, :-1]
    grades = torch.arange(known.shape[1], device=known.device, dtype=known.dtype)
    return torch.cat([known, (above > 0.5).sum(1, keepdim=True), known @ grades[:, None]], dim=1)


def numbers(logits: Tensor) -> NDArray[np.float64]:
    """Logits in double precision, as an array of the host."""
    return np.asarray(logits.detach().double().cpu().numpy())


def tensor(values: NDArray[np.float64]) -> Tensor:
    """An array as a tensor of the host."""
    return torch.from_numpy(values)
