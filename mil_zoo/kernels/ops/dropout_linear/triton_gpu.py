"""Picked rows, dropout and linear maps on a GPU: a Triton kernel packs rows, a matrix product maps them.

Packed rows live for one block of rows and are packed again in backward. The gradients of copies of a row are added in
the order of the copies, without atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels import matrix_units
from mil_zoo.kernels._triton.products import product
from mil_zoo.kernels._triton.tools import Dropout, block, float32, kept_scale, tuned

BLOCK = 2**17  # rows packed at a time: 512 MB at 1024 features in float32
SPAN = 64  # rows whose share of the token's gradient one program sums
WIDEST = 256  # columns of one program

BLOCKS = [{"BLOCK_R": rows, "num_warps": warps} for rows, warps in ((4, 4), (8, 4), (16, 8))]
INTERPRETED_BLOCKS = {"BLOCK_R": 1024}


class _Plan(NamedTuple):
    """What both directions share. ``index`` is int32 ``[M]``, or None for every row once."""

    index: Tensor | None
    count: int
    sizes: list[int]
    dropout: Dropout
    precision: torch.dtype

    def blocks(self) -> list[tuple[int, int]]:
        """First row and end of each block."""
        return [(start, min(start + BLOCK, self.count)) for start in range(0, self.count, BLOCK)]

    def pack(self, first: int, end: int, x: Tensor, token: Tensor | None) -> Tensor:
        """``[end - first, D]`` in ``precision``: rows ``first:end``, dropped out."""
        if self.index is None and self.dropout.threshold == 0:
            return x[first:end].to(self.precision)
        width = x.shape[1]
        packed = x.new_empty(end - first, width, dtype=self.precision)
        _pack[self.grid(end - first, width)](
            x=x, token=token, index=self.index, packed=packed, num_rows=len(x), **self.common(first, end, width)
        )
        return packed

    def unpack(self, first: int, end: int, flow: Tensor, grad_x: Tensor | None, grad_token: Tensor | None) -> None:
        """Adds the gradient ``flow`` of ``pack`` to those of the rows and of the token, which are float32."""
        width = flow.shape[1]
        common = self.common(first, end, width)
        if grad_token is not None and self.index is not None:
            parts = float32(flow, triton.cdiv(end - first, SPAN), width)
            _unpack_token[len(parts), triton.cdiv(width, common["BLOCK_F"])](
                index=self.index, flow=flow, parts=parts, span=SPAN, **common
            )
            grad_token += parts.sum(0)
        if grad_x is None:
            return
        order = starts = None
        if self.index is not None:
            ordered, order = self.index[first:end].sort(stable=True)
            starts = torch.searchsorted(ordered, torch.arange(len(grad_x) + 1, dtype=torch.int32, device=flow.device))
        _unpack_rows[self.grid(len(grad_x), width)](
            order=order,
            starts=starts,
            flow=flow,
            grad_x=grad_x,
            num_rows=len(grad_x),
            ADD=self.count > BLOCK,
            **common,
        )

    def common(self, first: int, end: int, width: int) -> dict[str, object]:
        """The arguments that all three kernels take."""
        dropping = self.dropout.threshold != 0
        columns = block(width, WIDEST)
        return {"first": first, "count": end - first, **self.dropout._asdict()} | {
            "DROPOUT": dropping,
            "D": width,
            "BLOCK_F": columns,
        }

    @staticmethod
    def grid(rows: int, width: int):
        return lambda meta: (triton.cdiv(rows, meta["BLOCK_R"]), triton.cdiv(width, meta["BLOCK_F"]))


def forward(x, weight, bias, sizes, index, token, dropout_p, seed, precision):
    """See ``dropout_linear``."""
    index, count = (None, len(x)) if index is None else (index.int().contiguous(), len(index))
    plan = _Plan(index, count, sizes, Dropout.of(dropout_p, seed), precision)
    return _DropoutLinear.apply(x, weight, bias, token, plan)


class _DropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, token, plan):
        x, token = x.contiguous(), None if token is None else token.contiguous()
        out, columns = x.new_empty(plan.count, len(weight)), weight.to(plan.precision).T
        for first, end in plan.blocks():
            mapped = _product(plan.pack(first, end, x, token), columns)
            if bias is None:
                out[first:end] = mapped
            else:
                torch.add(mapped, bias, out=out[first:end])
        ctx.save_for_backward(x, weight, token)
        ctx.plan, ctx.biased = plan, bias is not None
        ctx.set_materialize_grads(False)
        return out.split(plan.sizes, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, weight, token = ctx.saved_tensors
        plan, matrix = ctx.plan, weight.to(ctx.plan.precision)
        wanted = ctx.needs_input_grad
        # One block of rows writes the gradients, several add to what is there.
        several = len(plan.blocks()) != 1
        new = torch.zeros_like if several else torch.empty_like
        grad_x = new(x, dtype=torch.float32 if several else x.dtype) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = weight.new_zeros(len(weight), dtype=torch.float32) if ctx.biased else None
        grad_token = torch.zeros_like(token, dtype=torch.float32) if token is not None and wanted[3] else None
        for first, end in plan.blocks():
            parts = zip(grads, plan.sizes, strict=True)
            grad = torch.cat([x.new_zeros(end - first, n) if g is None else g[first:end] for g, n in parts], dim=1)
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
            grad = grad.to(plan.precision)
            grad_weight += torch.mm(grad.T, plan.pack(first, end, x, token))
            if grad_x is not None or grad_token is not None:
                plan.unpack(first, end, _product(grad, matrix), grad_x, grad_token)
        found = grad_x, grad_weight, grad_bias, grad_token
        return *(None if g is None else g.to(x.dtype) for g in found), None


def _product(a, b):
    return (product if matrix_units.pays(a, b.shape[1]) else torch.mm)(a, b)


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _pack(
    x,
    token,
    index,
    packed,
    num_rows,
    first,
    count,
    threshold,
    low,
    high,
    kept,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    here, inside = m < count, column < D
    row = m + first
    if index is not None:
        row = tl.load(index + m + first, here, 0).to(tl.int64)
    there = here & (row >= 0) & (row < num_rows)
    value = tl.load(x + (row * D)[:, None] + column[None, :], there[:, None] & inside[None, :], 0.0).to(tl.float32)
    if token is not None:
        constant = tl.load(token + column, inside, 0.0).to(tl.float32)
        value = tl.where((row < 0)[:, None], constant[None, :], value)
    if DROPOUT:
        value *= kept_scale(((m + first) * D)[:, None] + column[None, :], threshold, low, high, kept)
    place = (m * D)[:, None] + column[None, :]
    tl.store(packed + place, value.to(packed.dtype.element_ty), here[:, None] & inside[None, :])


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS, restore=("grad_x",))
def _unpack_rows(
    order,
    starts,
    flow,
    grad_x,
    num_rows,
    first,
    count,
    threshold,
    low,
    high,
    kept,
    ADD: tl.constexpr,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The gradient of each row from its copies among rows ``first`` to ``first + count``, in their order: written, or
    added to what is there."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    here, inside = n < num_rows, column < D
    if order is not None:
        start, end = tl.load(starts + n, here, 0), tl.load(starts + n + 1, here, 0)
    else:
        start = n - first
        end = tl.where((start >= 0) & (start < count) & here, start + 1, start)
    total = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    most = tl.max(end - start, 0)
    done = most * 0
    while done < most:
        there = start + done < end
        m = start + done
        if order is not None:
            m = tl.load(order + m, there, 0)
        mask = there[:, None] & inside[None, :]
        part = tl.load(flow + (m * D)[:, None] + column[None, :], mask, 0.0).to(tl.float32)
        if DROPOUT:
            part *= kept_scale(((m + first) * D)[:, None] + column[None, :], threshold, low, high, kept)
        total += part
        done += 1
    place = grad_x + (n * D)[:, None] + column[None, :]
    if ADD:
        mask = (end > start)[:, None] & inside[None, :]
        tl.store(place, tl.load(place, mask, 0.0) + total, mask)
    else:
        tl.store(place, total.to(grad_x.dtype.element_ty), here[:, None] & inside[None, :])


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _unpack_token(
    index,
    flow,
    parts,
    span,
    first,
    count,
    threshold,
    low,
    high,
    kept,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sums of the token's gradient over runs of ``span`` rows."""
    run = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = column < D
    total = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    start = run * span
    end = tl.minimum(start + span, count)
    while start < end:
        m = start + tl.arange(0, BLOCK_R)
        masked = (m < end) & (tl.load(index + m + first, m < end, 0) < 0)
        mask = masked[:, None] & inside[None, :]
        part = tl.load(flow + (m * D)[:, None] + column[None, :], mask, 0.0).to(tl.float32)
        if DROPOUT:
            part *= kept_scale(((m + first) * D)[:, None] + column[None, :], threshold, low, high, kept)
        total += part
        start += BLOCK_R
    tl.store(parts + run * D + column, tl.sum(total, 0), inside)
