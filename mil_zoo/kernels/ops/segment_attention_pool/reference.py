"""Attention pooling in plain PyTorch: the oracle."""

from __future__ import annotations

import torch

from mil_zoo.kernels.dropout import dropout_scale
from mil_zoo.kernels.softmax import grouped_softmax


def forward(scores, values, offsets, dropout_p, seed):
    """See ``segment_attention_pool``. Returns pooled ``[B, K, F]`` and attention ``[N, K]``."""
    num_bags = len(offsets) - 1
    bag = torch.repeat_interleave(
        torch.arange(num_bags, device=offsets.device), offsets.diff(), output_size=len(scores)
    )
    attention = grouped_softmax(scores, bag, num_bags)
    weights = attention
    if dropout_p > 0:
        weights = attention * dropout_scale(attention.numel(), dropout_p, seed, scores.device, scores.dtype).view_as(
            attention
        )
    if values.ndim == 2:
        values = values[:, None, :]
    weighted = weights[:, :, None] * values  # [N, K, F]
    return weighted.new_zeros(num_bags, *weighted.shape[1:]).index_add(0, bag, weighted), attention
