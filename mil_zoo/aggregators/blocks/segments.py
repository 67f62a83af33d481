"""Choosing rows of packed bags without waiting for a device."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_topk(scores: Tensor, offsets: Tensor, k: Tensor) -> Tensor:
    """Finds the k highest scores of each bag, in each column.

    Args:
        scores: ``[N, K]``.
        offsets: integer ``[B + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``.
        k: int64 ``[B]``, how many of each bag, at most its size.

    Returns:
        int64 ``[sum k, K]``, rows of ``scores``: the bags in order, highest score first (equal: the earlier row).
    """
    bag = torch.repeat_interleave(offsets.diff(), output_size=len(scores))
    order = scores.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, bag[order].argsort(dim=0, stable=True))  # the bags apart again, each by falling score
    place = torch.arange(len(scores), device=scores.device) - offsets[bag]
    return order[place < k[bag]]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves ``tensor``, drawn on the CPU, to ``device``; a CUDA device takes it without making the process wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def positions(mask: Tensor, count: int) -> Tensor:
    """Finds where ``mask`` ``[N]`` is true, int64 ``[count]``; its count is told, so that no device is waited for."""
    if mask.device.type != "cuda":
        return mask.nonzero()[:, 0]
    return (~mask).argsort(stable=True)[:count]
