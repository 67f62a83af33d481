"""Softmax over groups of rows, in plain PyTorch: the piece that the reference implementations share.

Here and in the references rows are gathered with ``index_select``: its backward adds in order, where that of
``x[index]`` adds in parallel and gives other bits in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_softmax(scores: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Softmax of ``scores`` ``[N, H]`` among the rows of the same ``group`` (int64 ``[N]``), for each column.

    A score of -inf gets weight 0, also in a group that has no other.
    """
    index = group[:, None].expand_as(scores)
    top = scores.new_full((num_groups, scores.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, index, scores.detach(), "amax").clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - top[group]).exp()  # top carries no gradient
    total = weights.new_zeros(num_groups, scores.shape[1]).index_add(0, group, weights)
    return weights / (total + (total == 0)).index_select(0, group)
