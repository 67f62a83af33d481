"""Seeded dropout as a Triton kernel: one pass forward, the same pass backward, no mask kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.tools import Dropout, kept_scale, tuned


def forward(x, dropout_p, seed):
    """See ``seeded_dropout``."""
    return _SeededDropout.apply(x, Dropout.of(dropout_p, seed))


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dropout):
        ctx.dropout = dropout
        return _drop(x, dropout)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _drop(grad, ctx.dropout), None


def _drop(x, dropout):
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _scale[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x=x, out=out, size=x.numel(), **dropout._asdict())
    return out


@tuned((), [{"BLOCK": 2048, "num_warps": 8}], {"BLOCK": 2**16})
def _scale(x, out, size, threshold, low, high, kept, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, place < size, 0.0).to(tl.float32)
    value *= kept_scale(place, threshold, low, high, kept)
    tl.store(out + place, value.to(out.dtype.element_ty), place < size)
