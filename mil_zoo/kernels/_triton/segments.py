"""Segments of rows cut into pieces, and sums and log-sum-exps over them, as Triton kernels.

A segment may hold a million rows and another one: they are cut into pieces, one program each, and the same kernel joins
the pieces of a segment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mil_zoo.kernels import devices
from mil_zoo.kernels._triton.tools import INTERPRETED, LOWEST, block, tuned

PIECE = 2**14 if INTERPRETED else 256  # rows; fixed, so that the order of additions is
WIDEST = 128  # columns of one program

BLOCKS = [{"BLOCK_N": n, "num_warps": warps} for n, warps in ((16, 2), (32, 4), (64, 4), (64, 8), (256, 8))]
INTERPRETED_BLOCKS = {"BLOCK_N": 4096}


class Pieces(NamedTuple):
    """Segments cut into pieces of a number of rows, or fewer at a segment's end.

    Attributes:
        starts: int64 ``[P + 1]``, where each piece starts; P is a bound, and pieces that are too many are empty.
        segment: int64 ``[P]``, the segment that a piece is of.
        first: int64 ``[B + 1]``, the first piece of each segment.
    """

    starts: Tensor
    segment: Tensor
    first: Tensor

    @classmethod
    def of(cls, offsets: Tensor, num_rows: int, empty: bool = False, piece: int = PIECE) -> Pieces:
        """Cuts segments ``offsets[b]:offsets[b + 1]`` without waiting for the device.

        Args:
            offsets: integer ``[B + 1]``, rising from 0 to ``num_rows`` (``devices.require``).
            num_rows: of all segments.
            empty: whether a segment may be empty.
            piece: rows of a piece.
        """
        num_bags = len(offsets) - 1
        num_pieces = num_rows // piece + num_bags
        sizes = num_pieces + 1, num_pieces, num_bags + 1, 1
        even = [size + size % 2 for size in sizes]  # so that each begins at a multiple of 16 bytes
        numbers = torch.empty(sum(even), dtype=torch.int64, device=offsets.device).split(even)
        starts, segment, first, valid = (part[:size] for part, size in zip(numbers, sizes, strict=True))
        _cut[(1,)](
            offsets=offsets.contiguous(),
            starts=starts,
            segment=segment,
            first_piece=first,
            valid=valid,
            num_bags=num_bags,
            num_pieces=num_pieces,
            num_rows=num_rows,
            LEAST=0 if empty else 1,
            PIECE=piece,
        )
        devices.require(
            valid[0] == 1,
            lambda: f"offsets must rise from 0 to {num_rows}, and no bag may be empty: {offsets.tolist()}",
        )
        return cls(starts, segment, first)


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
    _sum[len(out), heads, triton.cdiv(width, columns)](
        bounds=bounds,
        weight=None if weight is None else weight.contiguous(),
        values=values.contiguous(),
        out=out,
        H=heads,
        HV=value_heads,
        F=width,
        BLOCK_F=columns,
    )
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
    _logsumexp[len(out), triton.cdiv(width, columns)](
        bounds=bounds, values=values.contiguous(), out=out, F=width, BLOCK_F=columns
    )
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


@tuned((), [{"BLOCK": 1024, "num_warps": 8}], {"BLOCK": 1024})
def _cut(
    offsets,
    starts,
    segment,
    first_piece,
    valid,
    num_bags,
    num_pieces,
    num_rows,
    LEAST: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: how many pieces each bag has, added up; then the bag of each piece, found by bisection."""
    lane = tl.arange(0, BLOCK)
    total = tl.sum(lane.to(tl.int64) * 0, 0)
    wrong = tl.sum(lane * 0, 0)
    tl.store(first_piece, total)
    bag = total
    while bag < num_bags:
        b = bag + lane
        here = b < num_bags
        start, end = tl.load(offsets + b, here, 0).to(tl.int64), tl.load(offsets + b + 1, here, 0).to(tl.int64)
        count = tl.where(here & (end > start), (end - start + PIECE - 1) // PIECE, 0)
        tl.store(first_piece + b + 1, total + tl.cumsum(count, 0), here)
        total += tl.sum(count, 0)
        wrong += tl.sum((here & (end - start < LEAST)).to(tl.int32), 0)
        bag += BLOCK
    ends = (tl.load(offsets) == 0) & (tl.load(offsets + num_bags) == num_rows)
    tl.store(valid, tl.where((wrong == 0) & ends, 1, 0).to(tl.int64))
    tl.debug_barrier()  # what was stored above is read below
    piece = tl.sum(lane.to(tl.int64) * 0, 0)
    while piece < num_pieces + 1:
        p = piece + lane
        low = tl.zeros([BLOCK], tl.int64)
        high = low + num_bags
        left = piece * 0 + num_bags
        while left > 0:
            middle = (low + high) // 2
            before = tl.load(first_piece + middle + 1, middle < num_bags, 0) <= p
            low = tl.where(before & (low < high), middle + 1, low)
            high = tl.where(before, high, middle)
            left = left // 2
        b = tl.minimum(low, num_bags - 1)
        begin = tl.load(offsets + b).to(tl.int64) + PIECE * (p - tl.load(first_piece + b))
        begin = tl.where(p < num_pieces, tl.minimum(tl.maximum(begin, 0), num_rows), num_rows)
        tl.store(starts + p, begin, p < num_pieces + 1)
        tl.store(segment + p, b, p < num_pieces)
        piece += BLOCK


@tuned(("H", "HV", "BLOCK_F"), BLOCKS, INTERPRETED_BLOCKS)
def _sum(
    bounds,
    weight,
    values,
    out,
    H: tl.constexpr,
    HV: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
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


@triton.jit
def logsumexp_of_columns(top, total):
    """log-sum-exp over the rows of tiles that hold a maximum and a sum of exponentials each; -inf where nothing is."""
    highest = tl.max(top, 0)
    summed = tl.sum(total * tl.exp(top - highest[None, :]), 0)
    nothing = summed == 0
    return tl.where(nothing, -float("inf"), highest + tl.log(tl.where(nothing, 1.0, summed)))


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
        new = tl.minimum(tl.maximum(top, x), -LOWEST)  # finite, for differences of two infinities are NaN
        total = total * tl.exp(top - new) + tl.exp(x - new)
        top = new
        start += BLOCK_N
    tl.store(out + r * F + column, logsumexp_of_columns(top, total), column < F)
