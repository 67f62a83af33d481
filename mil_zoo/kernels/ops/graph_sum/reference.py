"""Sums over neighbours in plain PyTorch: the oracle."""

from __future__ import annotations


def forward(x, graph, weight):
    """See ``graph_sum``. Returns ``[Nd, F]``."""
    messages = x.index_select(0, graph.indices.long())  # [E, F]
    if weight is not None:
        messages = messages * weight[:, None]
    return x.new_zeros(graph.num_dst, x.shape[1]).index_add(0, graph.destinations, messages)
