"""Seeded dropout on a CPU: one pass forward, one backward."""

from __future__ import annotations

import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.hashing import Dropout, kept_scale_run
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.threads import blocks


def forward(x, dropout_p, seed):
    """See ``seeded_dropout``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _SeededDropout.apply(x.to(dtype), dropout_p, seed).to(x.dtype)


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dropout_p, seed):
        ctx.settings = dropout_p, seed
        return _drop(x, dropout_p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _drop(grad, *ctx.settings), None, None


def _drop(x, dropout_p, seed):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    written = out.numpy()
    _drop_rows(blocks(x.shape[0], 4 * x.shape[1]), array(x), Dropout.of(dropout_p, seed, written.dtype), written)
    return out


@jit(parallel=True)
def _drop_rows(bounds, x, dropout, out):
    for block in prange(len(bounds) - 1):
        for n in range(bounds[block], bounds[block + 1]):
            _drop_row(n, x[n], dropout, out[n])


@jit()
def _drop_row(n, x, dropout, out):
    kept_scale_run(n * len(x), dropout, out)
    for c in range(len(x)):
        out[c] *= x[c]
