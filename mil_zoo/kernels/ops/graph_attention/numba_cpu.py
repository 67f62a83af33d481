"""Graph attention on a CPU: the autograd function of the fused kernels in ``numba_kernels``."""

from __future__ import annotations

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from mil_zoo.errors import InputError
from mil_zoo.kernels._numba.attention import Edges
from mil_zoo.kernels._numba.hashing import Dropout
from mil_zoo.kernels._numba.jit import array, array_or_empty
from mil_zoo.kernels._numba.segments import cut, segment_weighted_sum
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty
from mil_zoo.kernels.ops.graph_attention import numba_kernels as kernels


def forward(feat, src_score, dst_score, graph, negative_slope, dropout_p, seed, global_key, return_attention):
    """See ``graph_attention``.

    Features and their gradients are read and written as they are, but float16, which is converted to float32 and back;
    scores and what is computed are float32 or float64.
    """
    dtype = torch.float64 if feat.dtype == torch.float64 else torch.float32
    stored = torch.float32 if feat.dtype == torch.float16 else feat.dtype
    key_feat = key_score = bag = None
    if global_key is not None:
        key_feat, key_score, bag = global_key.feat.to(dtype), global_key.score.to(dtype), global_key.bag.int()
        if len(bag) and not 0 <= int(bag.min()) <= int(bag.max()) < len(key_feat):
            raise InputError(f"global_key.bag must lie in 0..{len(key_feat) - 1}, not {bag.min()}..{bag.max()}")
    settings = graph, negative_slope, dropout_p, seed
    outputs = _GraphAttention.apply(
        feat.to(stored), src_score.to(dtype), dst_score.to(dtype), key_feat, key_score, bag, settings, return_attention
    )
    return tuple(None if output is None else output.to(feat.dtype) for output in outputs)


class _GraphAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feat, src_score, dst_score, key_feat, key_score, bag, settings, return_attention):
        graph, (_, heads, width), rows = settings[0], feat.shape, settings[0].num_dst
        out, lse = empty(feat, rows, heads, width), src_score.new_empty(rows, heads)
        attention = src_score.new_empty(graph.num_edges, heads) if return_attention else None
        key_attention = src_score.new_empty(rows, heads) if return_attention and bag is not None else None
        tensors = feat, src_score, dst_score, key_feat, key_score, bag, lse
        inputs, dropout = _arrays(*tensors, settings)
        outputs = kernels.Outputs(
            out=array(out),
            attention=array_or_empty(attention, inputs.src, 0, heads),
            key_attention=array_or_empty(key_attention, inputs.src, 0, heads),
        )
        edges = Edges.of(graph)
        kernels.forward(blocks(edges.indptr, heads * width), edges, inputs, dropout, outputs)
        ctx.save_for_backward(*tensors)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return out, attention, key_attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_attention, grad_key_attention):
        feat, src_score, dst_score, key_feat, *_ = ctx.saved_tensors
        graph, heads, cost = ctx.settings[0], feat.shape[1], feat.shape[1] * feat.shape[2]
        if grad_out is None:
            grad_out = feat.new_zeros(graph.num_dst, *feat.shape[1:])
        grads = [empty(x, *x.shape) for x in (feat, src_score, dst_score)]
        grad_feat, grad_src, grad_dst = (array(grad) for grad in grads)
        inputs, dropout = _arrays(*ctx.saved_tensors, ctx.settings)
        by_destination = kernels.ByDestination(
            grad_out=array(grad_out),
            grad_attention=array_or_empty(grad_attention, inputs.src, 0, heads),
            grad_key_attention=array_or_empty(grad_key_attention, inputs.src, 0, heads),
            grad_dst=grad_dst,
            delta=np.empty_like(inputs.dst),
            key_weight=np.empty((len(inputs.bag), heads), inputs.src.dtype),
            key_flow=np.empty((len(inputs.bag), heads), inputs.src.dtype),
        )
        edges, back = Edges.of(graph), Edges.of(graph.transposed)
        kernels.backward_dst(blocks(edges.indptr, cost), edges, inputs, dropout, by_destination)
        by_source = kernels.BySource(
            grad_out=by_destination.grad_out,
            grad_attention=by_destination.grad_attention,
            delta=by_destination.delta,
            grad_feat=grad_feat,
            grad_src=grad_src,
        )
        kernels.backward_src(blocks(back.indptr, cost), back, inputs, dropout, by_source)
        grad_key = (None, None) if key_feat is None else _backward_key(inputs.bag, len(key_feat), by_destination)
        return *grads, *grad_key, None, None, None


def _backward_key(bag, num_keys, flows):
    """Gradients of the global keys' features and scores: sums over the destinations of each bag."""
    weight, flow, grad_out = flows.key_weight, flows.key_flow, flows.grad_out
    pieces = cut(np.concatenate([[0], np.cumsum(np.bincount(bag, minlength=num_keys))]))
    if (np.diff(bag) < 0).any():
        order = np.argsort(bag, kind="stable")
        weight, flow, grad_out = weight[order], flow[order], grad_out[order]
    ones = np.ones((len(bag), 1, 1), weight.dtype)
    sums = segment_weighted_sum(weight, grad_out, pieces), segment_weighted_sum(flow, ones, pieces)[:, :, 0]
    return tuple(map(torch.from_numpy, sums))


def _arrays(feat, src_score, dst_score, key_feat, key_score, bag, lse, settings):
    (_, negative_slope, dropout_p, seed), (_, heads, width) = settings, feat.shape
    src = array(src_score)
    inputs = kernels.Inputs(
        feat=array(feat),
        src=src,
        dst=array(dst_score),
        slope=src.dtype.type(negative_slope),
        key_feat=array_or_empty(key_feat, src, 0, heads, width),
        key_score=array_or_empty(key_score, src, 0, heads),
        bag=np.empty(0, np.int32) if bag is None else array(bag),
        lse=array(lse),
    )
    return inputs, Dropout.of(dropout_p, seed, src.dtype)
