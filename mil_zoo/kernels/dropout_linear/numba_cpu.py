"""Picked rows, dropout and linear maps on a CPU: rows are packed block by block beside a matrix product.

No copy of all rows and no dropout mask is ever stored: blocks stay in cache, and backward packs them again. Rows that
are the token are 0 or 1 (dropped or kept) times the token, which goes into the weight instead: their gradient is then
one product less, as that of the token follows from that of the weight.

Sums over rows are split among threads by columns, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels.numba_tools import array, blocks, dropout_key, jit, keep_run, stripes

BLOCK = 2048  # rows packed at a time: 8 MB at 1024 features


def forward(x, weights, index, token, dropout_p, seed):
    """See ``dropout_linear``. Under autocast the products are taken in its precision, sums stay in float32."""
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    index = torch.arange(len(x), dtype=torch.int32) if index is None else index.int()
    token = None if token is None else token.to(dtype)
    settings = index, dropout_p, seed, precision or (x.dtype if x.dtype.itemsize < 4 else dtype)
    outs = _DropoutLinear.apply(x.to(dtype), token, settings, *(weight.to(dtype) for weight in weights))
    return tuple(out.to(x.dtype) for out in outs)


class _DropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token, settings, *weights):
        weight = torch.cat(weights).div_(1 - settings[1])  # [O, D]
        outs = tuple(x.new_empty(len(settings[0]), len(w)) for w in weights)
        plan = _Plan(x, weight, settings)
        for rows in plan.row_blocks:
            _distribute(rows, plan.product(plan.pack(rows), weight.T), outs)
        for rows in plan.token_blocks:
            _distribute(rows, plan.product(plan.pack_kept(rows), (weight * token).T), outs)
        ctx.save_for_backward(x, token, weight)
        ctx.settings, ctx.sizes = settings, [len(w) for w in weights]
        ctx.set_materialize_grads(False)
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, token, weight = ctx.saved_tensors
        plan = _Plan(x, weight, ctx.settings)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight)
        for rows in plan.row_blocks:
            grad = _collect(rows, grads, ctx.sizes, x)
            grad_weight += plan.product(grad.T, plan.pack(rows))
            if grad_x is not None:
                flow = plan.product(grad, weight)
                _unpack(plan.input_stripes, rows, plan.index, flow.numpy(), plan.dropout, grad_x.numpy())
        grad_token = None if token is None else torch.zeros_like(token)
        for rows in plan.token_blocks:
            kept = plan.product(_collect(rows, grads, ctx.sizes, x).T, plan.pack_kept(rows))  # [O, D]
            grad_weight += kept * token
            grad_token += (kept * weight).sum(0)
        return grad_x, grad_token, None, *grad_weight.div_(1 - ctx.settings[1]).split(ctx.sizes)


class _Plan:
    """What both directions need: the rows in blocks, those of ``x`` and those that are the token apart."""

    def __init__(self, x, weight, settings):
        index, dropout_p, seed, self.precision = settings
        self.x, self.index, self.dtype = array(x, x), index.numpy(), x.dtype
        self.dropout = *dropout_key(dropout_p, seed, self.x.dtype)[:3], self.x.dtype.type(1)  # 1 / (1 - p): in weight
        self.row_blocks, self.token_blocks = _split(self.index >= 0), _split(self.index < 0)
        self.input_stripes = stripes(x.shape[1])

    def pack(self, rows):
        """The rows after dropout, ``[len(rows), D]``."""
        packed = torch.empty(len(rows), self.x.shape[1], dtype=self.dtype)
        _pack(blocks(np.arange(len(rows) + 1), self.x.shape[1]), rows, self.index, self.x, self.dropout, packed.numpy())
        return packed

    def pack_kept(self, rows):
        """1 where dropout keeps an entry of the rows, else 0."""
        packed = torch.empty(len(rows), self.x.shape[1], dtype=self.dtype)
        _pack_kept(blocks(np.arange(len(rows) + 1), self.x.shape[1]), rows, self.dropout, packed.numpy())
        return packed

    def product(self, a, b):
        with torch.autocast("cpu", enabled=False):
            return torch.mm(a.to(self.precision), b.to(self.precision)).to(a.dtype)


def _split(wanted):
    rows = np.flatnonzero(wanted)
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def _distribute(rows, result, outs):
    """``outs[i][rows] =`` its columns of ``result`` ``[len(rows), O]``."""
    first, bounds = 0, blocks(np.arange(len(rows) + 1), 8 * result.shape[1])
    for out in outs:
        _copy(bounds, np.arange(len(rows)), result.numpy()[:, first : first + out.shape[1]], rows, out.numpy())
        first += out.shape[1]


def _collect(rows, grads, sizes, like):
    """The gradients of all outputs at ``rows``, side by side: ``[len(rows), O]``."""
    result = like.new_empty(len(rows), sum(sizes))
    first, bounds = 0, blocks(np.arange(len(rows) + 1), 8 * sum(sizes))
    for grad, size in zip(grads, sizes, strict=True):
        columns = result.numpy()[:, first : first + size]
        if grad is None:
            columns[:] = 0
        else:
            _copy(bounds, rows, grad.numpy(), np.arange(len(rows)), columns)
        first += size
    return result


@jit(parallel=True)
def _copy(bounds, from_rows, source, to_rows, target):
    for block in prange(len(bounds) - 1):
        for r in range(bounds[block], bounds[block + 1]):
            for c in range(source.shape[1]):
                target[to_rows[r], c] = source[from_rows[r], c]


@jit(parallel=True)
def _pack(bounds, rows, index, x, dropout, packed):
    for block in prange(len(bounds) - 1):
        for r in range(bounds[block], bounds[block + 1]):
            _pack_row(rows[r], x[index[rows[r]]], dropout, packed[r])


@jit(parallel=True)
def _pack_kept(bounds, rows, dropout, packed):
    for block in prange(len(bounds) - 1):
        for r in range(bounds[block], bounds[block + 1]):
            keep_run(rows[r] * packed.shape[1], dropout, packed[r])


@jit()
def _pack_row(row, source, dropout, packed):
    keep_run(row * len(source), dropout, packed)
    for c in range(len(source)):
        packed[c] *= source[c]


@jit(parallel=True)
def _unpack(bounds, rows, index, flow, dropout, grad_x):
    for stripe in prange(len(bounds) - 1):
        _unpack_columns(bounds[stripe], bounds[stripe + 1], rows, index, flow, dropout, grad_x)


@jit()
def _unpack_columns(first, last, rows, index, flow, dropout, grad_x):
    scale = np.empty(last - first, flow.dtype)
    for r in range(len(rows)):
        keep_run(rows[r] * grad_x.shape[1] + first, dropout, scale)
        source, target = flow[r, first:last], grad_x[index[rows[r]], first:last]
        for c in range(len(scale)):
            target[c] += scale[c] * source[c]
