"""Which instances a training step masks: a share of each bag, or of the most attended in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.aggregators.blocks.segments import segment_topk
from mil_zoo.data.bag import BagBatch
from mil_zoo.kernels.draws import from_host


def draw_rows(sizes: Sequence[int], share: float, device: torch.device) -> Tensor:
    """Draws random rows of packed bags: int(share * N) of each bag of N, none twice.

    They are drawn by torch's generator of the CPU whatever the device, so that a seed gives the same rows everywhere,
    and sizes are numbers of the host, so that no device is waited for.

    Args:
        sizes: instances of each bag.
        share: in [0, 1].
        device: where the rows are wanted.

    Returns:
        int64 ``[rows]``, the bags in order.
    """

    def drawn() -> Tensor:
        starts = [0, *accumulate(sizes)]
        return torch.cat([start + torch.randperm(n)[: int(share * n)] for start, n in zip(starts, sizes, strict=False)])

    return from_host(drawn, device)


def draw_top_rows(scores: Tensor, batch: BagBatch, count: int, share: float) -> Tensor:
    """Draws a random share of the ``count`` highest scores of each bag, for each column apart.

    This is stochastic top-k masking. Of k = min(count, N) instances int(share * k) are drawn, and one of a bag at
    least is left.

    Args:
        scores: ``[ΣN, K]`` attention logits, without gradient.
        batch: their bags.
        count: how many of the most attended instances are looked at.
        share: of them that is masked, in [0, 1].

    Returns:
        int64 ``[masked, K]``, rows of each column of ``scores``.

    Source: Zhang et al., ACMIL, ECCV 2024; github dazhangyu123/ACMIL.
    """
    k, taken = batch.sizes.clamp(max=count), [min(size, count) for size in batch.lengths]
    top = segment_topk(scores, batch.offsets, k, sum(taken))
    masked = (k.double() * share).long().minimum(batch.sizes - 1)
    keys = torch.rand(top.shape, device=top.device)
    total = sum(min(int(t * share), size - 1) for t, size in zip(taken, batch.lengths, strict=True))
    return top.gather(0, segment_topk(keys, F.pad(k.cumsum(0), (1, 0)), masked, total))
