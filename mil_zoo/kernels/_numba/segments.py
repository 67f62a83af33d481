"""What the Numba kernels over packed segments share: segments in pieces, sums and softmax statistics of segments.

A segment may hold a million rows and another one: threads work on pieces, and the pieces of a segment are put together
in order, so that the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from mil_zoo.kernels._numba.jit import jit
from mil_zoo.kernels._numba.loops import exponentials
from mil_zoo.kernels._numba.storage import widened
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels._numba.vectors import add_weighted

PIECE = 512  # rows that one thread works on; fixed, so that the order of additions does not depend on the threads
ROWS = 16  # of a piece that are read at a time, column by column: more are out of the cache before their next columns


class Pieces(NamedTuple):
    """Segments in pieces of at most ``PIECE`` rows.

    Attributes:
        starts: int64 ``[P + 1]``, where each piece starts, and the end.
        first: int64 ``[B + 1]``, the first piece of each segment.
        segment: int64 ``[P]``, the segment that a piece is of.
        whole: whether every segment is one piece.
    """

    starts: np.ndarray
    first: np.ndarray
    segment: np.ndarray
    whole: bool


def cut(offsets: np.ndarray) -> Pieces:
    """Cuts segments into pieces; ``offsets`` is int ``[B + 1]``, and segments may be empty."""
    sizes = np.diff(offsets)
    if len(sizes) and sizes.max() <= PIECE and sizes.min() > 0:
        first = np.arange(len(offsets))
        return Pieces(np.asarray(offsets, np.int64), first, segment=first[:-1], whole=True)
    first = np.concatenate([[0], np.cumsum(-(-sizes // PIECE))])
    segment = np.repeat(np.arange(len(offsets) - 1), np.diff(first))
    starts = offsets[segment] + PIECE * (np.arange(first[-1]) - first[segment])
    return Pieces(np.append(starts, offsets[-1]), first, segment, whole=False)


def segment_weighted_sum(weight: np.ndarray, values: np.ndarray, pieces: Pieces) -> np.ndarray:
    """The sum of ``weight[n, h] * values[n, h]`` over the rows n of each segment.

    ``weight`` is ``[N, H]``, ``values`` ``[N, H or 1, F]`` and the sum ``[B, H, F]``; an empty segment gets zeros.
    Pieces are summed in parallel and then added in order, so that the bits do not depend on the threads.
    """
    starts, heads, width = pieces.starts, weight.shape[1], values.shape[2]
    partial = np.empty((len(starts) - 1, heads, width), weight.dtype)
    _sum_pieces(blocks(starts, heads * width), starts, weight, values, partial)
    if pieces.whole:
        return partial
    out = np.empty((len(pieces.first) - 1, heads, width), weight.dtype)
    _add_pieces(pieces.first, partial, out)
    return out


@jit(parallel=True)
def _sum_pieces(bounds, starts, weight, values, partial):
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            _sum_piece(weight[starts[p] : starts[p + 1]], values[starts[p] : starts[p + 1]], partial[p])


@jit(allocates=True)
def _sum_piece(weight, values, total):
    by_head = np.empty((weight.shape[1], ROWS), weight.dtype)
    _sum_rows(weight, values, total, by_head, np.arange(ROWS).astype(np.int32))


@jit()
def _sum_rows(weight, values, total, by_head, numbers):
    total[:] = 0
    for first in range(0, len(weight), ROWS):
        some = values[first : first + ROWS]
        for n in range(len(some)):
            for h in range(weight.shape[1]):
                by_head[h, n] = weight[first + n, h]
        add_weighted(total, by_head, some, numbers[: len(some)])


@jit()
def _add_pieces(first, partial, out):
    for b in range(len(out)):
        out[b] = 0
        for p in range(first[b], first[b + 1]):
            for h in range(out.shape[1]):
                for f in range(out.shape[2]):
                    out[b, h, f] += partial[p, h, f]


def segment_statistics(scores: np.ndarray, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of each segment and column, and the sum of the exponentials relative to it.

    Args:
        scores: ``[N, K]``.
        pieces: of segments of which none is empty.

    Returns:
        ``[B, K]`` each, float32 of bfloat16. Where all scores are -inf, the lowest finite number and 0.
    """
    starts, first = pieces.starts, pieces.first
    dtype = np.float32 if scores.dtype == np.uint16 else scores.dtype
    top = np.empty((len(starts) - 1, scores.shape[1]), dtype)
    total = np.empty_like(top)
    _statistics(blocks(starts, 16 * scores.shape[1]), starts, scores, top, total)
    if pieces.whole:
        return top, total
    bag_top = np.maximum.reduceat(top, first[:-1])
    with np.errstate(invalid="ignore"):  # NaN among the scores
        shrink = np.exp(top - np.repeat(bag_top, np.diff(first), axis=0))
        return bag_top, np.add.reduceat(total * shrink, first[:-1])


@jit(parallel=True)
def _statistics(bounds, starts, scores, top, total):
    for block in prange(len(bounds) - 1):
        for p in range(bounds[block], bounds[block + 1]):
            _piece_statistics(scores[starts[p] : starts[p + 1]], top[p], total[p])


@jit(allocates=True)
def _piece_statistics(scores, top, total):
    """Maximum of each column and sum of the exponentials relative to it."""
    _sum_exponentials(scores, top, total, np.empty(scores.shape, top.dtype))


@jit()
def _sum_exponentials(scores, top, total, weight):
    top[:] = np.finfo(top.dtype).min  # and not -inf, for differences of two -inf are NaN
    total[:] = 0
    for n in range(len(scores)):
        for k in range(len(top)):
            score = widened(scores[n, k])
            if score > top[k]:
                top[k] = score
    for n in range(len(scores)):
        for k in range(len(top)):
            weight[n, k] = widened(scores[n, k]) - top[k]
    exponentials(weight)
    for n in range(len(scores)):
        for k in range(len(top)):
            total[k] += weight[n, k]
