"""Dot-product graph attention as fused CPU kernels: one pass over the rows forward, two backward.

As in ``graph_attention``: backward makes the weights again from the log-sum-exp of every row, and every number is
summed by one thread in a fixed order. The mean of a row's gradients under its weights is ``<grad_out, out>``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.attention import Edges, Numbers, finish_row, numbers_of, raise_top, softmax_of, start_row
from mil_zoo.kernels._numba.gathers import gather
from mil_zoo.kernels._numba.hashing import Dropout, kept_scale
from mil_zoo.kernels._numba.jit import array, array_or_empty, jit
from mil_zoo.kernels._numba.loops import CHUNK, exp, number
from mil_zoo.kernels._numba.segments import cut, segment_weighted_sum
from mil_zoo.kernels._numba.storage import computed, rounded, stored, widen, widened, write_row
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels._numba.vectors import add_weighted, dots
from mil_zoo.kernels.memory import empty


class _Inputs(NamedTuple):
    """What all kernels read; a bias that is not there has length 0.

    Attributes:
        q: ``[Nd, H, F]``.
        k: ``[Ns, H, F]``.
        v: ``[Ns, H, Fv]``.
        bias: ``[E, H]``.
        lse: ``[Nd, H]``, the log-sum-exp of each row; forward writes it.
        scale: what products are multiplied by.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    bias: np.ndarray
    lse: np.ndarray
    scale: np.floating


class _Flows(NamedTuple):
    """What both backward kernels read, and the two gradients that each of them writes.

    Attributes:
        grad_out: ``[Nd, H, Fv]``.
        grad_attention: ``[E, H]``, or of length 0.
        delta: ``[Nd, H]``, the mean of a row's gradients under its weights.
        first: the gradient of q by destination, that of k by source.
        second: the gradient of the bias ``[E, H]`` (length 0 where there is none), that of v by source.
    """

    grad_out: np.ndarray
    grad_attention: np.ndarray
    delta: np.ndarray
    first: np.ndarray
    second: np.ndarray


class _Room(NamedTuple):
    """Room for backward.

    Attributes:
        first: ``[2, H, F]``, a row of q or k, and its gradient.
        second: ``[2, H, Fv]``, the same of v; by destination the first is of the gradient of the output.
        weight, flow, kept, extra, shift, mean: ``[H, CHUNK]`` each, of the sources at hand.
        numbers: for dropout.
    """

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    flow: np.ndarray
    kept: np.ndarray
    extra: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    numbers: Numbers


def forward(q, k, v, graph, scale, bias, dropout_p, seed, return_attention):
    """See ``graph_dot_attention``.

    Tensors are read and their gradients written as they are, but float16, which is converted to float32 and back; what
    is computed, and kept for backward, is float32 or float64.
    """
    tensors = (None if t is None else stored(t) for t in (q, k, v, bias))
    out, attention = _GraphDotAttention.apply(*tensors, (graph, scale, dropout_p, seed), return_attention)
    return out.to(q.dtype), None if attention is None else attention.to(q.dtype)


class _GraphDotAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, settings, return_attention):
        graph, heads = settings[0], q.shape[1]
        lse = q.new_empty(len(q), heads, dtype=computed(q))
        out = empty(lse, len(q), heads, v.shape[2])
        attention = lse.new_empty(graph.num_edges, heads) if return_attention else None
        inputs, dropout = _arrays(q, k, v, bias, lse, settings)
        edges, outputs = Edges.of(graph), (out.numpy(), array_or_empty(attention, inputs.lse, 0, heads))
        _forward(blocks(edges.indptr, heads * (q.shape[2] + v.shape[2])), edges, inputs, dropout, outputs)
        ctx.save_for_backward(q, k, v, bias, lse, out, attention)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return out.to(q.dtype), attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_attention):
        q, k, v, bias, lse, out, attention = ctx.saved_tensors
        graph, heads = ctx.settings[0], q.shape[1]
        if grad_out is None:
            grad_out = q.new_zeros(out.shape)
        delta = array((grad_out * out).sum(2))
        if grad_attention is not None:
            product = array((attention * grad_attention)[:, :, None])
            ones, rows = np.ones((graph.num_edges, heads), delta.dtype), graph.indptr.numpy().astype(np.int64)
            delta = delta + segment_weighted_sum(ones, product, cut(rows))[:, :, 0]
        grads = [None if t is None else empty(t, *t.shape) for t in (q, k, v, bias)]
        grad_q, grad_k, grad_v, grad_bias = (array_or_empty(grad, delta, 0, heads) for grad in grads)
        inputs, dropout = _arrays(q, k, v, bias, lse, ctx.settings)
        cost, edges, back = 2 * heads * (q.shape[2] + v.shape[2]), Edges.of(graph), Edges.of(graph.transposed)
        flows = _Flows(array(grad_out), array_or_empty(grad_attention, delta, 0, heads), delta, grad_q, grad_bias)
        _backward_dst(blocks(edges.indptr, cost), edges, inputs, dropout, flows)
        flows = flows._replace(first=grad_k, second=grad_v)
        _backward_src(blocks(back.indptr, cost), back, inputs, dropout, flows)
        return *grads, None, None


def _arrays(q, k, v, bias, lse, settings):
    _, scale, dropout_p, seed = settings
    lse_ = array(lse)
    tensors = array(q), array(k), array(v), array_or_empty(bias, lse_, 0, q.shape[1]), lse_
    return _Inputs(*tensors, scale=lse_.dtype.type(scale)), Dropout.of(dropout_p, seed, lse_.dtype)


@jit(parallel=True)
def _forward(bounds, edges, inputs, dropout, outputs):
    for block in prange(len(bounds) - 1):
        softmax = softmax_of(inputs.v.shape[1], inputs.v.shape[2], inputs.lse)
        own = np.empty((inputs.q.shape[1], inputs.q.shape[2]), inputs.lse.dtype)
        _forward_rows(bounds[block : block + 2], edges, inputs, dropout, outputs, softmax, own)


@jit()
def _forward_rows(rows, edges, inputs, dropout, outputs, softmax, own):
    q, v, lse, indptr, (all_out, attention) = inputs.q, inputs.v, inputs.lse, edges.indptr, outputs
    heads, zero, lowest = q.shape[1], lse.dtype.type(0), np.finfo(lse.dtype).min
    weight, kept, (positions, counter) = softmax.weight, softmax.scale, softmax.numbers
    for i in range(rows[0], rows[1]):
        start_row(softmax)
        widen(q[i], own)
        for start in range(indptr[i], indptr[i + 1], CHUNK):
            sources = edges.others[start : min(start + CHUNK, indptr[i + 1])]
            number(start, positions)
            kept_scale(positions, dropout, counter, kept)
            _score(own, start, sources, inputs, weight)
            for h in range(heads):
                weight[h, len(sources) :] = lowest
                new, part = raise_top(h, softmax), zero
                for e in range(len(sources)):
                    y = exp(weight[h, e] - new)
                    part += y
                    weight[h, e] = y * kept[h, e]
                softmax.total[h] += part
            add_weighted(softmax.sums, weight, v, sources)
        finish_row(softmax, lse[i], all_out[i])
        if len(attention):
            for start in range(indptr[i], indptr[i + 1], CHUNK):
                sources = edges.others[start : min(start + CHUNK, indptr[i + 1])]
                _score(own, start, sources, inputs, weight)
                for e in range(len(sources)):
                    for h in range(heads):
                        attention[start + e, h] = exp(weight[h, e] - lse[i, h])


@jit()
def _score(own, start, sources, inputs, result):
    """``result[h, e] = scale * <own[h], k[sources[e], h]> + bias[start + e, h]``."""
    dots(own, inputs.k, sources, result)
    for h in range(len(own)):
        for e in range(len(sources)):
            result[h, e] *= inputs.scale
            if len(inputs.bias):
                result[h, e] += widened(inputs.bias[start + e, h])


@jit(parallel=True)
def _backward_dst(bounds, edges, inputs, dropout, flows):
    for block in prange(len(bounds) - 1):
        room = _room(inputs.q.shape, inputs.v.shape, inputs.lse)
        _backward_dst_rows(bounds[block : block + 2], edges, inputs, dropout, flows, room)


@jit(allocates=True)
def _room(first, second, like):
    shape = first[1], CHUNK
    return _Room(
        first=np.empty((2, first[1], first[2]), like.dtype),
        second=np.empty((2, second[1], second[2]), like.dtype),
        weight=np.zeros(shape, like.dtype),
        flow=np.zeros(shape, like.dtype),
        kept=np.ones(shape, like.dtype),
        extra=np.zeros(shape, like.dtype),
        shift=np.zeros(shape, like.dtype),
        mean=np.zeros(shape, like.dtype),
        numbers=numbers_of(),
    )


@jit()
def _backward_dst_rows(rows, edges, inputs, dropout, flows, room):
    """Gradients of the queries and the bias."""
    q, indptr, lse, delta, grad_bias = inputs.q, edges.indptr, inputs.lse, flows.delta, flows.second
    heads, weight, flow, kept, extra = q.shape[1], room.weight, room.flow, room.kept, room.extra
    own, grad_q, grad_out, (positions, counter) = room.first[0], room.first[1], room.second[0], room.numbers
    for i in range(rows[0], rows[1]):
        widen(q[i], own)
        widen(flows.grad_out[i], grad_out)
        grad_q[:] = 0
        for start in range(indptr[i], indptr[i + 1], CHUNK):
            sources = edges.others[start : min(start + CHUNK, indptr[i + 1])]
            number(start, positions)
            kept_scale(positions, dropout, counter, kept)
            if len(flows.grad_attention):
                gather(positions[: len(sources)], flows.grad_attention, extra)
            _score(own, start, sources, inputs, weight)
            dots(grad_out, inputs.v, sources, flow)
            for h in range(heads):
                for e in range(len(sources)):
                    slope = exp(weight[h, e] - lse[i, h]) * (flow[h, e] * kept[h, e] + extra[h, e] - delta[i, h])
                    weight[h, e] = slope * inputs.scale
                    if len(grad_bias):
                        grad_bias[start + e, h] = rounded(slope, grad_bias)
            add_weighted(grad_q, weight, inputs.k, sources)
        _write(grad_q, flows.first[i])


@jit(inline=True)
def _write(rows, result):
    for h in range(len(rows)):
        write_row(rows[h], rows.dtype.type(1), result[h])


@jit(parallel=True)
def _backward_src(bounds, edges, inputs, dropout, flows):
    for block in prange(len(bounds) - 1):
        room = _room(inputs.q.shape, inputs.v.shape, inputs.lse)
        _backward_src_rows(bounds[block : block + 2], edges, inputs, dropout, flows, room)


@jit()
def _backward_src_rows(rows, edges, inputs, dropout, flows, room):
    """Gradients of the keys and values, by rows of the transposed graph."""
    q, k, v, scale, bias, indptr = inputs.q, inputs.k, inputs.v, inputs.scale, inputs.bias, edges.indptr
    heads, weight, flow, kept, extra = q.shape[1], room.weight, room.flow, room.kept, room.extra
    shift, mean, counter = room.shift, room.mean, room.numbers.counter
    own_k, grad_k, own_v, grad_v = room.first[0], room.first[1], room.second[0], room.second[1]
    for j in range(rows[0], rows[1]):
        widen(k[j], own_k)
        widen(v[j], own_v)
        grad_k[:] = 0
        grad_v[:] = 0
        for start in range(indptr[j], indptr[j + 1], CHUNK):
            end = min(start + CHUNK, indptr[j + 1])
            others, positions = edges.others[start:end], edges.positions[start:end]
            kept_scale(positions, dropout, counter, kept)
            if len(flows.grad_attention):
                gather(positions, flows.grad_attention, extra)
            gather(others, inputs.lse, shift)
            gather(others, flows.delta, mean)
            dots(own_k, q, others, weight)
            dots(own_v, flows.grad_out, others, flow)
            for h in range(heads):
                for e in range(len(others)):
                    x = weight[h, e] * scale
                    if len(bias):
                        x += widened(bias[positions[e], h])
                    y = exp(x - shift[h, e])
                    weight[h, e] = scale * y * (flow[h, e] * kept[h, e] + extra[h, e] - mean[h, e])
                    flow[h, e] = y * kept[h, e]
            add_weighted(grad_k, weight, q, others)
            add_weighted(grad_v, flow, flows.grad_out, others)
        _write(grad_k, flows.first[j])
        _write(grad_v, flows.second[j])
