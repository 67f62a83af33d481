"""Losses of one number a bag."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Kind = Literal["huber", "mse", "mae"]


def regression(
    predicted: Tensor, target: Tensor, kind: Kind = "huber", delta: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """The loss ``[B]`` of each bag.

    "huber" is ``d^2 / 2`` up to ``delta`` and ``delta (|d| - delta / 2)`` beyond, "mse" ``d^2``, "mae" ``|d|``.

    Args:
        predicted: ``[B]`` or ``[B, 1]``, in the scale of the target.
        target: likewise; standardised where ``delta`` is to be a standard deviation.
        kind: which loss.
        delta: of "huber".
        weights: ``[B]``, or None for one each.
    """
    given = (predicted.float() if predicted.dtype.itemsize < 4 else predicted).flatten()
    truth = target.flatten().to(given)
    if kind == "huber":
        loss = F.huber_loss(given, truth, reduction="none", delta=delta)
    else:
        loss = (F.mse_loss if kind == "mse" else F.l1_loss)(given, truth, reduction="none")
    return loss if weights is None else loss * weights
