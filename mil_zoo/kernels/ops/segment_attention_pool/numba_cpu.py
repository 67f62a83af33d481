"""Attention pooling as fused CPU kernels that read the values once forward and once backward.

Work is split into pieces of a bag, not into bags: one may hold a million instances and another one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.hashing import Dropout, kept_scale
from mil_zoo.kernels._numba.jit import array, array_or_empty, jit
from mil_zoo.kernels._numba.loops import exponentials
from mil_zoo.kernels._numba.segments import cut, segment_statistics, segment_weighted_sum
from mil_zoo.kernels._numba.storage import computed, stored, write_row
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels._numba.vectors import dots
from mil_zoo.kernels.memory import empty


class _Flows(NamedTuple):
    """What backward reads and writes.

    Attributes:
        attention: ``[N, K]``.
        values: ``[N, K or 1, F]``.
        grad_pooled: ``[B, K, F]``.
        grad_attention: ``[N, K]``, or of length 0.
        grad_weights: ``[N, K]``, written: gradients of the weights.
        grad_values: like ``values``, written; of length 0 if not wanted.
        sums: float64 ``[2, P, K]``, written: sums over each piece of (weight times its gradient, weight).
    """

    attention: np.ndarray
    values: np.ndarray
    grad_pooled: np.ndarray
    grad_attention: np.ndarray
    grad_weights: np.ndarray
    grad_values: np.ndarray
    sums: np.ndarray


def forward(scores, values, offsets, dropout_p, seed):
    """See ``segment_attention_pool``.

    Values and their gradients are read and written as they are, but float16, which is converted to float32 and back;
    scores and what is computed are float32 or float64.
    """
    scores_, values_ = scores.to(computed(scores)), stored(values)
    pooled, attention = _SegmentAttentionPool.apply(scores_, values_, offsets, dropout_p, seed)
    return pooled.to(scores.dtype), attention.to(scores.dtype)


class _SegmentAttentionPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, values, offsets, dropout_p, seed):
        scores_, pieces = array(scores), cut(offsets.numpy().astype(np.int64))
        dropout = Dropout.of(dropout_p, seed, scores_.dtype)
        top, total = segment_statistics(scores_, pieces)
        lse = top + np.log(total, out=np.full_like(total, np.inf), where=total != 0)
        starts, bag = pieces.starts, pieces.segment
        attention = np.empty_like(scores_)
        weight = np.empty_like(scores_) if dropout_p > 0 else attention
        bounds = blocks(starts, 16 * scores.shape[1])
        _attention(bounds, starts, (scores_, lse[bag]), dropout, (attention, weight))
        pooled = torch.from_numpy(segment_weighted_sum(weight, _by_head(values), pieces))
        attention = torch.from_numpy(attention)
        ctx.save_for_backward(values, attention)
        ctx.pieces, ctx.dropout = pieces, dropout
        ctx.set_materialize_grads(False)
        return pooled, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_pooled, grad_attention):
        values, attention = ctx.saved_tensors
        attention_, heads = array(attention), attention.shape[1]
        if grad_pooled is None:
            grad_pooled = attention.new_zeros(len(ctx.pieces.first) - 1, heads, values.shape[-1])
        starts, bag = ctx.pieces.starts, ctx.pieces.segment
        grad_weights = np.empty_like(attention_)
        # Of the shape of the values: autograd adds to a gradient in place where it is no view of another tensor.
        wanted = ctx.needs_input_grad[1]
        grad_values = empty(values, *values.shape) if wanted else None
        values_ = _by_head(values)
        flows = _Flows(
            attention=attention_,
            values=values_,
            grad_pooled=array(grad_pooled),
            grad_attention=array_or_empty(grad_attention, attention_, 0, heads),
            grad_weights=grad_weights,
            grad_values=_by_head(grad_values) if wanted else np.empty_like(values_, shape=(0, *values_.shape[1:])),
            sums=np.zeros((2, len(bag), heads)),
        )
        _backward(blocks(starts, heads * values.shape[-1]), starts, bag, ctx.dropout, flows)
        product, total = np.add.reduceat(flows.sums, ctx.pieces.first[:-1], axis=1)
        mean = product / (total + (total == 0))  # no attention where all scores are -inf, and no gradient
        _centre(blocks(starts, heads), starts, attention_, mean[bag], grad_weights)
        return torch.from_numpy(grad_weights), grad_values, None, None, None


def _by_head(values: Tensor) -> np.ndarray:
    """``[N, K or 1, F]``."""
    numbers = array(values)
    return numbers[:, None] if numbers.ndim == 2 else numbers


@jit(parallel=True)
def _attention(bounds, starts, inputs, dropout, outputs):
    scores, lse = inputs
    attention, weight = outputs
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            piece = slice(starts[p], starts[p + 1])
            _piece_attention(starts[p], (scores[piece], lse[p]), dropout, (attention[piece], weight[piece]))


@jit(allocates=True)
def _piece_attention(start, inputs, dropout, outputs):
    """Attention, and what dropout leaves of it; the two may be one array where nothing is dropped."""
    _weigh(inputs, outputs, _scale(start, len(inputs[0]), dropout, inputs[1]))


@jit()
def _weigh(inputs, outputs, scale):
    scores, lse = inputs
    attention, weight = outputs
    for n in range(len(scores)):
        for k in range(len(lse)):
            attention[n, k] = scores[n, k] - lse[k]
    exponentials(attention)
    for n in range(len(scores)):
        for k in range(len(lse)):
            weight[n, k] = attention[n, k] * scale[k, n]


@jit(allocates=True)
def _scale(start, count, dropout, heads):
    """``[H, count]``: what dropout multiplies the rows from ``start`` on by; ``heads`` is ``[H]``, of its dtype."""
    scale = np.ones((len(heads), count), heads.dtype)
    kept_scale(np.arange(start, start + count), dropout, np.empty((2, count), np.uint32), scale)
    return scale


@jit(parallel=True)
def _backward(bounds, starts, bag, dropout, flows):
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            _piece_backward(p, starts, bag[p], dropout, flows)


@jit(allocates=True)
def _piece_backward(p, starts, bag, dropout, flows):
    start, count = starts[p], starts[p + 1] - starts[p]
    flow = np.empty((flows.attention.shape[1], count), flows.attention.dtype)
    scale, rows = _scale(start, count, dropout, flows.attention[start]), np.arange(count).astype(np.int32)
    row = np.empty(flows.grad_pooled.shape[2], flows.attention.dtype)
    _flow_back(start, p, (flow, scale, rows, row), flows.grad_pooled[bag], flows)


@jit()
def _flow_back(start, p, room, grad_pooled, flows):
    """Writes the gradients of the piece's rows and its sums; ``room`` is (flow, dropout's scale, rows, row)."""
    flow, scale, rows, row = room
    (heads, width), count = grad_pooled.shape, len(rows)
    attention, sums = flows.attention[start : start + count], flows.sums[:, p]
    dots(grad_pooled, flows.values[start : start + count], rows, flow)
    for n in range(count):
        for k in range(heads):
            gradient = flow[k, n] * scale[k, n]
            if len(flows.grad_attention):
                gradient += flows.grad_attention[start + n, k]
            flows.grad_weights[start + n, k] = gradient
            sums[0, k] += np.float64(attention[n, k]) * np.float64(gradient)
            sums[1, k] += attention[n, k]
    if len(flows.grad_values) == 0:
        return
    for n in range(count):
        grad_values = flows.grad_values[start + n]
        if len(grad_values) == heads:
            for k in range(heads):
                write_row(grad_pooled[k], attention[n, k] * scale[k, n], grad_values[k])
        else:
            row[:] = 0
            for k in range(heads):
                weight = attention[n, k] * scale[k, n]
                for f in range(width):
                    row[f] += weight * grad_pooled[k, f]
            write_row(row, row.dtype.type(1), grad_values[0])


@jit(parallel=True)
def _centre(bounds, starts, attention, mean, gradient):
    """Gradients of weights to those of scores, ``a (g - mean)``, in place; ``mean`` is that of each piece's bag.

    The mean is that of the very gradients it is taken from: where these hardly differ within a bag, as its attention
    goes flat, one computed by another way would leave its rounding in every score.
    """
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            for n in range(starts[p], starts[p + 1]):
                for k in range(attention.shape[1]):
                    gradient[n, k] = attention[n, k] * (gradient[n, k] - mean[p, k])
