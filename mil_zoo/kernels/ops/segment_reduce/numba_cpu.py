"""Reductions over packed bags as CPU kernels that read the values once forward and at most once backward."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.loops import exp
from mil_zoo.kernels._numba.segments import cut, segment_statistics, segment_weighted_sum
from mil_zoo.kernels._numba.threads import blocks


def forward(values, offsets, reduce):
    """See ``segment_reduce``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    offsets_ = offsets.numpy().astype(np.int64)
    if reduce == "max":
        argmax = torch.from_numpy(_argmax(array(values.to(dtype)), offsets_))
        return values.gather(0, argmax), argmax
    function = _LogSumExp if reduce == "logsumexp" else _Sum
    reduced = function.apply(values.to(dtype), offsets_)
    if reduce == "mean":
        reduced = reduced / offsets.diff()[:, None]
    return reduced.to(values.dtype), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        ctx.sizes = torch.from_numpy(np.diff(offsets))
        numbers = array(values)[:, None]
        ones = np.ones((len(numbers), 1), numbers.dtype)
        return torch.from_numpy(segment_weighted_sum(ones, numbers, cut(offsets))[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.repeat_interleave(ctx.sizes, dim=0), None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        pieces = cut(offsets)
        top, total = segment_statistics(array(values), pieces)
        with np.errstate(divide="ignore"):
            reduced = torch.from_numpy(top + np.log(total))
        ctx.save_for_backward(values, reduced)
        ctx.pieces = pieces
        return reduced

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, reduced = ctx.saved_tensors
        starts, segment = ctx.pieces.starts, ctx.pieces.segment
        grad_values = torch.empty_like(values, memory_format=torch.contiguous_format)
        flows = array(values), array(reduced), array(grad), grad_values.numpy()
        _spread(blocks(starts, 16 * values.shape[1]), starts, segment, flows)
        return grad_values, None


def _argmax(values, offsets):
    """The first row of each segment that holds its maximum, or NaN: int64 ``[B, F]``."""
    pieces = cut(offsets)
    starts = pieces.starts
    rows = np.empty((len(starts) - 1, values.shape[1]), np.int64)
    _piece_argmax(blocks(starts, 2 * values.shape[1]), starts, values, rows)
    if pieces.whole:
        return rows
    argmax = np.empty((len(offsets) - 1, values.shape[1]), np.int64)
    _best(pieces.first, values, rows, argmax)
    return argmax


@jit(parallel=True)
def _piece_argmax(bounds, starts, values, rows):
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            rows[p] = starts[p]
            for n in range(starts[p] + 1, starts[p + 1]):
                _improve(n, values, rows[p])


@jit()
def _best(first, values, rows, argmax):
    for b in range(len(argmax)):
        for f in range(values.shape[1]):
            argmax[b, f] = rows[first[b], f]
            for p in range(first[b] + 1, first[b + 1]):
                if _above(values[rows[p, f], f], values[argmax[b, f], f]):
                    argmax[b, f] = rows[p, f]


@jit()
def _improve(n, values, rows):
    for f in range(values.shape[1]):
        if _above(values[n, f], values[rows[f], f]):
            rows[f] = n


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
        grad_values[f] = grad[f] * exp(values[f] - reduced[f])
