"""Attention pooling as Triton kernels that read the values once forward and once backward.

Work is split into pieces of a bag, not into bags: one may hold a million instances and another one. Forward pools the
pieces, joins those of a bag, and writes the attention; backward makes the attention again from the log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.segments import (
    BLOCKS,
    INTERPRETED_BLOCKS,
    PIECE,
    WIDEST,
    Pieces,
    logsumexp_of_columns,
    range_sum,
)
from mil_zoo.kernels._triton.tools import LOWEST, Dropout, block, float32, kept_scale, tuned

PARTS = 4  # of a piece, one program each backward, which reads all columns of its rows


def forward(scores, values, offsets, dropout_p, seed):
    """See ``segment_attention_pool``."""
    shaped = values[:, None] if values.ndim == 2 else values
    return _SegmentAttentionPool.apply(scores, shaped, offsets, Dropout.of(dropout_p, seed))


class _SegmentAttentionPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, values, offsets, dropout):
        scores, values, pieces = scores.contiguous(), values.contiguous(), Pieces.of(offsets, len(scores))
        (_, heads), (_, value_heads, width) = scores.shape, values.shape
        bags, count, columns = len(offsets) - 1, len(pieces.segment), block(width, WIDEST)
        part, part_lse = float32(values, count, heads, width), float32(values, count, heads)
        shape = {"K": heads, "F": width, "BLOCK_F": columns}
        _pool[count, heads, triton.cdiv(width, columns)](
            starts=pieces.starts,
            scores=scores,
            values=values,
            **dropout._asdict(),
            part=part,
            part_lse=part_lse,
            DROPOUT=dropout.threshold != 0,
            KV=value_heads,
            **shape,
        )
        pooled, lse = values.new_empty(bags, heads, width), float32(values, bags, heads)
        _join[bags, heads, triton.cdiv(width, columns)](
            first_piece=pieces.first, part=part, part_lse=part_lse, pooled=pooled, lse=lse, **shape
        )
        attention, columns = values.new_empty(scores.shape), block(heads, WIDEST)
        _weights[count, triton.cdiv(heads, columns)](
            starts=pieces.starts,
            segment=pieces.segment,
            scores=scores,
            lse=lse,
            attention=attention,
            K=heads,
            BLOCK_F=columns,
        )
        ctx.save_for_backward(scores, values, lse)
        ctx.pieces, ctx.dropout = pieces, dropout
        ctx.set_materialize_grads(False)
        return pooled, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_pooled, grad_attention):
        scores, values, lse = ctx.saved_tensors
        pieces, dropout, heads = ctx.pieces, ctx.dropout, scores.shape[1]
        if grad_pooled is None:
            grad_pooled = values.new_zeros(len(lse), heads, values.shape[2])
        flow, sums = float32(values, *scores.shape), float32(values, len(pieces.segment), PARTS, 2 * heads)
        grad_scores = torch.empty_like(scores)
        grad_values = torch.empty_like(values) if ctx.needs_input_grad[1] else None
        shared = {"starts": pieces.starts, "segment": pieces.segment, "scores": scores, "lse": lse}
        _backward[len(pieces.segment), PARTS](
            **shared,
            values=values,
            **dropout._asdict(),
            grad_pooled=grad_pooled.contiguous(),
            grad_attention=None if grad_attention is None else grad_attention.contiguous(),
            flow=flow,
            sums=sums,
            grad_values=grad_values,
            DROPOUT=dropout.threshold != 0,
            K=heads,
            KV=values.shape[1],
            F=values.shape[2],
            BLOCK_K=block(heads),
            BLOCK_F=block(values.shape[2], WIDEST),
            ROWS=PIECE // PARTS,
        )
        columns = block(heads, WIDEST)
        _backward_scores[len(pieces.segment), triton.cdiv(heads, columns)](
            **shared,
            flow=flow,
            sums=range_sum(sums.flatten(0, 1)[:, None], pieces.first * PARTS),
            grad_scores=grad_scores,
            K=heads,
            BLOCK_F=columns,
        )
        return grad_scores, grad_values, None, None


@tuned(("K", "KV", "BLOCK_F"), BLOCKS, INTERPRETED_BLOCKS)
def _pool(
    starts,
    scores,
    values,
    threshold,
    low,
    high,
    kept,
    part,
    part_lse,
    DROPOUT: tl.constexpr,
    K: tl.constexpr,
    KV: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The log-sum-exp of a piece's scores, and its values weighted by their softmax within the piece."""
    p = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    first, end = tl.load(starts + p), tl.load(starts + p + 1)
    top = tl.full([BLOCK_N, 1], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_N, 1], tl.float32)
    start = first
    while start < end:
        n = (start + tl.arange(0, BLOCK_N))[:, None]
        x = tl.load(scores + n * K + k, n < end, -float("inf")).to(tl.float32)
        new = tl.maximum(top, x)
        total = total * tl.exp(top - new) + tl.exp(x - new)
        top = new
        start += BLOCK_N
    lse = tl.sum(logsumexp_of_columns(top, total), 0)
    tl.store(part_lse + p * K + k, lse, tl.program_id(2) == 0)
    shift = tl.where(lse == -float("inf"), float("inf"), lse)
    acc = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
    start = first
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        weight = tl.exp(tl.load(scores + n * K + k, n < end, -float("inf")).to(tl.float32) - shift)
        if DROPOUT:
            weight *= kept_scale(n * K + k, threshold, low, high, kept)
        mask = (n < end)[:, None] & (column < F)[None, :]
        tile = tl.load(values + ((n * KV + k % KV) * F)[:, None] + column[None, :], mask, 0.0).to(tl.float32)
        acc += weight[:, None] * tile
        start += BLOCK_N
    tl.store(part + (p * K + k) * F + column, tl.sum(acc, 0), column < F)


@tuned(("K", "BLOCK_F"), BLOCKS, INTERPRETED_BLOCKS)
def _join(
    first_piece,
    part,
    part_lse,
    pooled,
    lse,
    K: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Joins the pieces of a bag. Where no score is finite the log-sum-exp is inf, which makes every weight 0."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    first, end = tl.load(first_piece + b), tl.load(first_piece + b + 1)
    top = tl.full([BLOCK_N, 1], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_N, 1], tl.float32)
    start = first
    while start < end:
        p = (start + tl.arange(0, BLOCK_N))[:, None]
        x = tl.load(part_lse + p * K + k, p < end, -float("inf"))
        new = tl.maximum(top, x)
        total = total * tl.exp(top - new) + tl.exp(x - new)
        top = new
        start += BLOCK_N
    joined = tl.sum(logsumexp_of_columns(top, total), 0)
    joined = tl.where(joined == -float("inf"), float("inf"), joined)
    tl.store(lse + b * K + k, joined, tl.program_id(2) == 0)
    acc = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
    start = first
    while start < end:
        p = start + tl.arange(0, BLOCK_N)
        weight = tl.exp(tl.load(part_lse + p * K + k, p < end, -float("inf")) - joined)
        mask = (p < end)[:, None] & (column < F)[None, :]
        acc += weight[:, None] * tl.load(part + ((p * K + k) * F)[:, None] + column[None, :], mask, 0.0)
        start += BLOCK_N
    place = pooled + (b * K + k) * F + column
    tl.store(place, tl.sum(acc, 0).to(pooled.dtype.element_ty), column < F)


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _weights(
    starts,
    segment,
    scores,
    lse,
    attention,
    K: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start, end = tl.load(starts + p), tl.load(starts + p + 1)
    shift = tl.load(lse + tl.load(segment + p) * K + column, column < K, 0.0)
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (column < K)[None, :]
        place = (n * K)[:, None] + column[None, :]
        weight = tl.exp(tl.load(scores + place, mask, 0.0).to(tl.float32) - shift[None, :])
        tl.store(attention + place, weight.to(attention.dtype.element_ty), mask)
        start += BLOCK_N


@tuned(("K", "KV", "BLOCK_F"), [*BLOCKS[:1], *BLOCKS[2:-1]], INTERPRETED_BLOCKS)
def _backward(
    starts,
    segment,
    scores,
    lse,
    values,
    threshold,
    low,
    high,
    kept,
    grad_pooled,
    grad_attention,
    flow,
    sums,
    grad_values,
    DROPOUT: tl.constexpr,
    K: tl.constexpr,
    KV: tl.constexpr,
    F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of the weights before dropout, their sum over a part of a piece under the weights, that of the weights,
    and the gradients of the values where they are wanted."""
    p = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    start = tl.load(starts + p) + part * ROWS
    end = tl.minimum(start + ROWS, tl.load(starts + p + 1))
    b = tl.load(segment + p)
    row = (p * tl.num_programs(1) + part) * 2 * K
    grad = grad_pooled + b * K * F
    branch = tl.arange(0, BLOCK_K)
    mean = tl.zeros([BLOCK_K], tl.float32)
    weights = tl.zeros([BLOCK_K], tl.float32)
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
                total *= kept_scale(n * K + k, threshold, low, high, kept)
            if grad_attention is not None:
                total += tl.load(grad_attention + n * K + k, there, 0.0).to(tl.float32)
            tl.store(flow + n * K + k, total, there)
            shift = tl.load(lse + b * K + k)
            weight = tl.exp(tl.load(scores + n * K + k, there, -float("inf")).to(tl.float32) - shift)
            weight = tl.where(there, weight, 0.0)
            mean += tl.where(branch == k, tl.sum(weight * total, 0), 0.0)
            weights += tl.where(branch == k, tl.sum(weight, 0), 0.0)
        if grad_values is not None:
            for head in range(KV):
                for f0 in range(0, F, BLOCK_F):
                    column = f0 + tl.arange(0, BLOCK_F)
                    mask = there[:, None] & (column < F)[None, :]
                    tile = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
                    for k in range(head, K, KV):  # all of them where they share the values
                        shift = tl.load(lse + b * K + k)
                        weight = tl.exp(tl.load(scores + n * K + k, there, -float("inf")).to(tl.float32) - shift)
                        if DROPOUT:
                            weight *= kept_scale(n * K + k, threshold, low, high, kept)
                        g = tl.load(grad + k * F + column, column < F, 0.0).to(tl.float32)
                        tile += weight[:, None] * g[None, :]
                    place = ((n * KV + head) * F)[:, None] + column[None, :]
                    tl.store(grad_values + place, tile.to(grad_values.dtype.element_ty), mask)
        start += BLOCK_N
    tl.store(sums + row + branch, mean, branch < K)
    tl.store(sums + row + K + branch, weights, branch < K)


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _backward_scores(
    starts,
    segment,
    scores,
    lse,
    flow,
    sums,
    grad_scores,
    K: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of the scores; ``sums`` are those of the bags.

    The mean over a bag is that of the very gradients it is taken from: where these hardly differ within a bag, as its
    attention goes flat, one computed by another way would leave its rounding in every score.
    """
    p = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = column < K
    b = tl.load(segment + p)
    whole = tl.load(sums + (b * 2 + 1) * K + column, inside, 1.0)
    centre = tl.load(sums + b * 2 * K + column, inside, 0.0) / tl.where(whole == 0, 1.0, whole)
    shift = tl.load(lse + b * K + column, inside, 0.0)
    start, end = tl.load(starts + p), tl.load(starts + p + 1)
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & inside[None, :]
        place = (n * K)[:, None] + column[None, :]
        weight = tl.exp(tl.load(scores + place, mask, 0.0).to(tl.float32) - shift[None, :])
        gradient = weight * (tl.load(flow + place, mask, 0.0) - centre[None, :])
        tl.store(grad_scores + place, gradient.to(grad_scores.dtype.element_ty), mask)
        start += BLOCK_N
