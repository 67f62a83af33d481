"""Dot-product graph attention in plain PyTorch: the oracle."""

from __future__ import annotations

from mil_zoo.kernels.dropout import dropout_scale
from mil_zoo.kernels.softmax import grouped_softmax


def forward(q, k, v, graph, scale, bias, dropout_p, seed, return_attention):
    """See ``graph_dot_attention``. Returns out ``[Nd, H, Fv]`` and attention ``[E, H]``."""
    graph = graph.without_room
    src, dst = graph.indices.long(), graph.destinations
    scores = scale * (q.index_select(0, dst) * k.index_select(0, src)).sum(-1)  # [E, H]
    attention = grouped_softmax(scores if bias is None else scores + bias, dst, graph.num_dst)
    weights = attention
    if dropout_p > 0:
        weights = attention * dropout_scale(attention.numel(), dropout_p, seed, q.device, q.dtype).view_as(attention)
    out = v.new_zeros(graph.num_dst, *v.shape[1:]).index_add(0, dst, weights[:, :, None] * v.index_select(0, src))
    return out, attention
