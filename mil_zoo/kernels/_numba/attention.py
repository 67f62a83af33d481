"""What the two graph attentions share on a CPU: edges as arrays, and the running softmax of a row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mil_zoo.kernels._numba.gathers import largest
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.loops import CHUNK, exp, multiply
from mil_zoo.kernels._numba.storage import write_row
from mil_zoo.kernels.csr import CSR, Transposed


class Edges(NamedTuple):
    """The edges of a graph or of its transpose by row.

    Attributes:
        indptr: int32 ``[R + 1]``, where each row starts.
        others: int32 ``[E]``, the nodes at the other ends.
        positions: int32 ``[E]``, where each edge stands in the CSR; empty where the rows are those of the CSR.
    """

    indptr: np.ndarray
    others: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, graph: CSR | Transposed) -> Edges:
        """The edges of ``graph`` as contiguous arrays."""
        positions = array(graph.edge) if isinstance(graph, Transposed) else np.empty(0, np.int32)
        return cls(array(graph.indptr), array(graph.indices), positions)


class Numbers(NamedTuple):
    """Room for what dropout hashes.

    Attributes:
        edges: int64 ``[CHUNK]``, the edges at hand.
        counter: uint32 ``[2, CHUNK]``.
    """

    edges: np.ndarray
    counter: np.ndarray


class Softmax(NamedTuple):
    """Room for the running softmax of a row of H heads.

    Attributes:
        weight: ``[H, CHUNK]``, of the sources at hand: scores, then their exponentials.
        scale: ``[H, CHUNK]``, what dropout multiplies them by.
        top: ``[H]``, the largest score so far.
        total: float64 ``[H]``, the sum of exponentials relative to it.
        sums: ``[H, F]``, the sum of features weighted by them.
        numbers: for dropout.
    """

    weight: np.ndarray
    scale: np.ndarray
    top: np.ndarray
    total: np.ndarray
    sums: np.ndarray
    numbers: Numbers


@jit(allocates=True)
def numbers_of():
    """Room for the numbers of edges."""
    return Numbers(np.empty(CHUNK, np.int64), np.empty((2, CHUNK), np.uint32))


@jit(allocates=True)
def softmax_of(heads, width, like):
    """Room for rows of ``heads`` heads and ``width`` columns each, in the dtype of ``like``."""
    weight, scale = np.zeros((heads, CHUNK), like.dtype), np.ones((heads, CHUNK), like.dtype)
    top, total, sums = np.empty(heads, like.dtype), np.empty(heads, np.float64), np.empty((heads, width), like.dtype)
    return Softmax(weight, scale, top, total, sums, numbers_of())


@jit(inline=True)
def start_row(softmax):
    """No source yet."""
    softmax.sums[:] = 0
    softmax.total[:] = 0
    softmax.top[:] = np.finfo(softmax.top.dtype).min  # and not -inf, for differences of two -inf are NaN


@jit(inline=True)
def raise_top(h, softmax):
    """The largest score of head h with those in ``weight[h]``; what was summed so far is made relative to it."""
    new = max(softmax.top[h], largest(softmax.weight, h))
    if new > softmax.top[h]:
        if softmax.total[h] != 0:
            shrink = exp(softmax.top[h] - new)
            softmax.total[h] *= shrink
            multiply(softmax.sums[h], shrink)
        softmax.top[h] = new
    return new


@jit(inline=True)
def finish_row(softmax, lse, out):
    """Divides by the sum of exponentials, and keeps its logarithm ``lse`` ``[H]``; a row without sources gets zeros."""
    for h in range(len(lse)):
        total = softmax.total[h]
        lse[h] = softmax.top[h] + np.log(total) if total != 0 else np.inf
        write_row(softmax.sums[h], softmax.top.dtype.type(1 / total if total != 0 else 0), out[h])
