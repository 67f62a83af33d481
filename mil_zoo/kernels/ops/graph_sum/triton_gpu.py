"""Sums over neighbours as a Triton kernel over blocks of rows and columns; backward by the transpose."""

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
)
from mil_zoo.kernels._triton.segments import range_sum
from mil_zoo.kernels._triton.tools import block, float32, tuned
from mil_zoo.kernels.csr import CSR, Transposed
from mil_zoo.kernels.long_rows import Rows

WIDEST = 256  # columns of a program


def forward(x, graph, weight):
    """See ``graph_sum``. Returns ``[Nd, F]``."""
    return _GraphSum.apply(x, graph, None if weight is None else weight.contiguous())


class _GraphSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, graph, weight):
        ctx.graph, ctx.weight = graph, weight
        return _summed(x.contiguous(), graph, weight, edge=None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        back = ctx.graph.transposed
        return _summed(grad.contiguous(), back, ctx.weight, edge=back.edge), None, None


def _summed(x: Tensor, graph: CSR | Transposed, weight: Tensor | None, edge: Tensor | None) -> Tensor:
    """Sums over the rows of a CSR, or of its transpose, whose edges stand at the positions ``edge`` in the CSR."""
    out = x.new_empty(len(graph.indptr) - 1, x.shape[1])
    _launch(all_rows(graph), graph, x, weight, edge, out)
    if long := graph.long_rows:
        parts = float32(x, long.pieces.count, x.shape[1])
        _launch(long.pieces, graph, x, weight, edge, parts)
        out[long.rows] = range_sum(parts[:, None], long.first)[:, 0].to(out.dtype)
    return out


def _launch(
    rows: Rows, graph: CSR | Transposed, x: Tensor, weight: Tensor | None, edge: Tensor | None, out: Tensor
) -> None:
    width = x.shape[1]
    columns = block(width, WIDEST)
    parts = triton.cdiv(width, columns)
    _neighbour_sum[lambda meta: (triton.cdiv(rows.count, meta["BLOCK_R"]) * parts,)](
        **rows._asdict(),
        indices=graph.indices.contiguous(),
        x=x,
        weight=weight,
        edge=edge,
        out=out,
        F=width,
        PARTS=parts,
        BLOCK_F=columns,
    )


@tuned(("BLOCK_F",), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _neighbour_sum(
    starts,
    ends,
    rows,
    count,
    indices,
    x,
    weight,
    edge,
    out,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    part, item, here, _row, start, end, longest = row_block(starts, ends, rows, count, PARTS, BLOCK_R)
    column = part * BLOCK_F + tl.arange(0, BLOCK_F)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    done = longest * 0
    while done < longest:
        e, there, j = edge_block(indices, start, end, done, BLOCK_E)
        tile = tile_of_edges(x, j, 0, there, column, 1, F)
        if weight is not None:
            place = e
            if edge is not None:
                place = tl.load(edge + e, there, 0).to(tl.int64)
            tile *= tl.load(weight + place, there, 0.0).to(tl.float32)[:, :, None]
        acc += tl.sum(tile, 1)
        done += BLOCK_E
    store_rows(out, item, 0, acc, here, column, 1, F)
