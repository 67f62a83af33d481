"""Graph attention in plain PyTorch: the oracle. The global key is an extra edge for each destination."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.kernels.dropout import dropout_scale
from mil_zoo.kernels.softmax import grouped_softmax


def forward(feat, src_score, dst_score, graph, negative_slope, dropout_p, seed, global_key, return_attention):
    """See ``graph_attention``. Returns out ``[Nd, H, F]``, attention ``[E, H]`` and the global key's ``[Nd, H]``."""
    graph = graph.without_room
    src, dst = graph.indices.long(), graph.destinations
    if global_key is not None:
        src = torch.cat([src, graph.num_src + global_key.bag])
        dst = torch.cat([dst, torch.arange(graph.num_dst, device=dst.device)])
        feat = torch.cat([feat, global_key.feat])
        src_score = torch.cat([src_score, global_key.score])
    scores = F.leaky_relu(src_score.index_select(0, src) + dst_score.index_select(0, dst), negative_slope)  # [E, H]
    attention = grouped_softmax(scores, dst, graph.num_dst)
    weights = attention
    if dropout_p > 0:
        scale = dropout_scale(attention.numel(), dropout_p, seed, feat.device, feat.dtype)
        weights = attention * scale.view_as(attention)
    out = _weighted_sum(weights, feat, src, dst, graph.num_dst)
    return out, attention[: graph.num_edges], None if global_key is None else attention[graph.num_edges :]


def _weighted_sum(weights: Tensor, feat: Tensor, src: Tensor, dst: Tensor, num_dst: int) -> Tensor:
    messages = weights[:, :, None] * feat.index_select(0, src)  # [E, H, F]
    return feat.new_zeros(num_dst, *feat.shape[1:]).index_add(0, dst, messages)
