"""Attention pooling of one bag by PyTorch's own operations: of few numbers they take less than the kernels' call."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """See ``segment_attention_pool``, without dropout."""
    attention = torch._safe_softmax(scores, 0)  # 0, and not NaN, where all scores are -inf
    if not scores.requires_grad:
        return _sums(attention, values)[None], attention
    # The gradient of a score is the difference of its value's and the mean's: of values less a constant, it keeps its
    # digits where attention goes flat.
    constant = values[0].detach()  # [F] or [K, F]
    pooled = _sums(attention, values - constant) + attention.detach().sum(0)[:, None] * constant
    return pooled[None], attention


def _sums(attention: Tensor, values: Tensor) -> Tensor:
    """``[K, F]``: sums of values ``[N, F]`` or ``[N, K, F]`` by the weights ``[N, K]``."""
    return attention.T @ values if values.ndim == 2 else torch.einsum("nk,nkf->kf", attention, values)
