"""Bias, residual, LayerNorm and PReLU as fused Triton kernels: one pass over the rows forward, one backward.

Backward keeps nothing but the inputs and the mean and deviation of every row. Gradients of the parameters are summed by
runs of rows and the runs in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.tools import block, float32, tuned

# Rows of a tile; its columns are all of them.
BLOCKS = [{"BLOCK_R": rows, "num_warps": warps} for rows, warps in ((1, 1), (4, 4), (8, 4), (16, 8))]
INTERPRETED_BLOCKS = {"BLOCK_R": 512}
RUNS = 1024  # of rows, at most about this many programs in backward


def forward(x, residual, bias, norm_weight, norm_bias, slope, eps):
    """See ``residual_norm_prelu``."""
    return _ResidualNormPReLU.apply(x, residual, bias, norm_weight, norm_bias, slope, float(eps))


class _ResidualNormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        *tensors, eps = inputs
        tensors = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        x, (count, width) = tensors[0], tensors[0].shape
        out, statistics = torch.empty_like(x), float32(x, count, 2)
        if count:
            _forward[lambda meta: (triton.cdiv(count, meta["BLOCK_R"]),)](
                **_named(tensors), statistics=statistics, out=out, count=count, eps=eps, C=width, BLOCK_F=block(width)
            )
        ctx.save_for_backward(*tensors, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, statistics = ctx.saved_tensors
        x, residual = tensors[:2]
        count, width = x.shape
        span = max(16, triton.next_power_of_2(triton.cdiv(count, RUNS)))  # of N alone, so that sums keep their order
        runs, grad_x = triton.cdiv(count, span), torch.empty_like(x)
        sums = float32(x, runs, 4, width)  # of each run: bias, weight, bias of the norm, slope
        if count:
            _backward[(runs,)](
                **_named(tensors),
                statistics=statistics,
                grad=grad.contiguous(),
                grad_x=grad_x,
                sums=sums,
                count=count,
                span=span,
                C=width,
                BLOCK_F=block(width),
            )
        sums = sums.sum(0)
        bias, weight, norm_bias = sums[:3].to(x.dtype)
        return (
            grad_x,
            None if residual is None else grad_x,
            bias,
            weight,
            norm_bias,
            sums[3].sum()[None].to(x.dtype),
            None,
        )


def _named(tensors):
    return dict(zip(("x", "residual", "bias", "norm_weight", "norm_bias", "slope"), tensors, strict=True))


@triton.jit
def _added(x, residual, bias, place, mask):
    value = tl.load(x + place, mask, 0.0).to(tl.float32) + bias[None, :]
    if residual is not None:
        value += tl.load(residual + place, mask, 0.0).to(tl.float32)
    return value


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _forward(
    x,
    residual,
    bias,
    norm_weight,
    norm_bias,
    slope,
    statistics,
    out,
    count,
    eps,
    C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    here, inside = n < count, column < C
    mask, place = here[:, None] & inside[None, :], (n * C)[:, None] + column[None, :]
    value = _added(x, residual, tl.load(bias + column, inside, 0.0).to(tl.float32), place, mask)
    mean = tl.sum(tl.where(mask, value, 0.0), 1) / C
    centred = tl.where(mask, value - mean[:, None], 0.0)
    rate = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    tl.store(statistics + 2 * n, mean, here)
    tl.store(statistics + 2 * n + 1, rate, here)
    weight = tl.load(norm_weight + column, inside, 0.0).to(tl.float32)
    y = centred * rate[:, None] * weight[None, :] + tl.load(norm_bias + column, inside, 0.0).to(tl.float32)[None, :]
    y = tl.where(y > 0, y, y * tl.load(slope).to(tl.float32))
    tl.store(out + place, y.to(out.dtype.element_ty), mask)


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _backward(
    x,
    residual,
    bias,
    norm_weight,
    norm_bias,
    slope,
    statistics,
    grad,
    grad_x,
    sums,
    count,
    span,
    C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Gradients of the rows, and sums over a run of ``span`` rows for those of the parameters."""
    run = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_F)
    inside = column < C
    shift = tl.load(bias + column, inside, 0.0).to(tl.float32)
    weight = tl.load(norm_weight + column, inside, 0.0).to(tl.float32)
    offset = tl.load(norm_bias + column, inside, 0.0).to(tl.float32)
    steepness = tl.load(slope).to(tl.float32)
    sum_bias = tl.zeros([BLOCK_F], tl.float32)
    sum_weight = tl.zeros([BLOCK_F], tl.float32)
    sum_offset = tl.zeros([BLOCK_F], tl.float32)
    sum_slope = tl.zeros([BLOCK_F], tl.float32)
    start = run * span
    end = tl.minimum(start + span, count)
    while start < end:
        n = start + tl.arange(0, BLOCK_R)
        here = n < end
        mask, place = here[:, None] & inside[None, :], (n * C)[:, None] + column[None, :]
        mean, rate = tl.load(statistics + 2 * n, here, 0.0), tl.load(statistics + 2 * n + 1, here, 0.0)
        z = (_added(x, residual, shift, place, mask) - mean[:, None]) * rate[:, None]
        z = tl.where(mask, z, 0.0)
        y = z * weight[None, :] + offset[None, :]
        g = tl.load(grad + place, mask, 0.0).to(tl.float32)
        flow = tl.where(y > 0, g, g * steepness)
        sum_weight += tl.sum(flow * z, 0)
        sum_offset += tl.sum(flow, 0)
        sum_slope += tl.sum(tl.where(y > 0, 0.0, g * y), 0)
        flow *= weight[None, :]
        flow_mean, flow_product = tl.sum(flow, 1) / C, tl.sum(flow * z, 1) / C
        flow = rate[:, None] * (flow - flow_mean[:, None] - z * flow_product[:, None])
        tl.store(grad_x + place, flow.to(grad_x.dtype.element_ty), mask)
        sum_bias += tl.sum(tl.where(mask, flow, 0.0), 0)
        start += BLOCK_R
    place = sums + 4 * run * C + column
    tl.store(place, sum_bias, inside)
    tl.store(place + C, sum_weight, inside)
    tl.store(place + 2 * C, sum_offset, inside)
    tl.store(place + 3 * C, sum_slope, inside)
