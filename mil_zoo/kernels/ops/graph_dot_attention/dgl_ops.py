"""Dot-product graph attention from DGL's message-passing ops."""

from __future__ import annotations

from mil_zoo._dgl import ops
from mil_zoo.kernels.dropout import dropout_scale


def forward(q, k, v, graph, scale, bias, dropout_p, seed, return_attention):
    """See ``graph_dot_attention``. Returns out ``[Nd, H, Fv]`` and attention ``[E, H]``."""
    g = graph.dgl
    scores = scale * ops.u_dot_v(g, k, q).squeeze(-1)  # [E, H]
    attention = ops.edge_softmax(g, scores if bias is None else scores + bias)
    weights = attention
    if dropout_p > 0:
        weights = attention * dropout_scale(attention.numel(), dropout_p, seed, q.device, q.dtype).view_as(attention)
    return ops.u_mul_e_sum(g, v, weights[:, :, None]), attention
