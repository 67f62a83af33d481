"""Seeded dropout on a CPU: one pass forward, one backward."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.hashing import Dropout, kept_scale_run
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.storage import rounded, stored, widened
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty


def forward(x, dropout_p, seed):
    """See ``seeded_dropout``. Rows are read and written as they are, but float16, which is converted to float32."""
    return _SeededDropout.apply(stored(x), dropout_p, seed).to(x.dtype)


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
    out, dtype = empty(x, *x.shape), np.dtype(np.float64 if x.dtype == torch.float64 else np.float32)
    _drop_rows(blocks(x.shape[0], 4 * x.shape[1]), array(x), Dropout.of(dropout_p, seed, dtype), array(out))
    return out


@jit(parallel=True)
def _drop_rows(bounds, x, dropout, out):
    for block in prange(len(bounds) - 1):
        scale = np.full(x.shape[1], dropout.kept)
        for n in range(bounds[block], bounds[block + 1]):
            _drop_row(n, x[n], dropout, scale, out[n])


@jit()
def _drop_row(n, x, dropout, scale, out):
    kept_scale_run(n * len(x), dropout, scale)
    for c in range(len(x)):
        out[c] = rounded(scale[c] * widened(x[c]), out)
