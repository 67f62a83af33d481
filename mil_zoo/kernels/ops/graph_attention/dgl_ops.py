"""Graph attention from DGL's message-passing ops: no ``[E, H, F]`` tensor, several passes over the edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mil_zoo._dgl import ops
from mil_zoo.kernels.dropout import dropout_scale


def forward(feat, src_score, dst_score, graph, negative_slope, dropout_p, seed, global_key, return_attention):
    """See ``graph_attention``. The softmax is written out so that the global key can share its maximum and its sum."""
    g = graph.dgl
    scores = F.leaky_relu(ops.u_add_v(g, src_score, dst_score), negative_slope)  # [E, H]
    top = ops.copy_e_max(g, scores.detach())  # [Nd, H]; 0 in rows without edges
    if global_key is not None:
        global_scores = F.leaky_relu(
            global_key.score.index_select(0, global_key.bag) + dst_score, negative_slope
        )  # [Nd, H]
        has_edges = (graph.indptr.diff() > 0)[:, None]
        top = torch.where(has_edges, torch.maximum(top, global_scores.detach()), global_scores.detach())
        top = top.clamp(min=torch.finfo(top.dtype).min)
        global_weights = (global_scores - top).exp()
    weights = ops.e_sub_v(g, scores, top).exp()
    total = ops.copy_e_sum(g, weights)
    if global_key is not None:
        total = total + global_weights
        total = total + (total == 0)  # neither an edge nor a global node: zeros
    attention = ops.e_div_v(g, weights, total)
    kept = attention
    if dropout_p > 0:
        kept = attention * dropout_scale(attention.numel(), dropout_p, seed, feat.device, feat.dtype).view_as(attention)
    out = ops.u_mul_e_sum(g, feat, kept[:, :, None])
    if global_key is None:
        return out, attention, None
    global_attention = global_weights / total
    kept = global_attention
    if dropout_p > 0:
        count, start = kept.numel(), attention.numel()
        kept = kept * dropout_scale(count, dropout_p, seed, feat.device, feat.dtype, start).view_as(kept)
    out = out + kept[:, :, None] * global_key.feat.index_select(0, global_key.bag)
    return out, attention, global_attention
