"""Choosing rows of packed bags without waiting for a device."""

from __future__ import annotations

import torch
from torch import Tensor

from mil_zoo.kernels.devices import positions, runs_ahead

LARGE = 500  # instances of a bag, on average, from which a CPU looks for the highest of each bag rather than sort all


def segment_topk(scores: Tensor, offsets: Tensor, k: Tensor, total: int | None = None) -> Tensor:
    """Finds the k highest scores of each bag, in each column.

    Args:
        scores: ``[N, K]``.
        offsets: integer ``[B + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``.
        k: int64 ``[B]``, how many of each bag, at most its size.
        total: the sum of k, where the host knows it and so need not wait for the device.

    Returns:
        int64 ``[sum k, K]``, rows of ``scores``: the bags in order, highest score first (equal: the earlier row).
    """
    if len(k) == 1 and total is not None:
        return torch.stack([_highest(column, total) for column in scores.unbind(1)], dim=1)
    few_bags = len(scores) >= LARGE * len(k)
    if few_bags and not (runs_ahead(scores.device) or torch.compiler.is_exporting()):
        bags = zip(scores.split(offsets.diff().tolist()), offsets.tolist(), k.tolist(), strict=False)
        return torch.cat([torch.stack([_highest(x, n) + start for x in bag.unbind(1)], 1) for bag, start, n in bags])
    order = scores.argsort(dim=0, descending=True, stable=True)
    bag = torch.repeat_interleave(offsets.diff(), output_size=len(scores))
    order = order.gather(0, bag[order].argsort(dim=0, stable=True))  # the bags apart again, each by falling score
    place = torch.arange(len(scores), device=scores.device) - offsets[bag]
    wanted = place < k[bag]
    return order[wanted] if total is None else order.index_select(0, positions(wanted, total))


def _highest(scores: Tensor, count: int) -> Tensor:
    """The rows of the ``count`` highest of ``scores`` ``[N]``; few of many are not worth a sort of all."""
    if torch.compiler.is_exporting():  # ONNX's sort is stable; the count is a symbol, which a slice would not take
        return scores.sort(descending=True).indices.index_select(0, torch.arange(count))
    if not runs_ahead(scores.device) and 0 < 4 * count < len(scores):
        rows = (~(scores < scores.topk(count).values[-1])).nonzero()[:, 0]  # the last's equals too, and NaN
        return rows[scores[rows].argsort(descending=True, stable=True)[:count]]
    return scores.argsort(descending=True, stable=True)[:count]
