"""Softmax aggregation as CPU kernels: a pass over the rows forward and one over those of the transpose backward.

With a the output, g its gradient and p the weights, which are made again from the log-sum-exp of each row::

    dx_jc = sum_i g_ic p_ijc (1 + t (x_jc - a_ic))        dt = sum_ic g_ic Var_p(x)_ic

The variance is summed as squares of differences: terms of both signs cancel in dt, so theirs must be accurate.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.attention import Edges
from mil_zoo.kernels._numba.jit import array, jit
from mil_zoo.kernels._numba.loops import exp
from mil_zoo.kernels._numba.storage import computed, stored, widened, write_row
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty

COST = 8  # multiplications for a number of an edge, most of them in exp


def forward(x, t, graph):
    """See ``graph_softmax_sum``.

    ``x`` is read and its gradient written as it is, but float16, which is converted to float32 and back; what is
    computed, and kept for backward, is float32 or float64.
    """
    return _GraphSoftmaxSum.apply(stored(x), t.to(computed(x)), graph).to(x.dtype)


class _GraphSoftmaxSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, t, graph):
        out, lse = (empty(t, graph.num_dst, x.shape[1]) for _ in range(2))
        edges, rounded = Edges.of(graph), out if x.dtype == out.dtype else empty(x, *out.shape)
        results = array(out), array(lse), array(rounded)
        _forward(blocks(edges.indptr, COST * x.shape[1]), edges, array(x), array(t), results)
        ctx.save_for_backward(x, t, out, lse)
        ctx.graph = graph
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, t, out, lse = ctx.saved_tensors
        back = Edges.of(ctx.graph.transposed)
        grad_x = empty(x, *x.shape)
        grad_t = np.empty(len(x), np.float64)  # of each source, for any number of threads the same
        inputs = array(x), array(t), array(out), array(lse), array(grad)
        _backward(blocks(back.indptr, COST * x.shape[1]), back, inputs, array(grad_x), grad_t)
        return grad_x, t.new_tensor([grad_t.sum()]), None


@jit(parallel=True)
def _forward(bounds, edges, x, t, results):
    for block in prange(len(bounds) - 1):
        total = np.empty(x.shape[1], t.dtype)
        _forward_rows(bounds[block : block + 2], edges, x, t[0], results, total)


@jit()
def _forward_rows(rows, edges, x, t, results, total):
    outs, lses, rounded = results  # the first and the last are one array where nothing is rounded
    for i in range(rows[0], rows[1]):
        sources = edges.others[edges.indptr[i] : edges.indptr[i + 1]]
        out, lse = outs[i], lses[i]
        out[:] = 0
        if not len(sources):
            lse[:] = np.inf
            write_row(out, out.dtype.type(1), rounded[i])
            continue
        total[:] = 0
        lse[:] = np.finfo(lse.dtype).min
        for j in sources:
            _raise_top(x[j], t, lse)
        for j in sources:
            _add(x[j], t, lse, total, out)
        for c in range(len(out)):
            out[c] /= total[c]
            lse[c] += np.log(total[c])
        write_row(out, out.dtype.type(1), rounded[i])


@jit()
def _raise_top(x, t, top):
    for c in range(len(x)):
        score = t * widened(x[c])
        top[c] = score if score > top[c] else top[c]


@jit()
def _add(x, t, top, total, out):
    for c in range(len(x)):
        y = widened(x[c])
        weight = exp(t * y - top[c])
        total[c] += weight
        out[c] += weight * y


@jit(parallel=True)
def _backward(bounds, edges, inputs, grad_x, grad_t):
    for block in prange(len(bounds) - 1):
        room = np.empty((3, grad_x.shape[1]), inputs[1].dtype)
        _backward_rows(bounds[block : block + 2], edges, inputs, grad_x, grad_t, room)


@jit()
def _backward_rows(rows, edges, inputs, grad_x, grad_t, room):
    (x, t, out, lse, grad), own, total, spread = inputs, room[0], room[1], room[2]
    for j in range(rows[0], rows[1]):
        for c in range(len(own)):
            own[c], total[c], spread[c] = widened(x[j, c]), 0, 0
        for i in edges.others[edges.indptr[j] : edges.indptr[j + 1]]:
            _flow(own, t[0], (out[i], lse[i], grad[i]), total, spread)
        write_row(total, total.dtype.type(1), grad_x[j])
        grad_t[j] = 0
        for c in range(len(spread)):
            grad_t[j] += spread[c]


@jit()
def _flow(x, t, row, grad_x, spread):
    out, lse, grad = row
    for c in range(len(x)):
        flow = widened(grad[c]) * exp(t * x[c] - lse[c])
        away = x[c] - out[c]
        grad_x[c] += flow * (1 + t * away)
        spread[c] += flow * away * away
