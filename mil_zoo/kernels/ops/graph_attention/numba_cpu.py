"""Graph attention as fused CPU kernels: one pass over the rows forward, two backward, no ``[E, H, F]`` tensor.

Forward keeps the log-sum-exp of every row, from which backward makes the weights again. Every number is summed by one
thread in a fixed order (rows of the graph, rows of its transpose, fixed pieces of the bags for the global key), so the
bits do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.errors import InputError
from mil_zoo.kernels._numba.dropout import dropout_key, keep
from mil_zoo.kernels._numba.segments import segment_weighted_sum
from mil_zoo.kernels._numba.tools import (
    CHUNK,
    REORDER,
    array,
    blocks,
    exp,
    gather,
    jit,
    largest,
    multiply,
    number,
)
from mil_zoo.kernels._numba.vectors import add_weighted, dots


def forward(feat, src_score, dst_score, graph, negative_slope, dropout_p, seed, global_key, return_attention):
    """See ``graph_attention``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if feat.dtype == torch.float64 else torch.float32
    key_feat = key_score = bag = None
    if global_key is not None:
        key_feat, key_score, bag = global_key.feat.to(dtype), global_key.score.to(dtype), global_key.bag.int()
        if len(bag) and not 0 <= int(bag.min()) <= int(bag.max()) < len(key_feat):
            raise InputError(f"global_key.bag must lie in 0..{len(key_feat) - 1}, not {bag.min()}..{bag.max()}")
    settings = graph, negative_slope, dropout_p, seed
    outputs = _GraphAttention.apply(
        feat.to(dtype), src_score.to(dtype), dst_score.to(dtype), key_feat, key_score, bag, settings, return_attention
    )
    return tuple(None if output is None else output.to(feat.dtype) for output in outputs)


class _GraphAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feat, src_score, dst_score, key_feat, key_score, bag, settings, return_attention):
        graph, (_, heads, width) = settings[0], feat.shape
        out, lse = feat.new_empty(graph.num_dst, heads, width), feat.new_empty(graph.num_dst, heads)
        attention = feat.new_empty(graph.num_edges, heads) if return_attention else None
        key_attention = feat.new_empty(graph.num_dst, heads) if return_attention and bag is not None else None
        inputs = feat, src_score, dst_score, key_feat, key_score, bag, lse
        outputs = array(out, out), array(attention, feat, 0, heads), array(key_attention, feat, 0, heads)
        _forward(blocks(graph.indptr, heads * width), *_arrays(*inputs, settings), *outputs)
        ctx.save_for_backward(*inputs)
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
        grad_out, grad_attention = array(grad_out, feat), array(grad_attention, feat, 0, heads)
        grad_feat, grad_src, grad_dst = (torch.empty_like(x) for x in (feat, src_score, dst_score))
        arrays = _arrays(*ctx.saved_tensors, ctx.settings)
        _, _, feat_, src_, dst_, slope, dropout, _, _, bag, lse = arrays
        delta = np.empty_like(dst_)
        key_weight, key_flow = np.empty((2, len(bag), heads), feat_.dtype)
        _backward_dst(
            blocks(graph.indptr, cost), *arrays, grad_out, grad_attention, array(grad_key_attention, feat, 0, heads),
            grad_dst.numpy(), delta, key_weight, key_flow,
        )  # fmt: skip
        back = graph.transposed
        _backward_src(
            blocks(back.indptr, cost), back.indptr.numpy(), back.indices.numpy(), back.edge.numpy(), feat_, src_, dst_,
            slope, dropout, lse, grad_out, grad_attention, delta, grad_feat.numpy(), grad_src.numpy(),
        )  # fmt: skip
        if key_feat is None:
            return grad_feat, grad_src, grad_dst, None, None, None, None, None
        offsets = np.concatenate([[0], np.cumsum(np.bincount(bag, minlength=len(key_feat)))])
        if (np.diff(bag) < 0).any():
            order = np.argsort(bag, kind="stable")
            key_weight, key_flow, grad_out = key_weight[order], key_flow[order], grad_out[order]
        grad_key_feat = segment_weighted_sum(key_weight, grad_out, offsets)
        grad_key_score = segment_weighted_sum(key_flow, np.ones((len(bag), 1, 1), feat_.dtype), offsets)[:, :, 0]
        grad_key = torch.from_numpy(grad_key_feat), torch.from_numpy(grad_key_score)
        return grad_feat, grad_src, grad_dst, *grad_key, None, None, None


def _arrays(feat, src_score, dst_score, key_feat, key_score, bag, lse, settings):
    """The inputs of the kernels over destinations; a global key that is not there has length 0."""
    (graph, negative_slope, dropout_p, seed), (_, heads, width) = settings, feat.shape
    indptr, indices, feat_ = array(graph.indptr, feat), array(graph.indices, feat), array(feat, feat)
    constants = feat_.dtype.type(negative_slope), dropout_key(dropout_p, seed, feat_.dtype)
    key = array(key_feat, feat, 0, heads, width), array(key_score, feat, 0, heads), array(bag, graph.indices, 0)
    return indptr, indices, feat_, array(src_score, feat), array(dst_score, feat), *constants, *key, array(lse, feat)


@jit(parallel=True)
def _forward(
    bounds, indptr, indices, feat, src, dst, slope, dropout, key_feat, key_score, bag, lse, out, attention,
    key_attention,
):  # fmt: skip
    for block in prange(len(bounds) - 1):
        _forward_rows(
            bounds[block], bounds[block + 1], indptr, indices, feat, src, dst, slope, dropout, key_feat, key_score,
            bag, lse, out, attention, key_attention,
        )  # fmt: skip


@jit()
def _forward_rows(
    first, last, indptr, indices, feat, src, dst, slope, dropout, key_feat, key_score, bag, lse, out, attention,
    key_attention,
):  # fmt: skip
    heads = dst.shape[1]
    weight, scale = np.empty((heads, CHUNK), feat.dtype), np.ones((heads, CHUNK), feat.dtype)
    edges, counter = np.empty(CHUNK, np.int64), np.empty((2, CHUNK), np.uint32)
    top, total = np.empty(heads, feat.dtype), np.empty(heads, np.float64)
    scratch = np.empty(CHUNK, feat.dtype)
    for i in range(first, last):
        row = indices[indptr[i] : indptr[i + 1]]
        key = bag[i : i + 1]  # the global key as a list of one source; empty where there is none
        out[i] = 0
        total[:] = 0
        top[:] = np.finfo(feat.dtype).min  # and not -inf, for differences of two -inf are NaN
        if len(key):
            number(len(indices) + i, edges)
            keep(edges, dropout, counter, scale)
            _absorb(key, dst[i], key_score, key_feat, slope, weight, scale, scratch, top, total, out[i])
        for start in range(0, len(row), CHUNK):
            number(indptr[i] + start, edges)
            keep(edges, dropout, counter, scale)
            chunk = row[start : start + CHUNK]
            _absorb(chunk, dst[i], src, feat, slope, weight, scale, scratch, top, total, out[i])
        for h in range(heads):
            some = total[h] != 0
            lse[i, h] = top[h] + np.log(total[h]) if some else np.inf
            multiply(out[i, h], feat.dtype.type(1 / total[h] if some else 0))
        if len(attention):
            _write_attention(row, dst[i], src, slope, lse[i], attention[indptr[i] : indptr[i + 1]])
        if len(key_attention):
            _write_attention(key, dst[i], key_score, slope, lse[i], key_attention[i : i + 1])


@jit(fastmath=REORDER)
def _absorb(sources, own, score, feat, slope, weight, scale, scratch, top, total, out):
    """Adds sources to a row's running softmax: its maximum, sum of exponentials, and sum of features so weighted."""
    zero, lowest = feat.dtype.type(0), np.finfo(feat.dtype).min
    gather(sources, score, weight)
    for h in range(len(own)):
        for e in range(CHUNK):
            x = weight[h, e] + own[h]
            x = x if x > zero else x * slope
            weight[h, e] = x if e < len(sources) else lowest
        new = max(top[h], largest(weight[h], scratch))
        if new > top[h]:
            shrink = exp(top[h] - new)
            top[h] = new
            total[h] *= shrink
            multiply(out[h], shrink)
        part = zero
        for e in range(weight.shape[1]):
            y = exp(weight[h, e] - new)
            y = y if e < len(sources) else zero
            weight[h, e] = y * scale[h, e]
            part += y
        total[h] += part
    add_weighted(out, weight, feat, sources)


@jit()
def _write_attention(sources, own, score, slope, lse, attention):
    for e in range(len(sources)):
        for h in range(len(own)):
            x = own[h] + score[sources[e], h]
            attention[e, h] = exp((x if x > 0 else x * slope) - lse[h])


@jit(parallel=True)
def _backward_dst(
    bounds, indptr, indices, feat, src, dst, slope, dropout, key_feat, key_score, bag, lse, grad_out, grad_attention,
    grad_key_attention, grad_dst, delta, key_weight, key_flow,
):  # fmt: skip
    for block in prange(len(bounds) - 1):
        _backward_dst_rows(
            bounds[block], bounds[block + 1], indptr, indices, feat, src, dst, slope, dropout, key_feat, key_score,
            bag, lse, grad_out, grad_attention, grad_key_attention, grad_dst, delta, key_weight, key_flow,
        )  # fmt: skip


@jit()
def _backward_dst_rows(
    first, last, indptr, indices, feat, src, dst, slope, dropout, key_feat, key_score, bag, lse, grad_out,
    grad_attention, grad_key_attention, grad_dst, delta, key_weight, key_flow,
):  # fmt: skip
    """Gradient of the destinations' scores; ``delta``, the mean of a row's gradients under its weights; for the global
    key of each row its weight after dropout and the gradient of its score."""
    heads = dst.shape[1]
    weight, flow = np.empty((heads, CHUNK), feat.dtype), np.empty((heads, CHUNK), feat.dtype)
    scale, extra = np.ones((heads, CHUNK), feat.dtype), np.zeros((heads, CHUNK), feat.dtype)
    edges, counter = np.empty(CHUNK, np.int64), np.empty((2, CHUNK), np.uint32)
    sums = np.empty((3, heads), np.float64)
    for i in range(first, last):
        row, key = indices[indptr[i] : indptr[i + 1]], bag[i : i + 1]
        sums[:] = 0
        for start in range(0, len(row), CHUNK):
            chunk = row[start : start + CHUNK]
            number(indptr[i] + start, edges)
            keep(edges, dropout, counter, scale)
            if len(grad_attention):
                gather(edges[: len(chunk)], grad_attention, extra)
            _sum_flows(chunk, dst[i], src, feat, slope, lse[i], grad_out[i], weight, flow, scale, extra, sums)
        if len(key):
            number(len(indices) + i, edges)
            keep(edges, dropout, counter, scale)
            if len(grad_key_attention):
                extra[:, 0] = grad_key_attention[i]
            elif len(grad_attention):
                extra[:, 0] = 0
            _sum_flows(key, dst[i], key_score, key_feat, slope, lse[i], grad_out[i], weight, flow, scale, extra, sums)
        for h in range(heads):
            delta[i, h] = sums[0, h]
            grad_dst[i, h] = sums[1, h] - sums[0, h] * sums[2, h]
        if len(key):  # the buffers still hold what belongs to it
            for h in range(heads):
                x = dst[i, h] + key_score[key[0], h]
                bend = 1 if x > 0 else slope
                y = exp((x if x > 0 else x * slope) - lse[i, h])
                key_weight[i, h] = y * scale[h, 0]
                key_flow[i, h] = bend * y * (flow[h, 0] * scale[h, 0] + extra[h, 0] - delta[i, h])


@jit(fastmath=REORDER)
def _sum_flows(sources, own, score, feat, slope, lse, grad_out, weight, flow, scale, extra, sums):
    """What the gradient of a row's score sums.

    That gradient is the sum of bend * weight * (flow - delta), with flow the gradient of each weight, bend the slope
    of the leaky ReLU, and delta the sum of weight * flow, which is known at the end only: the sums of weight * flow,
    bend * weight * flow and bend * weight give it in one pass.
    """
    zero, one = feat.dtype.type(0), feat.dtype.type(1)
    gather(sources, score, weight)
    dots(grad_out, feat, sources, flow)
    for h in range(len(own)):
        a = b = c = zero
        for e in range(weight.shape[1]):
            x = weight[h, e] + own[h]
            y, bend = exp((x if x > zero else x * slope) - lse[h]), one if x > zero else slope
            y, z = y if e < len(sources) else zero, flow[h, e] * scale[h, e] + extra[h, e]
            z = y * z if e < len(sources) else zero
            a += z
            b += bend * z
            c += bend * y
        sums[0, h] += a
        sums[1, h] += b
        sums[2, h] += c


@jit(parallel=True)
def _backward_src(
    bounds, indptr, indices, edge, feat, src, dst, slope, dropout, lse, grad_out, grad_attention, delta, grad_feat,
    grad_src,
):  # fmt: skip
    for block in prange(len(bounds) - 1):
        _backward_src_rows(
            bounds[block], bounds[block + 1], indptr, indices, edge, feat, src, dst, slope, dropout, lse, grad_out,
            grad_attention, delta, grad_feat, grad_src,
        )  # fmt: skip


@jit(fastmath=REORDER)
def _backward_src_rows(
    first, last, indptr, indices, edge, feat, src, dst, slope, dropout, lse, grad_out, grad_attention, delta,
    grad_feat, grad_src,
):  # fmt: skip
    """Gradients of the sources' features and scores, by rows of the transposed graph."""
    heads, zero, one = src.shape[1], feat.dtype.type(0), feat.dtype.type(1)
    weight, flow = np.empty((heads, CHUNK), feat.dtype), np.empty((heads, CHUNK), feat.dtype)
    shift, mean = np.empty((heads, CHUNK), feat.dtype), np.empty((heads, CHUNK), feat.dtype)
    scale, extra = np.ones((heads, CHUNK), feat.dtype), np.zeros((heads, CHUNK), feat.dtype)
    counter = np.empty((2, CHUNK), np.uint32)
    for j in range(first, last):
        grad_feat[j] = 0
        grad_src[j] = 0
        for start in range(indptr[j], indptr[j + 1], CHUNK):
            end = min(start + CHUNK, indptr[j + 1])
            rows, edges = indices[start:end], edge[start:end]
            keep(edges, dropout, counter, scale)
            if len(grad_attention):
                gather(edges, grad_attention, extra)
            gather(rows, dst, weight)
            gather(rows, lse, shift)
            gather(rows, delta, mean)
            dots(feat[j], grad_out, rows, flow)
            for h in range(heads):
                total = zero
                for e in range(weight.shape[1]):
                    x = weight[h, e] + src[j, h]
                    y, bend = exp((x if x > zero else x * slope) - shift[h, e]), one if x > zero else slope
                    z = bend * y * (flow[h, e] * scale[h, e] + extra[h, e] - mean[h, e])
                    weight[h, e] = y * scale[h, e]
                    total += z if e < len(rows) else zero
                grad_src[j, h] += total
            add_weighted(grad_feat[j], weight, grad_out, rows)
