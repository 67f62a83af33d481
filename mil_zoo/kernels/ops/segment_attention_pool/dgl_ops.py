"""Attention pooling from DGL's ops: a bag is a destination whose sources are its instances."""

from __future__ import annotations

import torch

from mil_zoo._dgl import ops
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.dropout import dropout_scale


def forward(scores, values, offsets, dropout_p, seed):
    """See ``segment_attention_pool``. Returns pooled ``[B, K, F]`` and attention ``[N, K]``."""
    instances = torch.arange(len(scores), dtype=torch.int32)
    g = CSR(offsets.int(), instances, len(scores)).dgl
    attention = ops.edge_softmax(g, scores)
    weights = attention
    if dropout_p > 0:
        scale = dropout_scale(attention.numel(), dropout_p, seed, scores.device, scores.dtype)
        weights = attention * scale.view_as(attention)
    if values.ndim == 2:
        values = values[:, None, :]
    return ops.u_mul_e_sum(g, values, weights[:, :, None]), attention
