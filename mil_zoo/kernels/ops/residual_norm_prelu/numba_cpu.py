"""Bias, residual, LayerNorm and PReLU as fused CPU kernels: one pass over the rows forward, one backward.

Backward keeps nothing but the inputs and the mean and deviation of every row. Gradients of the parameters are summed
by pieces of rows and the pieces in order, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.jit import REORDER, array, array_or_empty, jit
from mil_zoo.kernels._numba.segments import PIECE
from mil_zoo.kernels._numba.storage import computed, rounded, stored, widened
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty


class _Inputs(NamedTuple):
    """The op's arguments as arrays; a residual that is not there has length 0."""

    x: np.ndarray
    residual: np.ndarray
    bias: np.ndarray
    norm_weight: np.ndarray
    norm_bias: np.ndarray
    slope: np.ndarray


def forward(x, residual, bias, norm_weight, norm_bias, slope, eps):
    """See ``residual_norm_prelu``.

    Rows are read and written as they are, but float16, which is converted to float32 and back; vectors and what is
    computed are float32 or float64.
    """
    rows = stored(x), None if residual is None else stored(residual)
    vectors = (vector.to(computed(x)) for vector in (bias, norm_weight, norm_bias, slope))
    return _ResidualNormPReLU.apply(*rows, *vectors, eps).to(x.dtype)


class _ResidualNormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, bias, norm_weight, norm_bias, slope, eps):
        out, statistics = empty(x, *x.shape), bias.new_empty(len(x), 2)
        inputs = _arrays(x, residual, bias, norm_weight, norm_bias, slope)
        _forward(_pieces(x), inputs, inputs.bias.dtype.type(eps), statistics.numpy(), array(out))
        ctx.save_for_backward(x, residual, bias, norm_weight, norm_bias, slope, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *inputs, statistics = ctx.saved_tensors
        x, residual = inputs[:2]
        starts, grad_x = _pieces(x), empty(x, *x.shape)
        sums = statistics.new_zeros(len(starts) - 1, 4, x.shape[1])  # of each piece: bias, weight, norm's bias, slope
        _backward(starts, _arrays(*inputs), statistics.numpy(), (array(grad), array(grad_x)), sums.numpy())
        bias, weight, norm_bias, slope = sums.sum(0).unbind()
        return grad_x, None if residual is None else grad_x, bias, weight, norm_bias, slope.sum()[None], None


def _arrays(x, residual, *vectors):
    x_ = array(x)
    return _Inputs(x_, array_or_empty(residual, x_, 0, x.shape[1]), *map(array, vectors))


def _pieces(x):
    blocks(len(x), 8 * x.shape[1])  # sets the number of threads
    return np.minimum(np.arange(0, len(x) + PIECE, PIECE), len(x))


@jit(parallel=True)
def _forward(starts, inputs, eps, statistics, out):
    for piece in prange(len(starts) - 1):
        total = np.empty_like(inputs.bias)
        for n in range(starts[piece], starts[piece + 1]):
            _forward_row(n, inputs, eps, total, statistics[n], out[n])


@jit(fastmath=REORDER)
def _forward_row(n, inputs, eps, summed, statistics, out):
    """Writes a row of the output, its mean and its deviation; ``summed`` is room for a row."""
    x, residual, bias, norm_weight, norm_bias, slopes = inputs
    slope, width, number = slopes[0], len(bias), bias.dtype.type
    zero = number(0)
    _sum(x[n], residual[n : n + 1], bias, summed)
    total = square = zero
    for c in range(width):
        total += summed[c]
    mean = total / number(width)
    for c in range(width):
        centred = summed[c] - mean
        square += centred * centred
    rate = number(1 / np.sqrt(square / width + eps))
    statistics[0], statistics[1] = mean, rate
    for c in range(width):
        y = (summed[c] - mean) * rate * norm_weight[c] + norm_bias[c]
        out[c] = rounded(y if y > zero else y * slope, out)


@jit()
def _sum(x, residual, bias, out):
    if len(residual):
        for c in range(len(x)):
            out[c] = widened(x[c]) + bias[c] + widened(residual[0, c])
    else:
        for c in range(len(x)):
            out[c] = widened(x[c]) + bias[c]


@jit(parallel=True)
def _backward(starts, inputs, statistics, grads, sums):
    for piece in prange(len(starts) - 1):
        normed, flows = np.empty_like(inputs.bias), np.empty_like(inputs.bias)
        for n in range(starts[piece], starts[piece + 1]):
            grad, grad_x = grads
            _backward_row(n, inputs, statistics[n], (grad[n], grad_x[n]), (normed, flows), sums[piece])


@jit(fastmath=REORDER, inline=True)  # where its room is made, which is thus known to overlap nothing: half the time
def _backward_row(n, inputs, statistics, grads, room, sums):
    """Writes the gradient of a row of x and adds to the sums; ``grads`` are (of the output, of x)."""
    x, residual, bias, norm_weight, norm_bias, slopes = inputs
    (grad, grad_x), (normed, flows), (mean, rate) = grads, room, (statistics[0], statistics[1])
    slope, width, number = slopes[0], len(bias), bias.dtype.type
    zero = number(0)
    _sum(x[n], residual[n : n + 1], bias, normed)
    for c in range(width):
        flows[c] = widened(grad[c])
    flow_mean = flow_product = zero
    for c in range(width):
        z = (normed[c] - mean) * rate
        y = z * norm_weight[c] + norm_bias[c]
        flow = flows[c] if y > zero else flows[c] * slope
        sums[1, c] += flow * z
        sums[2, c] += flow
        sums[3, c] += zero if y > zero else flows[c] * y
        flow *= norm_weight[c]
        flow_mean += flow
        flow_product += flow * z
        normed[c], flows[c] = z, flow
    flow_mean /= number(width)
    flow_product /= number(width)
    for c in range(width):
        flow = rate * (flows[c] - flow_mean - normed[c] * flow_product)
        grad_x[c] = rounded(flow, grad_x)
        sums[0, c] += flow
