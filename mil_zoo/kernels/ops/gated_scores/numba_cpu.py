"""Scores of gated attention on a CPU: one pass over the products forward and one backward."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.hashing import Dropout, kept_scale_run
from mil_zoo.kernels._numba.jit import REORDER, array, jit
from mil_zoo.kernels._numba.loops import exp, tanh
from mil_zoo.kernels._numba.storage import computed, rounded, stored, widened
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty

PIECE = 1024  # rows whose gradients of the weights are summed first; fixed, so that the order of additions is


def forward(x, weight, dropout_p, seed):
    """See ``gated_scores``.

    ``x`` is read and its gradient written as it is, but float16, which is converted to float32 and back; weights,
    scores and what is computed are float32 or float64.
    """
    return _GatedScores.apply(stored(x), weight.to(computed(x)), dropout_p, seed).to(x.dtype)


class _GatedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, dropout_p, seed):
        out = weight.new_empty(len(x), len(weight))
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
        starts, grad_x = _pieces(x), empty(x, *x.shape)
        sums = weight.new_zeros(len(starts) - 1, *weight.shape)
        arrays = array(x), array(weight), array(grad)
        _backward(starts, *arrays, ctx.dropout, array(grad_x), sums.numpy())
        return grad_x, sums.sum(0), None, None


def _pieces(x):
    blocks(len(x), 16 * x.shape[1])  # sets the number of threads
    return np.minimum(np.arange(0, len(x) + PIECE, PIECE), len(x))


@jit(parallel=True)
def _forward(starts, x, weight, dropout, out):
    for piece in prange(len(starts) - 1):
        room = np.empty((2, x.shape[1]), weight.dtype)
        scale, gates = room[0], room[1]
        for n in range(starts[piece], starts[piece + 1]):
            _gates(n, x[n], dropout, scale, gates)
            _scores(weight, scale, gates, out[n])


@jit()
def _gates(n, x, dropout, scale, gates):
    """tanh of the first half of a row and sigmoid of the second, and what dropout multiplies each by."""
    width = len(x) // 2
    for a in range(width):
        gates[a] = tanh(widened(x[a]))
    for a in range(width, len(x)):
        y = widened(x[a])
        e = exp(-abs(y))
        larger = 1 / (1 + e)
        gates[a] = larger if y >= 0 else e * larger
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
        room = np.empty((3, x.shape[1]), weight.dtype)
        scale, gates, flows = room[0], room[1], room[2]
        for n in range(starts[piece], starts[piece + 1]):
            _gates(n, x[n], dropout, scale, gates)
            _backward_row(weight, grad[n], (scale, gates, flows), grad_x[n], sums[piece])


@jit()
def _backward_row(weight, grad, room, grad_x, sums):
    """Writes the gradient of a row of x and adds to those of the weights; ``room``: (scale, gates, room for a row)."""
    width, (scale, gates, flows) = weight.shape[1], room
    for a in range(width):
        flows[a] = 0
    for k in range(len(grad)):
        for a in range(width):
            flows[a] += grad[k] * weight[k, a]
            sums[k, a] += grad[k] * (gates[a] * scale[a]) * (gates[width + a] * scale[width + a])
    for a in range(width):
        left, right = gates[a], gates[width + a]
        flow = flows[a] * (scale[a] * scale[width + a])
        grad_x[a] = rounded(flow * right * (1 - left * left), grad_x)
        grad_x[width + a] = rounded(flow * left * right * (1 - right), grad_x)
