"""Scores of gated attention on a CPU: one pass over the products forward and one backward."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.hashing import Dropout, kept_scale_run
from mil_zoo.kernels._numba.jit import REORDER, array, jit
from mil_zoo.kernels._numba.loops import exp, tanh
from mil_zoo.kernels._numba.threads import blocks

PIECE = 1024  # rows whose gradients of the weights are summed first; fixed, so that the order of additions is


def forward(x, weight, dropout_p, seed):
    """See ``gated_scores``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _GatedScores.apply(x.to(dtype), weight.to(dtype), dropout_p, seed).to(x.dtype)


class _GatedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, dropout_p, seed):
        out = x.new_empty(len(x), len(weight))
        written = out.numpy()
        dropout = Dropout.of(dropout_p, seed, written.dtype)
        _forward(_pieces(x), array(x), array(weight), dropout, written)
        ctx.save_for_backward(x, weight)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        starts, grad_x = _pieces(x), torch.empty_like(x, memory_format=torch.contiguous_format)
        sums = weight.new_zeros(len(starts) - 1, *weight.shape)
        arrays = array(x), array(weight), array(grad)
        _backward(starts, *arrays, ctx.dropout, grad_x.numpy(), sums.numpy())
        return grad_x, sums.sum(0), None, None


def _pieces(x):
    blocks(len(x), 16 * x.shape[1])  # sets the number of threads
    return np.minimum(np.arange(0, len(x) + PIECE, PIECE), len(x))


@jit(parallel=True)
def _forward(starts, x, weight, dropout, out):
    for piece in prange(len(starts) - 1):
        scale, gates = np.empty_like(x[0]), np.empty_like(x[0])
        for n in range(starts[piece], starts[piece + 1]):
            _gates(n, x[n], dropout, scale, gates)
            _scores(weight, scale, gates, out[n])


@jit()
def _gates(n, x, dropout, scale, gates):
    """tanh of the first half of a row and sigmoid of the second, and what dropout multiplies each by."""
    width = len(x) // 2
    for a in range(width):
        gates[a] = tanh(x[a])
    for a in range(width, len(x)):
        e = exp(-abs(x[a]))
        larger = 1 / (1 + e)
        gates[a] = larger if x[a] >= 0 else e * larger
    kept_scale_run(n * len(x), dropout, scale)


@jit(fastmath=REORDER)
def _scores(weight, scale, gates, out):
    width = weight.shape[1]
    for k in range(len(weight)):
        total = scale[0] - scale[0]
        for a in range(width):
            total += weight[k, a] * (gates[a] * scale[a]) * (gates[width + a] * scale[width + a])
        out[k] = total


@jit(parallel=True)
def _backward(starts, x, weight, grad, dropout, grad_x, sums):
    for piece in prange(len(starts) - 1):
        scale, gates = np.empty_like(x[0]), np.empty_like(x[0])
        for n in range(starts[piece], starts[piece + 1]):
            _gates(n, x[n], dropout, scale, gates)
            _backward_row(weight, grad[n], scale, gates, grad_x[n], sums[piece])


@jit()
def _backward_row(weight, grad, scale, gates, grad_x, sums):
    """Writes the gradient of a row of x and adds to those of the weights."""
    width = weight.shape[1]
    for a in range(width):
        grad_x[a] = 0
    for k in range(len(grad)):
        for a in range(width):
            grad_x[a] += grad[k] * weight[k, a]
            sums[k, a] += grad[k] * (gates[a] * scale[a]) * (gates[width + a] * scale[width + a])
    for a in range(width):
        left, right = gates[a], gates[width + a]
        flow = grad_x[a] * (scale[a] * scale[width + a])
        grad_x[a] = flow * right * (1 - left * left)
        grad_x[width + a] = flow * left * right * (1 - right)
