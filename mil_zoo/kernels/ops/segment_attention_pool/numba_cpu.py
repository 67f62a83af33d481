"""Attention pooling as fused CPU kernels that read the values once forward and once backward.

Work is split into pieces of a bag, not into bags: one may hold a million instances and another one.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.dropout import dropout_key, keep
from mil_zoo.kernels._numba.segments import pieces, segment_statistics, segment_weighted_sum
from mil_zoo.kernels._numba.tools import array, blocks, exponentials, jit
from mil_zoo.kernels._numba.vectors import dots


def forward(scores, values, offsets, dropout_p, seed):
    """See ``segment_attention_pool``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    shaped = values[:, None] if values.ndim == 2 else values
    pooled, attention = _SegmentAttentionPool.apply(scores.to(dtype), shaped.to(dtype), offsets, dropout_p, seed)
    return pooled.to(scores.dtype), attention.to(scores.dtype)


class _SegmentAttentionPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, values, offsets, dropout_p, seed):
        scores_, offsets_ = array(scores, scores), offsets.numpy().astype(np.int64)
        dropout = dropout_key(dropout_p, seed, scores_.dtype)
        top, total = segment_statistics(scores_, offsets_)
        lse = top + np.log(total, out=np.full_like(total, np.inf), where=total != 0)
        starts, first = pieces(offsets_)
        bag = np.repeat(np.arange(len(offsets) - 1), np.diff(first))  # of each piece
        attention = np.empty_like(scores_)
        weight = np.empty_like(scores_) if dropout_p > 0 else attention
        bounds = blocks(starts, 16 * scores.shape[1])
        _attention(bounds, starts, scores_, lse[bag], dropout, attention, weight)
        pooled = torch.from_numpy(segment_weighted_sum(weight, array(values, values), offsets_))
        attention = torch.from_numpy(attention)
        ctx.save_for_backward(values, attention)
        ctx.offsets, ctx.dropout = offsets_, dropout
        ctx.set_materialize_grads(False)
        return pooled, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_pooled, grad_attention):
        values, attention = ctx.saved_tensors
        attention_, heads = array(attention, attention), attention.shape[1]
        if grad_pooled is None:
            grad_pooled = values.new_zeros(len(ctx.offsets) - 1, heads, values.shape[2])
        starts, first = pieces(ctx.offsets)
        bag = np.repeat(np.arange(len(ctx.offsets) - 1), np.diff(first))
        grad_weights = np.empty_like(attention_)
        grad_values = torch.empty_like(values) if ctx.needs_input_grad[1] else None
        grad_values_ = array(grad_values, values, 0, *values.shape[1:])
        sums = np.zeros((2, len(bag), heads))
        _backward(
            blocks(starts, heads * values.shape[2]), starts, bag, attention_, array(values, values),
            array(grad_pooled, attention), array(grad_attention, attention, 0, heads), ctx.dropout, grad_weights,
            grad_values_, sums,
        )  # fmt: skip
        product, total = np.add.reduceat(sums, first[:-1], axis=1)
        _centre(blocks(starts, heads), starts, bag, attention_, product / total, grad_weights)
        return torch.from_numpy(grad_weights), grad_values, None, None, None


@jit(parallel=True)
def _attention(bounds, starts, scores, lse, dropout, attention, weight):
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            _piece_attention(starts[p], starts[p + 1], scores, lse[p], dropout, attention, weight)


@jit()
def _piece_attention(start, end, scores, lse, dropout, attention, weight):
    """Attention, and what dropout leaves of it; the two may be one array where nothing is dropped."""
    heads, rows = len(lse), np.arange(start, end)
    scale = np.ones((heads, len(rows)), scores.dtype)
    keep(rows, dropout, np.empty((2, len(rows)), np.uint32), scale)
    for n in range(start, end):
        for k in range(heads):
            attention[n, k] = scores[n, k] - lse[k]
    exponentials(attention[start:end])
    for n in range(start, end):
        for k in range(heads):
            weight[n, k] = attention[n, k] * scale[k, n - start]


@jit(parallel=True)
def _backward(
    bounds, starts, bag, attention, values, grad_pooled, grad_attention, dropout, grad_weights, grad_values, sums
):  # fmt: skip
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            _piece_backward(
                starts[p], starts[p + 1], attention, values, grad_pooled[bag[p]], grad_attention, dropout,
                grad_weights, grad_values, sums[:, p],
            )  # fmt: skip


@jit()
def _piece_backward(
    start, end, attention, values, grad_pooled, grad_attention, dropout, grad_weights, grad_values, sums
):  # fmt: skip
    """Gradients of the weights and values, and in float64 ``sums`` of (weight times its gradient, weight)."""
    heads, width = grad_pooled.shape
    rows = np.arange(start, end)
    flow, scale = np.empty((heads, len(rows)), attention.dtype), np.ones((heads, len(rows)), attention.dtype)
    keep(rows, dropout, np.empty((2, len(rows)), np.uint32), scale)
    dots(grad_pooled, values[start:end], np.arange(len(rows)).astype(np.int32), flow)
    for n in range(start, end):
        for k in range(heads):
            gradient = flow[k, n - start] * scale[k, n - start]
            if len(grad_attention):
                gradient += grad_attention[n, k]
            grad_weights[n, k] = gradient
            sums[0, k] += np.float64(attention[n, k]) * np.float64(gradient)
            sums[1, k] += attention[n, k]
    if len(grad_values) == 0:
        return
    for n in range(start, end):
        grad_values[n] = 0
        for k in range(heads):
            weight, t = attention[n, k] * scale[k, n - start], 0 if grad_values.shape[1] == 1 else k
            for f in range(width):
                grad_values[n, t, f] += weight * grad_pooled[k, f]


@jit(parallel=True)
def _centre(bounds, starts, bag, attention, mean, gradient):
    """Gradients of weights to those of scores, ``a (g - mean)``, in place.

    The mean is that of the very gradients it is taken from: where these hardly differ within a bag, as its attention
    goes flat, one computed by another way would leave its rounding in every score.
    """
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            for n in range(starts[p], starts[p + 1]):
                for k in range(attention.shape[1]):
                    gradient[n, k] = attention[n, k] * (gradient[n, k] - mean[bag[p], k])
