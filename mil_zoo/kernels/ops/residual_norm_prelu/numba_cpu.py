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
from mil_zoo.kernels._numba.threads import blocks


class _Inputs(NamedTuple):
    """The op's arguments as arrays; a residual that is not there has length 0."""

    x: np.ndarray
    residual: np.ndarray
    bias: np.ndarray
    norm_weight: np.ndarray
    norm_bias: np.ndarray
    slope: np.ndarray


def forward(x, residual, bias, norm_weight, norm_bias, slope, eps):
    """See ``residual_norm_prelu``. Half precision is converted to float32 and back."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = (None if t is None else t.to(dtype) for t in (x, residual, bias, norm_weight, norm_bias, slope))
    return _ResidualNormPReLU.apply(*inputs, eps).to(x.dtype)


class _ResidualNormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, bias, norm_weight, norm_bias, slope, eps):
        out, statistics = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x), 2)
        inputs = _arrays(x, residual, bias, norm_weight, norm_bias, slope)
        _forward(_pieces(x), inputs, inputs.x.dtype.type(eps), statistics.numpy(), out.numpy())
        ctx.save_for_backward(x, residual, bias, norm_weight, norm_bias, slope, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *inputs, statistics = ctx.saved_tensors
        x, residual = inputs[:2]
        starts, grad_x = _pieces(x), torch.empty_like(x, memory_format=torch.contiguous_format)
        sums = x.new_zeros(len(starts) - 1, 4, x.shape[1])  # of each piece: bias, weight, bias of the norm, slope
        _backward(starts, _arrays(*inputs), statistics.numpy(), (array(grad), grad_x.numpy()), sums.numpy())
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
        for n in range(starts[piece], starts[piece + 1]):
            _forward_row(n, inputs, eps, statistics[n], out[n])


@jit(fastmath=REORDER)
def _forward_row(n, inputs, eps, statistics, out):
    x, residual, bias, norm_weight, norm_bias, slopes = inputs
    x, residual, slope = x[n], residual[n : n + 1], slopes[0]
    width, zero = len(x), x.dtype.type(0)
    _sum(x, residual, bias, out)
    total = square = zero
    for c in range(width):
        total += out[c]
    mean = total / x.dtype.type(width)
    for c in range(width):
        centred = out[c] - mean
        square += centred * centred
    rate = x.dtype.type(1 / np.sqrt(square / width + eps))
    statistics[0], statistics[1] = mean, rate
    for c in range(width):
        y = (out[c] - mean) * rate * norm_weight[c] + norm_bias[c]
        out[c] = y if y > zero else y * slope


@jit()
def _sum(x, residual, bias, out):
    if len(residual):
        for c in range(len(x)):
            out[c] = x[c] + bias[c] + residual[0, c]
    else:
        for c in range(len(x)):
            out[c] = x[c] + bias[c]


@jit(parallel=True)
def _backward(starts, inputs, statistics, grads, sums):
    for piece in prange(len(starts) - 1):
        normed = np.empty_like(inputs.bias)
        for n in range(starts[piece], starts[piece + 1]):
            grad, grad_x = grads
            _backward_row(n, inputs, statistics[n], (grad[n], grad_x[n], normed), sums[piece])


@jit(fastmath=REORDER)
def _backward_row(n, inputs, statistics, rows, sums):
    """Writes the gradient of a row of x and adds to the sums; ``rows`` is (gradient of the output, that of x, room)."""
    x, residual, bias, norm_weight, norm_bias, slopes = inputs
    x, residual, slope = x[n], residual[n : n + 1], slopes[0]
    grad, grad_x, normed = rows
    width, zero, (mean, rate) = len(x), x.dtype.type(0), (statistics[0], statistics[1])
    _sum(x, residual, bias, normed)
    flow_mean = flow_product = zero
    for c in range(width):
        z = (normed[c] - mean) * rate
        y = z * norm_weight[c] + norm_bias[c]
        flow = grad[c] if y > zero else grad[c] * slope
        sums[1, c] += flow * z
        sums[2, c] += flow
        sums[3, c] += zero if y > zero else grad[c] * y
        flow *= norm_weight[c]
        flow_mean += flow
        flow_product += flow * z
        normed[c], grad_x[c] = z, flow
    flow_mean /= x.dtype.type(width)
    flow_product /= x.dtype.type(width)
    for c in range(width):
        grad_x[c] = rate * (grad_x[c] - flow_mean - normed[c] * flow_product)
        sums[0, c] += grad_x[c]
