"""Sums and log-sum-exps over the rows of segments as Triton kernels.

A segment may hold a million rows and another one: they are cut into pieces, one program each, and the same kernel joins
the pieces of a segment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mil_zoo.kernels._triton.tools import INTERPRETED, LOWEST, block, tuned

PIECE = 2**14 if INTERPRETED else 1024  # rows; fixed, so that the order of additions is
WIDEST = 128  # columns of one program

BLOCKS = [{"BLOCK_N": n, "num_warps": warps} for n, warps in ((16, 2), (32, 4), (64, 4), (64, 8), (256, 8))]
INTERPRETED_BLOCKS = {"BLOCK_N": 4096}


class Pieces(NamedTuple):
    """Segments cut into pieces of at most ``PIECE`` rows.

    Attributes:
        starts: int64 ``[P + 1]``, where each piece starts; P is a bound, and pieces that are too many are empty.
        segment: int64 ``[P]``, the segment that a piece is of.
        first: int64 ``[B + 1]``, the first piece of each segment.
    """

    starts: Tensor
    segment: Tensor
    first: Tensor

    @classmethod
    def of(cls, offsets: Tensor, num_rows: int) -> Pieces:
        """Cuts segments ``offsets[b]:offsets[b + 1]``, which may be empty, without waiting for the device."""
        offsets, num_segments = offsets.long(), len(offsets) - 1
        first = torch.zeros_like(offsets)
        first[1:] = ((offsets.diff() + PIECE - 1) // PIECE).cumsum(0)
        piece = torch.arange(num_rows // PIECE + num_segments, device=offsets.device)
        segment = (torch.searchsorted(first, piece, right=True) - 1).clamp(max=num_segments - 1)
        starts = (offsets[segment] + PIECE * (piece - first[segment])).clamp(max=num_rows)
        return cls(torch.cat([starts, offsets[-1:]]), segment, first)


def segment_sum(values: Tensor, pieces: Pieces, weight: Tensor | None = None) -> Tensor:
    """The sum of ``weight[n, h] * values[n, h]`` over the rows n of each segment.

    Args:
        values: ``[N, H or 1, F]``.
        pieces: of the segments of the N rows.
        weight: ``[N, H]``, or None for ones.

    Returns:
        float32 ``[B, H, F]``; zeros for an empty segment.
    """
    return range_sum(range_sum(values, pieces.starts, weight), pieces.first)


def range_sum(values: Tensor, bounds: Tensor, weight: Tensor | None = None) -> Tensor:
    """``segment_sum`` by one program for each range ``bounds[r]:bounds[r + 1]`` of rows."""
    _, value_heads, width = values.shape
    heads = value_heads if weight is None else weight.shape[1]
    out = values.new_empty(len(bounds) - 1, heads, width, dtype=torch.float32)
    columns = block(width, WIDEST)
    grid = len(out), heads, triton.cdiv(width, columns)
    weight = None if weight is None else weight.contiguous()
    _sum[grid](bounds, weight, values.contiguous(), out, H=heads, HV=value_heads, F=width, BLOCK_F=columns)
    return out


def segment_logsumexp(values: Tensor, pieces: Pieces) -> Tensor:
    """float32 ``[B, F]``: log of the sum of exponentials of ``values`` ``[N, F]`` over the rows of each segment.

    -inf where a segment is empty or holds nothing else.
    """
    return range_logsumexp(range_logsumexp(values, pieces.starts), pieces.first)


def range_logsumexp(values: Tensor, bounds: Tensor) -> Tensor:
    """``segment_logsumexp`` by one program for each range of rows."""
    width = values.shape[1]
    out = values.new_empty(len(bounds) - 1, width, dtype=torch.float32)
    columns = block(width, WIDEST)
    _logsumexp[len(out), triton.cdiv(width, columns)](bounds, values.contiguous(), out, F=width, BLOCK_F=columns)
    return out


def join_softmax(out: Tensor, lse: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Joins softmax-weighted sums over the pieces of rows.

    Args:
        out: float32 ``[P, H, F]``, of each piece.
        lse: float32 ``[P, H]``, -inf where a piece holds nothing.
        first: int64 ``[L + 1]``, the first piece of each row.

    Returns:
        ``[L, H, F]`` and ``[L, H]`` of the rows; a row that holds nothing gets zeros and inf.
    """
    joined = range_logsumexp(lse, first)
    joined = joined.masked_fill(joined == -torch.inf, torch.inf)
    weight = (lse - joined.repeat_interleave(first.diff(), 0, output_size=len(lse))).exp()
    return range_sum(out, first, weight), joined


@tuned(("H", "HV", "BLOCK_F"), BLOCKS, INTERPRETED_BLOCKS)
def _sum(
    bounds, weight, values, out, H: tl.constexpr, HV: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    start, end = tl.load(bounds + r), tl.load(bounds + r + 1)
    total = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (column < F)[None, :]
        tile = tl.load(values + ((n * HV + h % HV) * F)[:, None] + column[None, :], mask, 0.0).to(tl.float32)
        if weight is not None:
            tile *= tl.load(weight + n * H + h, n < end, 0.0).to(tl.float32)[:, None]
        total += tile
        start += BLOCK_N
    tl.store(out + (r * H + h) * F + column, tl.sum(total, 0), column < F)


@tuned(("BLOCK_F",), BLOCKS, INTERPRETED_BLOCKS)
def _logsumexp(bounds, values, out, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start, end = tl.load(bounds + r), tl.load(bounds + r + 1)
    # Each element of the tile keeps a maximum and a sum of its own; they are joined at the end.
    top = tl.full([BLOCK_N, BLOCK_F], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (column < F)[None, :]
        x = tl.load(values + (n * F)[:, None] + column[None, :], mask, -float("inf")).to(tl.float32)
        new = tl.maximum(top, x)
        total = total * tl.exp(top - new) + tl.exp(x - new)
        top = new
        start += BLOCK_N
    highest = tl.max(top, 0)
    summed = tl.sum(total * tl.exp(top - highest[None, :]), 0)
    nothing = summed == 0
    result = tl.where(nothing, -float("inf"), highest + tl.log(tl.where(nothing, 1.0, summed)))
    tl.store(out + r * F + column, result, column < F)
