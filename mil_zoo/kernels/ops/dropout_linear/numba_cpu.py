"""Picked rows, dropout and linear maps on a CPU: rows are packed block by block beside a matrix product.

No copy of all rows and no dropout mask is ever stored: blocks stay in cache, and backward packs them again. Rows that
are the token are 0 or 1 (dropped or kept) times the token, which goes into the weight instead: their gradient is then
one product less, as that of the token follows from that of the weight.

Sums over copies of a row are split among threads by columns, so their bits do not depend on the number of threads;
those of the matrix products, which are torch's, can.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels import onednn
from mil_zoo.kernels._numba.hashing import Dropout, kept_scale_run
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.storage import computed, rounded, stored, widened, write_row
from mil_zoo.kernels._numba.threads import blocks, stripes

BLOCK = 2048  # rows packed at a time: 8 MB at 1024 features


def forward(x, weight, bias, sizes, index, token, dropout_p, seed, precision):
    """See ``dropout_linear``. Products are taken in ``precision``, sums in float32.

    Rows are read and written as they are, but float16, which is converted to float32 and back.
    """
    dtype, kind = computed(x), np.float64 if x.dtype == torch.float64 else np.float32
    dropout = Dropout.of(dropout_p, seed, np.dtype(kind))._replace(kept=kind(1))
    once = index is None
    index = np.arange(x.shape[0], dtype=np.int32) if once else index.int().numpy()
    others = (None if t is None else t.to(dtype) for t in (weight, bias, token))
    outs = _DropoutLinear.apply(stored(x), *others, _Plan(index, once, sizes, dropout_p, dropout, precision))
    return tuple(out.to(x.dtype) for out in outs)


@dataclass
class _Plan:
    """What both directions share.

    Attributes:
        index: int32 ``[M]``, the row of x that each row is; -1 for the token.
        once: whether every row of x is there once.
        sizes: columns of each output.
        dropout_p: the rate.
        dropout: the same for the kernels, where what is kept is multiplied by 1.
        precision: of the products.
    """

    index: np.ndarray
    once: bool
    sizes: list[int]
    dropout_p: float
    dropout: Dropout
    precision: torch.dtype

    def __post_init__(self):
        self.firsts = [0, *accumulate(self.sizes)][:-1]  # of the columns of each output among all
        block = BLOCK if self.dropout_p > 0 else 8 * BLOCK  # without dropout rows in order need no packing
        self.row_blocks, self.token_blocks = _split(self.index >= 0, block), _split(self.index < 0, block)

    def scaled(self, weight):
        """The weight divided by 1 - p, as packed rows are not."""
        return weight if self.dropout_p == 0 else weight / (1 - self.dropout_p)

    def pack(self, rows, x):
        """``x[index[rows]]`` with 0 where dropout drops; it is the weight that is divided by 1 - p.

        Rows of zeros may follow, see ``onednn.room``.
        """
        if self.dropout_p == 0:
            picked = self.index[rows]
            if (np.diff(picked) == 1).all():
                return x[picked[0] : picked[-1] + 1]
        packed = self.empty(rows, x)
        _pack(blocks(len(rows), x.shape[1]), rows, (self.index, array(x)), self.dropout, array(packed))
        return packed

    def pack_kept(self, rows, x):
        """1 where dropout keeps an entry of the rows, else 0; rows of zeros may follow."""
        packed = self.empty(rows, x)
        _pack_kept(blocks(len(rows), x.shape[1]), rows, self.dropout, array(packed))
        return packed

    def empty(self, rows, x):
        """Memory for ``pack`` in the precision of its products, or float32 for float16.

        Where the products are oneDNN's, with room and zeros there.
        """
        pays = self.precision == x.dtype and onednn.pays(len(rows) * x.shape[1] * sum(self.sizes), x)
        dtype = torch.float32 if self.precision == torch.float16 else self.precision
        packed = x.new_empty(onednn.room(len(rows)) if pays else len(rows), x.shape[1], dtype=dtype)
        packed[len(rows) :] = 0
        return packed

    def unpack(self, rows, flow, grad_x):
        """Adds the gradient of ``pack(rows, x)`` to that of x."""
        bounds = stripes(grad_x.shape[1], len(rows))
        _unpack(bounds, rows, (self.index, array(stored(flow))), self.dropout, array(grad_x))

    def write(self, rows, packed, weight, bias, outs):
        """``outs[i][rows] =`` its columns of ``packed @ weight^T + bias``."""
        if (part := _neighbours(rows)) is not None:  # no copy on the way
            biases = [None] * len(outs) if bias is None else bias.split(self.sizes)
            for out, columns, shift in zip(outs, weight.split(self.sizes), biases, strict=True):
                self.product(packed, columns.T, shift, out=out[part])
            return
        result, order = array(self.product(packed, weight.T, bias).to(outs[0].dtype)), np.arange(len(rows))
        for out, first in zip(outs, self.firsts, strict=True):
            _copy(blocks(len(rows), out.shape[1]), (result, order, first), (array(out), rows, 0), out.shape[1])

    def collect(self, rows, grads, packed, x):
        """The gradients of all outputs at ``rows``, side by side: ``[len(packed), O]``, zeros after the last row."""
        result, order = x.new_empty(len(packed), sum(self.sizes)), np.arange(len(rows))
        result[len(rows) :] = 0
        if (part := _neighbours(rows)) is not None:
            columns = zip(grads, self.sizes, strict=True)
            parts = [x.new_zeros(len(rows), n) if g is None else g[part] for g, n in columns]
            torch.cat(parts, dim=1, out=result[: len(rows)])
            return result
        for grad, size, first in zip(grads, self.sizes, self.firsts, strict=True):
            if grad is None:
                result[:, first : first + size] = 0
            else:
                _copy(blocks(len(rows), size), (array(grad), rows, 0), (array(result), order, first), size)
        return result

    def product(self, a, b, bias=None, out=None):
        """``a @ b + bias``, the product in ``precision``; float32 and float64 go into ``out`` at once.

        With ``out`` only as many rows of a as that has.
        """
        rows, a, b = len(a) if out is None else len(out), a.to(self.precision), b.to(self.precision)
        if onednn.pays(rows * b.numel(), a):
            result = onednn.product(a, b, bias)
            return result if out is None else out.copy_(result[:rows])
        a = a[:rows]
        if self.precision.itemsize >= 4:
            return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
        result = torch.mm(a, b)
        if bias is not None:
            return torch.add(result, bias, out=out)  # in float32, of which the bias is
        return result if out is None else out.copy_(result)


def _split(wanted, block):
    rows = np.flatnonzero(wanted)
    return [rows[start : start + block] for start in range(0, len(rows), block)]


def _neighbours(rows):
    """The slice that ascending rows are, or None."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else None


class _DropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, token, plan):
        outs = tuple(x.new_empty(len(plan.index), size) for size in plan.sizes)
        scaled = plan.scaled(weight)
        for rows in plan.row_blocks:
            plan.write(rows, plan.pack(rows, x), scaled, bias, outs)
        for rows in plan.token_blocks:
            plan.write(rows, plan.pack_kept(rows, x), scaled * token, bias, outs)
        ctx.save_for_backward(x, scaled, token)
        ctx.plan, ctx.biased = plan, bias is not None
        ctx.set_materialize_grads(False)
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (x, scaled, token), plan, grad_weight = ctx.saved_tensors, ctx.plan, None
        grad_x = None
        if ctx.needs_input_grad[0]:  # copies of a row are summed before they are rounded
            grad_x = x.new_zeros(x.shape, dtype=x.dtype if plan.once else scaled.dtype)
        grad_bias = scaled.new_zeros(len(scaled)) if ctx.biased else None
        grad_token = None if token is None else torch.zeros_like(token)
        for rows in plan.row_blocks:
            packed = plan.pack(rows, x)
            grad = plan.collect(rows, grads, packed, x)
            grad_weight = _plus(grad_weight, plan.product(grad.T, packed).to(scaled.dtype))
            if ctx.biased:
                grad_bias += grad[: len(rows)].sum(0, dtype=scaled.dtype)
            if grad_x is not None:
                plan.unpack(rows, plan.product(grad, scaled), grad_x)
        for rows in plan.token_blocks:
            packed = plan.pack_kept(rows, x)
            grad = plan.collect(rows, grads, packed, x)
            kept = plan.product(grad.T, packed).to(scaled.dtype)  # [O, D]
            grad_weight = _plus(grad_weight, kept * token)
            grad_token += (kept * scaled).sum(0)
            if ctx.biased:
                grad_bias += grad[: len(rows)].sum(0, dtype=scaled.dtype)
        grad_weight = torch.zeros_like(scaled) if grad_weight is None else grad_weight.div_(1 - plan.dropout_p)
        return None if grad_x is None else grad_x.to(x.dtype), grad_weight, grad_bias, grad_token, None


def _plus(total, part):
    """``total + part`` in place; None is nothing."""
    return part if total is None else total.add_(part)


@jit(parallel=True)
def _copy(bounds, source, target, width):
    """Copies ``width`` columns of rows; ``source`` and ``target`` are (array, its rows, first column) each."""
    for block in prange(len(bounds) - 1):
        for r in range(bounds[block], bounds[block + 1]):
            _copy_row(r, source, target, width)


@jit()
def _copy_row(r, source, target, width):
    (from_, from_rows, from_first), (to, to_rows, to_first) = source, target
    row, copy = from_[from_rows[r], from_first : from_first + width], to[to_rows[r], to_first : to_first + width]
    for c in range(width):
        copy[c] = row[c]


@jit(parallel=True)
def _pack(bounds, rows, source, dropout, packed):
    index, x = source
    for block in prange(len(bounds) - 1):
        scale = np.full(x.shape[1], dropout.kept)
        for r in range(bounds[block], bounds[block + 1]):
            _pack_row(rows[r], x[index[rows[r]]], dropout, scale, packed[r])


@jit(parallel=True)
def _pack_kept(bounds, rows, dropout, packed):
    for block in prange(len(bounds) - 1):
        scale = np.full(packed.shape[1], dropout.kept)
        for r in range(bounds[block], bounds[block + 1]):
            kept_scale_run(rows[r] * packed.shape[1], dropout, scale)
            write_row(scale, dropout.kept, packed[r])


@jit()
def _pack_row(row, source, dropout, scale, packed):
    kept_scale_run(row * len(source), dropout, scale)
    for c in range(len(source)):
        packed[c] = rounded(scale[c] * widened(source[c]), packed)


@jit(parallel=True)
def _unpack(bounds, rows, source, dropout, grad_x):
    for stripe in prange(len(bounds) - 1):
        scale = np.full(bounds[stripe + 1] - bounds[stripe], dropout.kept)
        _unpack_columns(bounds[stripe : stripe + 2], rows, source, dropout, grad_x, scale)


@jit()
def _unpack_columns(columns, rows, source, dropout, grad_x, scale):
    (first, last), (index, flow) = (columns[0], columns[1]), source
    for r in range(len(rows)):
        kept_scale_run(rows[r] * grad_x.shape[1] + first, dropout, scale)
        source, target = flow[r, first:last], grad_x[index[rows[r]], first:last]
        for c in range(len(scale)):
            target[c] = rounded(widened(target[c]) + scale[c] * widened(source[c]), target)
