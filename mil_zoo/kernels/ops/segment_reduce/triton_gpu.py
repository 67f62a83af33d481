"""Reductions over packed bags as Triton kernels: pieces of bags first, then the pieces of each bag."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.segments import BLOCKS, INTERPRETED_BLOCKS, WIDEST, Pieces, segment_logsumexp, segment_sum
from mil_zoo.kernels._triton.tools import block, float32, tuned


def forward(values, offsets, reduce):
    """See ``segment_reduce``. Returns reduced ``[B, F]`` and, for "max", argmax ``[B, F]`` (else None)."""
    return _SegmentReduce.apply(values, offsets, reduce)


class _SegmentReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, reduce):
        values, pieces, argmax = values.contiguous(), Pieces.of(offsets, len(values)), None
        if reduce == "max":
            argmax = _argmax(values, pieces)
            out = values.gather(0, argmax)
            ctx.mark_non_differentiable(argmax)
        elif reduce == "logsumexp":
            out = segment_logsumexp(values, pieces).to(values.dtype)
        else:
            out = segment_sum(values[:, None], pieces)[:, 0]
            out = (out if reduce == "sum" else out / offsets.diff()[:, None]).to(values.dtype)
        needed = {"max": (argmax,), "logsumexp": (values, out)}.get(reduce, ())
        ctx.save_for_backward(offsets, *needed)
        ctx.reduce, ctx.pieces, ctx.num_rows = reduce, pieces, len(values)
        return out, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        offsets, *needed = ctx.saved_tensors
        if ctx.reduce == "max":
            return grad.new_zeros(ctx.num_rows, grad.shape[1]).scatter_(0, needed[0], grad), None, None
        if ctx.reduce == "mean":
            grad = grad / offsets.diff()[:, None]
        values, out = needed or (None, None)
        grad, width = grad.contiguous(), grad.shape[1]
        grad_values = grad.new_empty(ctx.num_rows, width)
        columns = block(width, WIDEST)
        _backward[len(ctx.pieces.segment), triton.cdiv(width, columns)](
            starts=ctx.pieces.starts,
            segment=ctx.pieces.segment,
            values=values,
            out=out,
            grad=grad,
            grad_values=grad_values,
            F=width,
            BLOCK_F=columns,
        )
        return grad_values, None, None


def _argmax(values: Tensor, pieces: Pieces) -> Tensor:
    """int64 ``[B, F]``: the first row of each segment that attains the maximum of a column."""
    top, row = _range_max(values, pieces.starts)
    return row.gather(0, _range_max(top, pieces.first)[1])


def _range_max(values: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    count, width = len(bounds) - 1, values.shape[1]
    top, row = float32(values, count, width), torch.empty(count, width, dtype=torch.int64, device=values.device)
    columns = block(width, WIDEST)
    _maximum[count, triton.cdiv(width, columns)](
        bounds=bounds, values=values, top=top, row=row, F=width, BLOCK_F=columns
    )
    return top, row


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _maximum(bounds, values, top, row, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start, end = tl.load(bounds + r), tl.load(bounds + r + 1)
    best = tl.full([BLOCK_N, BLOCK_F], -float("inf"), tl.float32)
    where = tl.full([BLOCK_N, BLOCK_F], -1, tl.int64)  # -1: nothing seen
    last = end
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (column < F)[None, :]
        x = tl.load(values + (n * F)[:, None] + column[None, :], mask, -float("inf")).to(tl.float32)
        x = tl.where(x == x, x, float("inf"))  # NaN is found as torch finds it: it is the maximum
        better = mask & ((x > best) | (where < 0))
        best = tl.where(better, x, best)
        where = tl.where(better, n[:, None], where)
        start += BLOCK_N
    highest = tl.max(best, 0)
    candidate = tl.where((best == highest[None, :]) & (where >= 0), where, last)
    tl.store(top + r * F + column, highest, column < F)
    tl.store(row + r * F + column, tl.min(candidate, 0), column < F)


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _backward(
    starts, segment, values, out, grad, grad_values, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The gradient of the sum, and with ``values`` and ``out`` that of the log-sum-exp."""
    p = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start, end = tl.load(starts + p), tl.load(starts + p + 1)
    place = tl.load(segment + p) * F + column
    g = tl.load(grad + place, column < F, 0.0).to(tl.float32)
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (column < F)[None, :]
        here = (n * F)[:, None] + column[None, :]
        flow = tl.zeros([BLOCK_N, BLOCK_F], tl.float32) + g[None, :]
        if values is not None:
            shift = tl.load(out + place, column < F, 0.0).to(tl.float32)
            flow *= tl.exp(tl.load(values + here, mask, 0.0).to(tl.float32) - shift[None, :])
        tl.store(grad_values + here, flow.to(grad_values.dtype.element_ty), mask)
        start += BLOCK_N
