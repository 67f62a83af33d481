"""Attention pooling as Triton kernels that read the values once forward and once backward.

Work is split into pieces of a bag, not into bags: one may hold a million instances and another one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.segments import BLOCKS, INTERPRETED_BLOCKS, WIDEST, Pieces, segment_logsumexp, segment_sum
from mil_zoo.kernels._triton.tools import Dropout, block, float32, keep, tuned


def forward(scores, values, offsets, dropout_p, seed):
    """See ``segment_attention_pool``."""
    shaped = values[:, None] if values.ndim == 2 else values
    return _SegmentAttentionPool.apply(scores, shaped, Pieces.of(offsets, len(scores)), Dropout.of(dropout_p, seed))


class _SegmentAttentionPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, values, pieces, dropout):
        scores, values = scores.contiguous(), values.contiguous()
        lse = segment_logsumexp(scores, pieces)
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # weight 0 where no score is finite
        attention = float32(scores, *scores.shape)
        weight = torch.empty_like(attention) if dropout.threshold else attention
        columns = block(scores.shape[1], WIDEST)
        _weights[len(pieces.segment), triton.cdiv(scores.shape[1], columns)](
            pieces.starts, pieces.segment, scores, lse, *dropout, attention, weight,
            DROPOUT=dropout.threshold != 0, K=scores.shape[1], BLOCK_F=columns,
        )  # fmt: skip
        pooled = segment_sum(values, pieces, weight)
        ctx.save_for_backward(values, attention)
        ctx.pieces, ctx.dropout = pieces, dropout
        ctx.set_materialize_grads(False)
        return pooled.to(values.dtype), attention.to(values.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_pooled, grad_attention):
        values, attention = ctx.saved_tensors
        pieces, dropout, heads = ctx.pieces, ctx.dropout, attention.shape[1]
        if grad_pooled is None:
            grad_pooled = values.new_zeros(len(pieces.first) - 1, heads, values.shape[2])
        if grad_attention is not None:
            grad_attention = grad_attention.contiguous()
        flow = torch.empty_like(attention)
        grad_values = torch.empty_like(values) if ctx.needs_input_grad[1] else None
        _backward[len(pieces.segment),](
            pieces.starts, pieces.segment, attention, values, *dropout, grad_pooled.contiguous(), grad_attention, flow,
            grad_values,
            DROPOUT=dropout.threshold != 0, K=heads, KV=values.shape[1], F=values.shape[2],
            BLOCK_F=block(values.shape[2], WIDEST),
        )  # fmt: skip
        # The mean is that of the very gradients it is taken from: where these hardly differ within a bag, as its
        # attention goes flat, one computed by another way would leave its rounding in every score.
        total = segment_sum(attention[:, :, None], pieces)
        mean = segment_sum(flow[:, :, None], pieces, attention) / (total + (total == 0))
        rows = torch.arange(len(values), device=values.device)
        bag = pieces.segment[torch.searchsorted(pieces.starts[:-1], rows, right=True) - 1]
        return (attention * (flow - mean[bag, :, 0])).to(values.dtype), grad_values, None, None


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _weights(
    starts, segment, scores, lse, threshold, low, high, kept, attention, weight, DROPOUT: tl.constexpr,
    K: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention, and what dropout leaves of it."""
    p = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start, end = tl.load(starts + p), tl.load(starts + p + 1)
    shift = tl.load(lse + tl.load(segment + p) * K + column, column < K, 0.0)
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (column < K)[None, :]
        place = (n * K)[:, None] + column[None, :]
        x = tl.exp(tl.load(scores + place, mask, 0.0).to(tl.float32) - shift[None, :])
        tl.store(attention + place, x, mask)
        if DROPOUT:
            tl.store(weight + place, x * keep(place, threshold, low, high, kept), mask)
        start += BLOCK_N


@tuned(("K", "KV", "BLOCK_F"), BLOCKS, INTERPRETED_BLOCKS)
def _backward(
    starts, segment, attention, values, threshold, low, high, kept, grad_pooled, grad_attention, flow, grad_values,
    DROPOUT: tl.constexpr, K: tl.constexpr, KV: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights before dropout, and of the values where they are wanted."""
    p = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts + p), tl.load(starts + p + 1)
    grad = grad_pooled + tl.load(segment + p) * K * F
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        there = n < end
        for k in range(K):
            total = tl.zeros([BLOCK_N], tl.float32)
            for f0 in range(0, F, BLOCK_F):
                column = f0 + tl.arange(0, BLOCK_F)
                mask = there[:, None] & (column < F)[None, :]
                g = tl.load(grad + k * F + column, column < F, 0.0).to(tl.float32)
                place = ((n * KV + k % KV) * F)[:, None] + column[None, :]
                total += tl.sum(tl.load(values + place, mask, 0.0).to(tl.float32) * g[None, :], 1)
            if DROPOUT:
                total *= keep(n * K + k, threshold, low, high, kept)
            if grad_attention is not None:
                total += tl.load(grad_attention + n * K + k, there, 0.0).to(tl.float32)
            tl.store(flow + n * K + k, total, there)
        if grad_values is not None:
            for head in range(KV):
                for f0 in range(0, F, BLOCK_F):
                    column = f0 + tl.arange(0, BLOCK_F)
                    mask = there[:, None] & (column < F)[None, :]
                    tile = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
                    for k in range(head, K, KV):  # all of them where they share the values
                        weight = tl.load(attention + n * K + k, there, 0.0)
                        if DROPOUT:
                            weight *= keep(n * K + k, threshold, low, high, kept)
                        g = tl.load(grad + k * F + column, column < F, 0.0).to(tl.float32)
                        tile += weight[:, None] * g[None, :]
                    place = ((n * KV + head) * F)[:, None] + column[None, :]
                    tl.store(grad_values + place, tile.to(grad_values.dtype.element_ty), mask)
        start += BLOCK_N
