"""Softmax aggregation as Triton kernels; what is said of the CPU's holds here too."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.rows import (
    INTERPRETED_ROW_BLOCKS,
    ROW_BLOCKS,
    all_rows,
    edge_block,
    row_block,
    store_rows,
    tile_of_edges,
    tile_of_rows,
)
from mil_zoo.kernels._triton.segments import join_softmax, range_sum
from mil_zoo.kernels._triton.tools import LOWEST, block, float32, tuned
from mil_zoo.kernels.csr import CSR, Transposed
from mil_zoo.kernels.long_rows import Rows

WIDEST = 64  # columns of a program


def forward(x, t, graph):
    """See ``graph_softmax_sum``. Returns ``[Nd, F]``."""
    return _GraphSoftmaxSum.apply(x, t, graph)


class _GraphSoftmaxSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, t, graph):
        x, width = x.contiguous(), x.shape[1]
        out, lse = x.new_empty(graph.num_dst, width), float32(x, graph.num_dst, width)
        _walk(_forward, graph, all_rows(graph), x=x, t=t, out=out, lse=lse)
        if long := graph.long_rows:
            part, part_lse = (float32(x, long.pieces.count, width) for _ in range(2))
            _walk(_forward, graph, long.pieces, x=x, t=t, out=part, lse=part_lse)
            joined, lse[long.rows] = join_softmax(part[:, :, None], part_lse, long.first)
            out[long.rows] = joined[:, :, 0].to(out.dtype)
        ctx.save_for_backward(x, t, out, lse)
        ctx.graph = graph
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, t, out, lse = ctx.saved_tensors
        back, saved = ctx.graph.transposed, {"t": t, "out": out, "lse": lse, "grad": grad.contiguous()}
        grad_x, grad_t = torch.empty_like(x), float32(x, len(x), _parts(x))
        _walk(_backward, back, all_rows(back), x=x, **saved, grad_x=grad_x, grad_t=grad_t)
        total = grad_t.double().sum()
        if long := back.long_rows:
            part, part_t = float32(x, long.pieces.count, x.shape[1]), float32(x, long.pieces.count, _parts(x))
            _walk(_backward, back, long.pieces, x=x, **saved, grad_x=part, grad_t=part_t)
            grad_x[long.rows] = range_sum(part[:, None], long.first)[:, 0].to(x.dtype)
            total = total + part_t.double().sum()
        return grad_x, total.to(t.dtype)[None], None


def _parts(x: Tensor) -> int:
    """How many programs share the columns of a row."""
    return triton.cdiv(x.shape[1], block(x.shape[1], WIDEST))


def _walk(kernel, graph: CSR | Transposed, rows: Rows, *, x: Tensor, **arrays: Tensor) -> None:
    parts = _parts(x)
    kernel[lambda meta: (triton.cdiv(rows.count, meta["BLOCK_R"]) * parts,)](
        **rows._asdict(),
        indices=graph.indices.contiguous(),
        x=x,
        F=x.shape[1],
        PARTS=parts,
        BLOCK_F=block(x.shape[1], WIDEST),
        **arrays,
    )


@tuned(("BLOCK_F",), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _forward(
    starts,
    ends,
    rows,
    count,
    indices,
    x,
    t,
    out,
    lse,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    part, item, here, _row, start, end, longest = row_block(starts, ends, rows, count, PARTS, BLOCK_R)
    column = part * BLOCK_F + tl.arange(0, BLOCK_F)
    slope = tl.load(t).to(tl.float32)
    top = tl.full([BLOCK_R, BLOCK_F], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    done = longest * 0
    while done < longest:
        _edge, there, j = edge_block(indices, start, end, done, BLOCK_E)
        tile = tile_of_edges(x, j, 0, there, column, 1, F)
        score = tl.where(there[:, :, None], slope * tile, -float("inf"))
        new = tl.maximum(top, tl.max(score, 1))
        shrink = tl.exp(top - new)
        weight = tl.exp(score - new[:, None, :])
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink + tl.sum(weight * tile, 1)
        top = new
        done += BLOCK_E
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    store_rows(out, item, 0, acc / total, here, column, 1, F)
    # inf makes every weight of such a row 0; among pieces -inf makes the piece weigh nothing.
    marker = float("inf") if rows is None else -float("inf")
    store_rows(lse, item, 0, tl.where(nothing, marker, top + tl.log(total)), here, column, 1, F)


@tuned(("BLOCK_F",), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _backward(
    starts,
    ends,
    rows,
    count,
    indices,
    x,
    t,
    out,
    lse,
    grad,
    grad_x,
    grad_t,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of the sources, and what each adds to that of t, by rows of the transposed graph."""
    part, item, here, row, start, end, longest = row_block(starts, ends, rows, count, PARTS, BLOCK_R)
    column = part * BLOCK_F + tl.arange(0, BLOCK_F)
    slope = tl.load(t).to(tl.float32)
    own = tile_of_rows(x, row, 0, here, column, 1, F)[:, None, :]
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    spread = tl.zeros([BLOCK_R], tl.float32)
    done = longest * 0
    while done < longest:
        _edge, there, i = edge_block(indices, start, end, done, BLOCK_E)
        weight = tl.exp(slope * own - tile_of_edges(lse, i, 0, there, column, 1, F))
        inside = there[:, :, None] & (column < F)[None, None, :]
        flow = tl.where(inside, tile_of_edges(grad, i, 0, there, column, 1, F) * weight, 0.0)
        away = own - tile_of_edges(out, i, 0, there, column, 1, F)
        acc += tl.sum(flow * (1 + slope * away), 1)
        spread += tl.sum(tl.sum(flow * away * away, 2), 1)
        done += BLOCK_E
    store_rows(grad_x, item, 0, acc, here, column, 1, F)
    tl.store(grad_t + item * PARTS + part, spread, here)
