"""Selective scan on a GPU: the autograd function of the kernels in ``triton_kernels``."""

from __future__ import annotations

import torch
import triton
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton import tools
from mil_zoo.kernels._triton.segments import Pieces
from mil_zoo.kernels._triton.tools import block, float32
from mil_zoo.kernels.ops.selective_scan import triton_kernels as kernels

CHUNK = 64  # instances
WIDEST = 1024 if tools.INTERPRETED else 64  # channels of one program
PROGRAMS = 1024  # of the last kernel at a time: a quarter of a gigabyte of scratch memory with 16 states


def forward(inputs, softplus, offsets):
    """See ``selective_scan``. Returns y ``[L, d]`` and the last states ``[bags, d, n]``."""
    y, last = _SelectiveScan.apply(*inputs, softplus, Pieces.of(offsets, len(inputs.u), piece=CHUNK))
    return y, last.to(y.dtype)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        *tensors, softplus, pieces = arguments
        named = _named(tensors)
        u, (channels, states) = named["u"], named["A"].shape
        count, bags = len(pieces.segment), len(pieces.first) - 1
        blocks = _blocks(channels, states)
        grid = triton.cdiv(channels, blocks["BLOCK_D"])
        entering, total = float32(u, count, states, channels), float32(u, count, channels)
        scan = {name: named[name] for name in ("u", "delta", "delta_bias", "A", "B")}
        kernels.run_chunks[count, grid](
            **scan, starts=pieces.starts, leaving=entering, total=total, SOFTPLUS=softplus, **blocks
        )
        last = float32(u, bags, channels, states)
        kernels.carry[bags, grid](first=pieces.first, total=total, A=named["A"], state=entering, last=last, **blocks)
        y = torch.empty_like(u)
        kernels.forward[count, grid](**named, starts=pieces.starts, entering=entering, y=y, SOFTPLUS=softplus, **blocks)
        ctx.save_for_backward(*named.values(), entering, total)
        ctx.settings = softplus, pieces
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        *tensors, entering, total = ctx.saved_tensors
        softplus, pieces = ctx.settings
        named, grad = _named(tensors), grad.contiguous()
        u, (channels, states) = named["u"], named["A"].shape
        count, length = len(pieces.segment), len(u)
        blocks = _blocks(channels, states)
        grid = triton.cdiv(channels, blocks["BLOCK_D"])
        carried = float32(u, count, states, channels)
        back = {name: named[name] for name in ("delta", "delta_bias", "A", "C", "z")}
        kernels.run_chunks_back[count, grid](
            **back, starts=pieces.starts, grad=grad, leaving=carried, SOFTPLUS=softplus, **blocks
        )
        kernels.carry_back[len(pieces.first) - 1, grid](
            first=pieces.first, total=total, A=named["A"], state=carried, **blocks
        )
        programs = min(count * grid, PROGRAMS)
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(u)
        grad_z = None if named["z"] is None else torch.empty_like(u)
        grad_A, sums = float32(u, count, states, channels), float32(u, count, 2, channels)
        grad_B, grad_C = float32(u, grid, length, states), float32(u, grid, length, states)
        kernels.backward[(programs,)](
            **named,
            starts=pieces.starts,
            entering=entering,
            carried=carried,
            grad=grad,
            scratch=float32(u, programs, CHUNK, blocks["BLOCK_S"], blocks["BLOCK_D"]),
            grad_u=grad_u,
            grad_delta=grad_delta,
            grad_z=grad_z,
            grad_A=grad_A,
            grad_B=grad_B,
            grad_C=grad_C,
            sums=sums,
            count=count,
            num_rows=length,
            SOFTPLUS=softplus,
            CHUNK=CHUNK,
            **blocks,
        )
        grad_D, grad_bias = sums.sum(0)
        found = [grad_u, grad_delta, grad_A.sum(0).T, grad_B.sum(0), grad_C.sum(0), grad_D, grad_z, grad_bias]
        given = [None if tensor is None else value.to(u.dtype) for tensor, value in zip(tensors, found, strict=True)]
        return *given, None, None


def _named(tensors):
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in zip(names, tensors, strict=True)}


def _blocks(channels, states):
    return {"D_": channels, "S_": states, "BLOCK_D": block(channels, WIDEST), "BLOCK_S": block(states)}
