"""Sums over neighbours as a CPU kernel: one pass over the edges, no ``[E, F]`` tensor; backward by the transpose."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.attention import Edges
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.loops import CHUNK
from mil_zoo.kernels._numba.storage import computed, stored, write_row
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels._numba.vectors import add_weighted
from mil_zoo.kernels.memory import empty


def forward(x, graph, weight):
    """See ``graph_sum``.

    ``x`` is read and its sums are written as they are, but float16, which is converted to float32 and back; weights and
    what is summed are float32 or float64.
    """
    dtype = computed(x)
    weight = torch.empty(0, dtype=dtype) if weight is None else weight.to(dtype)
    return _GraphSum.apply(stored(x), graph, weight).to(x.dtype)


class _GraphSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, graph, weight):
        ctx.graph, ctx.weight = graph, weight
        return _summed(x, graph, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _summed(grad, ctx.graph.transposed, ctx.weight), None, None


def _summed(x, graph, weight):
    """Sums over the rows of a CSR or of its transpose."""
    edges, x_ = Edges.of(graph), array(x)[:, None]
    out = empty(x, len(edges.indptr) - 1, x.shape[1])
    _sum(blocks(edges.indptr, x.shape[1]), edges, x_, array(weight), array(out))
    return out


@jit(parallel=True)
def _sum(bounds, edges, x, weight, out):
    for block in prange(len(bounds) - 1):
        scale, total = np.ones((1, CHUNK), weight.dtype), np.empty((1, x.shape[2]), weight.dtype)
        _sum_rows(bounds[block : block + 2], edges, x, weight, out, (scale, total))


@jit()
def _sum_rows(rows, edges, x, weight, out, room):
    (scale, total), indptr, others, positions = room, edges.indptr, edges.others, edges.positions
    for i in range(rows[0], rows[1]):
        total[:] = 0
        for start in range(indptr[i], indptr[i + 1], CHUNK):
            sources = others[start : min(start + CHUNK, indptr[i + 1])]
            if len(weight):
                for e in range(len(sources)):
                    scale[0, e] = weight[positions[start + e] if len(positions) else start + e]
            add_weighted(total, scale, x, sources)
        write_row(total[0], total.dtype.type(1), out[i])
