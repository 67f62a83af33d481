"""Tables of nearest neighbours, made where the coordinates are."""

from __future__ import annotations

import torch
from torch import Tensor

from mil_zoo.graph.builders import knn
from mil_zoo.kernels import devices

AT_ONCE = 2**22  # distances held at a time (32 MiB)


def nearest(coords: Tensor, k: int) -> Tensor:
    """Finds the k nearest other points of each point, nearest first; of equally far ones those of lower index.

    On a CPU by a k-d tree; on a GPU, whose coordinates nobody waits for, by all distances, a slice at a time.

    Args:
        coords: ``[N, 2]``.
        k: how many; of N points at most N - 1.

    Returns:
        int64 ``[N, min(k, N - 1)]``.
    """
    k = min(k, len(coords) - 1)
    if k < 1:
        return torch.empty(len(coords), 0, dtype=torch.int64, device=coords.device)
    if not devices.runs_ahead(coords.device):
        return knn(coords, k)[0].view(len(coords), k)
    points, found = coords.double(), []
    index = torch.arange(len(points), device=coords.device)
    for rows in index.split(max(1, AT_ONCE // len(points))):
        away = (points.index_select(0, rows)[:, None] - points).square().sum(2)  # [rows, N]
        away = torch.where(rows[:, None] == index, torch.inf, away)
        farthest = away.topk(k, dim=1, largest=False).values[:, -1:]
        tied, nearer = away == farthest, away < farthest
        chosen = nearer | (tied & (tied.cumsum(1) <= k - nearer.sum(1, keepdim=True)))
        columns = torch.where(chosen, index, len(points)).topk(k, dim=1, largest=False).values.sort(dim=1).values
        found.append(columns.gather(1, away.gather(1, columns).argsort(dim=1, stable=True)))
    return torch.cat(found)
