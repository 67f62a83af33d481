"""What attention over a graph is made of: blocks of rows that walk their edges as tiles of rows x edges x features."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from mil_zoo.kernels._triton.tools import LONG, Dropout, Kernel, block
from mil_zoo.kernels.csr import CSR, Transposed
from mil_zoo.kernels.long_rows import Rows

# Rows and edges of a tile. A window graph has 25 edges a row, nearest neighbours 5 to 9.
_TILES = [(1, 32, 4), (8, 1, 1), (8, 4, 4), (16, 1, 4), (16, 2, 4)]
if not triton.__version__.startswith("3.7."):  # which gives the mask of such tiles another layout, and stops
    _TILES.append((32, 1, 4))
ROW_BLOCKS = [{"BLOCK_R": rows, "BLOCK_E": edges, "num_warps": warps} for rows, edges, warps in _TILES]
INTERPRETED_ROW_BLOCKS = {"BLOCK_R": 128, "BLOCK_E": 32}


def all_rows(graph: CSR | Transposed) -> Rows:
    """All rows of a graph; kernels leave out the edges of the long ones."""
    indptr = graph.indptr.contiguous()
    return Rows(indptr, indptr[1:], None, len(indptr) - 1)


def walk(
    kernel: Kernel,
    graph: CSR | Transposed,
    rows: Rows,
    *,
    dropout: Dropout,
    heads: int,
    width: int,
    **arguments: Any,
) -> None:
    """Launches ``kernel`` over rows of a graph, or of its transpose.

    Args:
        kernel: one program a block of rows and head.
        graph: whose edges are walked.
        rows: all of its rows, or pieces of some.
        dropout: of the attention.
        heads: H.
        width: of the widest tile.
        **arguments: further ones of the kernel, by name.
    """
    kernel[lambda meta: (triton.cdiv(rows.count, meta["BLOCK_R"]) * heads,)](
        **rows._asdict(),
        indices=graph.indices.contiguous(),
        **dropout._asdict(),
        DROPOUT=dropout.threshold != 0,
        H=heads,
        BLOCK_F=block(width),
        **arguments,
    )


@triton.jit
def row_block(starts, ends, rows, count, H: tl.constexpr, BLOCK_R: tl.constexpr):
    """The head and the rows of a program: their places in the launch, whether they are there, their numbers, where
    each begins and ends, and the most edges one of them has."""
    h = tl.program_id(0) % H
    item = (tl.program_id(0) // H).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    here = item < count
    start = tl.load(starts + item, here, 0).to(tl.int64)
    end = tl.load(ends + item, here, 0).to(tl.int64)
    if rows is None:
        row = item
        end = tl.where(end - start > LONG, start, end)  # left to a launch over its pieces
    else:
        row = tl.load(rows + item, here, 0)
    return h, item, here, row, start, end, tl.max(end - start, 0)


@triton.jit
def edge_block(indices, start, end, done, BLOCK_E: tl.constexpr):
    """The next edges of each row ``[R, E]``: their positions, whether they are there, and their other ends."""
    e = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
    there = e < end[:, None]
    return e, there, tl.load(indices + e, there, 0).to(tl.int64)


@triton.jit
def tile_of_rows(values, row, h, here, column, H: tl.constexpr, F: tl.constexpr):
    """float32 ``[R, F]`` of ``values`` ``[N, H, F]``; zeros where a row is not there."""
    mask = here[:, None] & (column < F)[None, :]
    return tl.load(values + ((row * H + h) * F)[:, None] + column[None, :], mask, 0.0).to(tl.float32)


@triton.jit
def tile_of_edges(values, j, h, there, column, H: tl.constexpr, F: tl.constexpr):
    """float32 ``[R, E, F]`` of ``values`` ``[N, H, F]`` at the ends ``j`` of edges; zeros where there is no edge."""
    mask = there[:, :, None] & (column < F)[None, None, :]
    return tl.load(values + ((j * H + h) * F)[:, :, None] + column[None, None, :], mask, 0.0).to(tl.float32)


@triton.jit
def store_rows(out, item, h, values, here, column, H: tl.constexpr, F: tl.constexpr):
    """Writes ``[R, F]`` to ``out`` ``[N, H, F]``."""
    mask = here[:, None] & (column < F)[None, :]
    tl.store(out + ((item * H + h) * F)[:, None] + column[None, :], values.to(out.dtype.element_ty), mask)


@triton.jit
def softmax_step(top, total, x):
    """Takes scores ``x`` ``[R, E]`` into a running maximum and sum: both, what shrinks earlier sums, the weights."""
    new = tl.maximum(top, tl.max(x, 1))
    shrink = tl.exp(top - new)
    weight = tl.exp(x - new[:, None])
    return new, total * shrink + tl.sum(weight, 1), shrink, weight


@triton.jit
def finish_softmax(out, lse, acc, top, total, item, h, here, column, rows, H: tl.constexpr, F: tl.constexpr):
    """Writes the weighted sums and the log-sum-exp of a block of rows."""
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    store_rows(out, item, h, acc / total[:, None], here, column, H, F)
    # inf makes every weight of such a row 0; among pieces -inf makes the piece weigh nothing.
    marker = float("inf") if rows is None else -float("inf")
    tl.store(lse + item * H + h, tl.where(nothing, marker, top + tl.log(total)), here)
