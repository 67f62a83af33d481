"""Attention pooling of one bag by PyTorch's own operations: of few numbers they take less than the kernels' call."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor


def forward(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """See ``segment_attention_pool``, without dropout."""
    attention = torch._safe_softmax(scores, 0)  # 0, and not NaN, where all scores are -inf
    weights = attention.view_as(attention)
    if weights.requires_grad:
        weights.register_hook(partial(_centred, attention.detach()))
    pooled = weights.T @ values if values.ndim == 2 else torch.einsum("nk,nkf->kf", weights, values)
    return pooled[None], attention


def _centred(attention: Tensor, grad: Tensor | None) -> Tensor | None:
    """Gradients of weights ``[N, K]`` less their mean by the attention, which softmax takes from them in any case.

    It takes it from their products with the attention: of small ones these keep their digits where attention goes flat.
    """
    return None if grad is None else grad - (attention * grad).sum(0)
