"""Dot-product graph attention as fused CPU kernels: one pass over the rows forward, two backward.

As in ``graph_attention``: backward makes the weights again from the log-sum-exp of every row, and every number is
summed by one thread in a fixed order. The mean of a row's gradients under its weights is ``<grad_out, out>``.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.dropout import dropout_key, keep
from mil_zoo.kernels._numba.segments import segment_weighted_sum
from mil_zoo.kernels._numba.tools import (
    CHUNK,
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


def forward(q, k, v, graph, scale, bias, dropout_p, seed, return_attention):
    """See ``graph_dot_attention``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    tensors = (None if t is None else t.to(dtype) for t in (q, k, v, bias))
    out, attention = _GraphDotAttention.apply(*tensors, (graph, scale, dropout_p, seed), return_attention)
    return out.to(q.dtype), None if attention is None else attention.to(q.dtype)


class _GraphDotAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, settings, return_attention):
        graph, heads = settings[0], q.shape[1]
        out, lse = q.new_empty(len(q), heads, v.shape[2]), q.new_empty(len(q), heads)
        attention = q.new_empty(graph.num_edges, heads) if return_attention else None
        arrays = _arrays(q, k, v, bias, lse, settings)
        _forward(
            blocks(graph.indptr, heads * (q.shape[2] + v.shape[2])), graph.indptr.numpy(), graph.indices.numpy(),
            *arrays, out.numpy(), array(attention, q, 0, heads),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, bias, lse, out, attention)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return out, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_attention):
        q, k, v, bias, lse, out, attention = ctx.saved_tensors
        graph, heads = ctx.settings[0], q.shape[1]
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        delta = array((grad_out * out).sum(2), q)
        if grad_attention is not None:
            product = array((attention * grad_attention)[:, :, None], q)
            ones, rows = np.ones((graph.num_edges, heads), delta.dtype), graph.indptr.numpy().astype(np.int64)
            delta = delta + segment_weighted_sum(ones, product, rows)[:, :, 0]
        grads = [None if t is None else torch.empty_like(t) for t in (q, k, v, bias)]
        arrays = _arrays(q, k, v, bias, lse, ctx.settings)
        flows = array(grad_out, q), array(grad_attention, q, 0, heads), delta
        cost, back = 2 * heads * (q.shape[2] + v.shape[2]), graph.transposed
        _backward_dst(
            blocks(graph.indptr, cost), graph.indptr.numpy(), graph.indices.numpy(), *arrays, *flows,
            grads[0].numpy(), array(grads[3], q, 0, heads),
        )  # fmt: skip
        _backward_src(
            blocks(back.indptr, cost), back.indptr.numpy(), back.indices.numpy(), back.edge.numpy(), *arrays, *flows,
            grads[1].numpy(), grads[2].numpy(),
        )  # fmt: skip
        return *grads, None, None


def _arrays(q, k, v, bias, lse, settings):
    """The inputs that all kernels share; a bias that is not there has length 0."""
    _, scale, dropout_p, seed = settings
    tensors = array(q, q), array(k, q), array(v, q), array(bias, q, 0, q.shape[1]), array(lse, q)
    return *tensors, tensors[0].dtype.type(scale), dropout_key(dropout_p, seed, tensors[0].dtype)


@jit(parallel=True)
def _forward(bounds, indptr, indices, q, k, v, bias, lse, scale, dropout, out, attention):
    for block in prange(len(bounds) - 1):
        _forward_rows(
            bounds[block], bounds[block + 1], indptr, indices, q, k, v, bias, lse, scale, dropout, out, attention
        )


@jit()
def _forward_rows(first, last, indptr, indices, q, k, v, bias, lse, scale, dropout, out, attention):
    heads, zero, lowest = q.shape[1], q.dtype.type(0), np.finfo(q.dtype).min  # not -inf: see top
    weight, kept, scratch = (
        np.zeros((heads, CHUNK), q.dtype),
        np.ones((heads, CHUNK), q.dtype),
        np.empty(CHUNK, q.dtype),
    )
    edges, counter = np.empty(CHUNK, np.int64), np.empty((2, CHUNK), np.uint32)
    top, total = np.empty(heads, q.dtype), np.empty(heads, np.float64)
    for i in range(first, last):
        out[i] = 0
        total[:] = 0
        top[:] = np.finfo(q.dtype).min  # and not -inf, for differences of two -inf are NaN
        for start in range(indptr[i], indptr[i + 1], CHUNK):
            sources = indices[start : min(start + CHUNK, indptr[i + 1])]
            number(start, edges)
            keep(edges, dropout, counter, kept)
            _score(q[i], k, sources, start, bias, scale, weight)
            for h in range(heads):
                weight[h, len(sources) :] = lowest
                new = max(top[h], largest(weight[h], scratch))
                if new > top[h]:
                    shrink = exp(top[h] - new)
                    top[h] = new
                    total[h] *= shrink
                    multiply(out[i, h], shrink)
                part = zero
                for e in range(len(sources)):
                    y = exp(weight[h, e] - new)
                    part += y
                    weight[h, e] = y * kept[h, e]
                total[h] += part
            add_weighted(out[i], weight, v, sources)
        for h in range(heads):
            some = total[h] != 0
            lse[i, h] = top[h] + np.log(total[h]) if some else np.inf
            multiply(out[i, h], q.dtype.type(1 / total[h] if some else 0))
        if len(attention):
            for start in range(indptr[i], indptr[i + 1], CHUNK):
                sources = indices[start : min(start + CHUNK, indptr[i + 1])]
                _score(q[i], k, sources, start, bias, scale, weight)
                for e in range(len(sources)):
                    for h in range(heads):
                        attention[start + e, h] = exp(weight[h, e] - lse[i, h])


@jit()
def _score(own, table, others, start, bias, scale, result):
    """``result[h, e] = scale * <own[h], table[others[e], h]> + bias[start + e, h]``."""
    dots(own, table, others, result)
    for h in range(len(own)):
        for e in range(len(others)):
            result[h, e] *= scale
            if len(bias):
                result[h, e] += bias[start + e, h]


@jit(parallel=True)
def _backward_dst(
    bounds, indptr, indices, q, k, v, bias, lse, scale, dropout, grad_out, grad_attention, delta, grad_q, grad_bias
):  # fmt: skip
    for block in prange(len(bounds) - 1):
        _backward_dst_rows(
            bounds[block], bounds[block + 1], indptr, indices, q, k, v, bias, lse, scale, dropout, grad_out,
            grad_attention, delta, grad_q, grad_bias,
        )  # fmt: skip


@jit()
def _backward_dst_rows(
    first, last, indptr, indices, q, k, v, bias, lse, scale, dropout, grad_out, grad_attention, delta, grad_q,
    grad_bias,
):  # fmt: skip
    """Gradients of the queries and the bias."""
    heads = q.shape[1]
    weight, flow = np.zeros((heads, CHUNK), q.dtype), np.zeros((heads, CHUNK), q.dtype)
    kept, extra = np.ones((heads, CHUNK), q.dtype), np.zeros((heads, CHUNK), q.dtype)
    edges, counter = np.empty(CHUNK, np.int64), np.empty((2, CHUNK), np.uint32)
    for i in range(first, last):
        grad_q[i] = 0
        for start in range(indptr[i], indptr[i + 1], CHUNK):
            sources = indices[start : min(start + CHUNK, indptr[i + 1])]
            number(start, edges)
            keep(edges, dropout, counter, kept)
            if len(grad_attention):
                gather(edges[: len(sources)], grad_attention, extra)
            _score(q[i], k, sources, start, bias, scale, weight)
            dots(grad_out[i], v, sources, flow)
            for h in range(heads):
                for e in range(len(sources)):
                    slope = exp(weight[h, e] - lse[i, h]) * (flow[h, e] * kept[h, e] + extra[h, e] - delta[i, h])
                    weight[h, e] = slope * scale
                    if len(grad_bias):
                        grad_bias[start + e, h] = slope
            add_weighted(grad_q[i], weight, k, sources)


@jit(parallel=True)
def _backward_src(
    bounds, indptr, indices, edge, q, k, v, bias, lse, scale, dropout, grad_out, grad_attention, delta, grad_k, grad_v
):  # fmt: skip
    for block in prange(len(bounds) - 1):
        _backward_src_rows(
            bounds[block], bounds[block + 1], indptr, indices, edge, q, k, v, bias, lse, scale, dropout, grad_out,
            grad_attention, delta, grad_k, grad_v,
        )  # fmt: skip


@jit()
def _backward_src_rows(
    first, last, indptr, indices, edge, q, k, v, bias, lse, scale, dropout, grad_out, grad_attention, delta, grad_k,
    grad_v,
):  # fmt: skip
    """Gradients of the keys and values, by rows of the transposed graph."""
    heads = q.shape[1]
    weight, flow = np.zeros((heads, CHUNK), q.dtype), np.zeros((heads, CHUNK), q.dtype)
    shift, mean = np.zeros((heads, CHUNK), q.dtype), np.zeros((heads, CHUNK), q.dtype)
    kept, extra = np.ones((heads, CHUNK), q.dtype), np.zeros((heads, CHUNK), q.dtype)
    counter = np.empty((2, CHUNK), np.uint32)
    for j in range(first, last):
        grad_k[j] = 0
        grad_v[j] = 0
        for start in range(indptr[j], indptr[j + 1], CHUNK):
            end = min(start + CHUNK, indptr[j + 1])
            rows, edges = indices[start:end], edge[start:end]
            keep(edges, dropout, counter, kept)
            if len(grad_attention):
                gather(edges, grad_attention, extra)
            gather(rows, lse, shift)
            gather(rows, delta, mean)
            dots(k[j], q, rows, weight)
            dots(v[j], grad_out, rows, flow)
            for h in range(heads):
                for e in range(len(rows)):
                    x = weight[h, e] * scale
                    if len(bias):
                        x += bias[edges[e], h]
                    y = exp(x - shift[h, e])
                    weight[h, e] = scale * y * (flow[h, e] * kept[h, e] + extra[h, e] - mean[h, e])
                    flow[h, e] = y * kept[h, e]
            add_weighted(grad_k[j], weight, q, rows)
            add_weighted(grad_v[j], flow, grad_out, rows)
