"""Reductions over packed bags as CPU kernels that read the values once forward and at most once backward."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.loops import exp
from mil_zoo.kernels._numba.segments import cut, segment_statistics, segment_weighted_sum
from mil_zoo.kernels._numba.storage import computed, rounded, stored, widen, widened
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty


def forward(values, offsets, reduce):
    """See ``segment_reduce``.

    Values are read and their gradients written as they are, but float16, which is converted to float32 and back; what
    is computed is float32 or float64.
    """
    offsets_ = offsets.numpy().astype(np.int64)
    if reduce == "max":
        top, argmax = _Max.apply(stored(values), offsets_)
        return top.to(values.dtype), argmax
    function = _LogSumExp if reduce == "logsumexp" else _Sum
    reduced = function.apply(stored(values), offsets_)
    if reduce == "mean":
        reduced = reduced / offsets.diff()[:, None]
    return reduced.to(values.dtype), None


class _Max(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        argmax = torch.from_numpy(_argmax(array(values), offsets))
        ctx.argmax, ctx.rows = argmax, len(values)
        ctx.mark_non_differentiable(argmax)
        return values.gather(0, argmax), argmax

    @staticmethod
    def backward(ctx, grad, _):
        columns = torch.arange(grad.shape[1])  # scattered along one axis, bfloat16 takes eight times as long
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_put_((ctx.argmax, columns), grad), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        ctx.sizes, ctx.dtype = torch.from_numpy(np.diff(offsets)), values.dtype
        ones = torch.ones(len(values), 1, dtype=computed(values))
        return torch.from_numpy(segment_weighted_sum(array(ones), array(values)[:, None], cut(offsets))[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.to(ctx.dtype).repeat_interleave(ctx.sizes, dim=0), None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        pieces = cut(offsets)
        top, total = segment_statistics(array(values), pieces)
        with np.errstate(divide="ignore"):
            reduced = torch.from_numpy(top + np.log(total))
        if np.isposinf(top).any():  # which total is no sum relative to: the largest is the result, or NaN where one is
            largest = values.gather(0, torch.from_numpy(_argmax(array(values), offsets))).to(reduced.dtype)
            reduced = torch.where(torch.from_numpy(np.isposinf(top)), largest, reduced)
        ctx.save_for_backward(values, reduced)
        ctx.pieces = pieces
        return reduced

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, reduced = ctx.saved_tensors
        starts, segment = ctx.pieces.starts, ctx.pieces.segment
        grad_values = empty(values, *values.shape)
        flows = array(values), array(reduced), array(grad), array(grad_values)
        _spread(blocks(starts, 16 * values.shape[1]), starts, segment, flows)
        return grad_values, None


def _argmax(values, offsets):
    """The first row of each segment that holds its maximum, or NaN: int64 ``[B, F]``."""
    pieces = cut(offsets)
    starts = pieces.starts
    rows = np.empty((len(starts) - 1, values.shape[1]), np.int64)
    top = np.empty(rows.shape, np.float64 if values.dtype == np.float64 else np.float32)
    _piece_argmax(blocks(starts, 2 * values.shape[1]), starts, values, top, rows)
    if pieces.whole:
        return rows
    argmax = np.empty((len(offsets) - 1, values.shape[1]), np.int64)
    _best(pieces.first, top, rows, argmax)
    return argmax


@jit(parallel=True)
def _piece_argmax(bounds, starts, values, top, rows):
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            rows[p] = starts[p]
            widen(values[starts[p] : starts[p] + 1], top[p : p + 1])
            for n in range(starts[p] + 1, starts[p + 1]):
                _improve(n, values[n], top[p], rows[p])


@jit()
def _best(first, top, rows, argmax):
    for b in range(len(argmax)):
        for f in range(top.shape[1]):
            best = first[b]
            for p in range(first[b] + 1, first[b + 1]):
                if _above(top[p, f], top[best, f]):
                    best = p
            argmax[b, f] = rows[best, f]


@jit()
def _improve(n, values, top, rows):
    for f in range(len(top)):
        x = widened(values[f])
        better = _above(x, top[f])
        top[f], rows[f] = x if better else top[f], n if better else rows[f]


@jit()
def _above(x, y):
    return x > y or (np.isnan(x) and not np.isnan(y))


@jit(parallel=True)
def _spread(bounds, starts, bag, flows):
    values, reduced, grad, grad_values = flows
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            for n in range(starts[p], starts[p + 1]):
                _spread_row(values[n], reduced[bag[p]], grad[bag[p]], grad_values[n])


@jit()
def _spread_row(values, reduced, grad, grad_values):
    for f in range(len(values)):
        grad_values[f] = rounded(grad[f] * exp(widened(values[f]) - reduced[f]), grad_values)
