"""Softmax aggregation in plain PyTorch: the oracle."""

from __future__ import annotations

from mil_zoo.kernels.softmax import grouped_softmax


def forward(x, t, graph):
    """See ``graph_softmax_sum``. Returns ``[Nd, F]``."""
    messages = x.index_select(0, graph.indices.long())  # [E, F]
    weights = grouped_softmax(t * messages, graph.destinations, graph.num_dst)
    return x.new_zeros(graph.num_dst, x.shape[1]).index_add(0, graph.destinations, weights * messages)
