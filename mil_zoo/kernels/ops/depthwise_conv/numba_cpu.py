"""Gradients of depthwise convolution on a CPU: that of the kernels is a loop over pixels, a row of channels at a time.

PyTorch's convolution is fast, and the gradient of its input is a convolution too, of the gradient with the kernels
turned around; but the gradient of 7 x 7 kernels takes PyTorch ten times as long as this loop.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels import onednn
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.storage import computed, stored, widened
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.ops.depthwise_conv import reference

PIECES = 16  # of the image, each summed by one thread; a fixed number, so that the bits do not depend on the threads
PIXELS = 256  # that are summed before they are added to the rest, which keeps digits


def forward(x, weight, bias, shape):
    """See ``depthwise_conv``. Tensors are read and written as they are, but float16, which is converted to float32."""
    bias = None if bias is None else stored(bias)
    return _DepthwiseConv.apply(stored(x).contiguous(), stored(weight), bias, shape).to(x.dtype)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, shape):
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return _convolve(x, weight, bias, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _convolve(grad, weight.flip(2, 3), None, ctx.shape) if wanted_x else None,
            _kernel_gradient(x, grad, weight.shape, ctx.shape) if wanted_weight else None,
            grad.sum(0) if wanted_bias else None,
            None,
        )


def _convolve(x, weight, bias, shape):
    """PyTorch's convolution; of bfloat16 in float32 on a CPU that has no instructions for it."""
    if x.dtype == torch.bfloat16 and not onednn.multiplies_bfloat16():
        bias = None if bias is None else bias.float()
        return reference.forward(x.float(), weight.float(), bias, shape).to(x.dtype)
    return reference.forward(x, weight, bias, shape)


def _kernel_gradient(x, grad, size, shape):
    taps, rows = size[2] * size[3], np.linspace(0, shape[0], min(PIECES, shape[0]) + 1).astype(np.int64)
    sums = x.new_zeros(len(rows) - 1, taps, x.shape[1], dtype=computed(x)).numpy()
    pieces = blocks(len(sums), taps * x.numel() // len(sums))
    _sum_pieces(pieces, rows, (array(x), array(grad)), (*shape, *size[2:]), sums)
    return torch.from_numpy(sums.sum(0)).T.reshape(size).to(x.dtype)


@jit(parallel=True)
def _sum_pieces(pieces, rows, images, sizes, sums):
    for block in prange(len(pieces) - 1):
        for p in range(pieces[block], pieces[block + 1]):
            _sum_piece(rows[p], rows[p + 1], images, sizes, sums[p])


@jit(allocates=True)
def _sum_piece(first, last, images, sizes, total):
    part = np.empty_like(total)
    step = max(1, PIXELS // sizes[1])
    for top in range(first, last, step):
        part[:] = 0
        for y in range(top, min(top + step, last)):
            _add_row(y, images, sizes, part)
        total += part


@jit()
def _add_row(y, images, sizes, part):
    """Adds to ``part`` ``[taps, C]`` the products of row ``y`` of the gradient with what each tap saw of the image."""
    x, grad = images
    height, width, tall, wide = sizes
    for tap in range(tall * wide):
        down, right = tap // wide - tall // 2, tap % wide - wide // 2
        if 0 <= y + down < height:
            for column in range(max(0, -right), min(width, width - right)):
                _add_product(grad[y * width + column], x[(y + down) * width + column + right], part[tap])


@jit()
def _add_product(a, b, out):
    for c in range(len(out)):
        out[c] += widened(a[c]) * widened(b[c])
