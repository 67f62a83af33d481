"""Graph attention as fused CPU kernels: one pass over the rows forward, two backward, no ``[E, H, F]`` tensor.

Forward keeps the log-sum-exp of every row, from which backward makes the weights again. Every number is summed by one
thread in a fixed order (rows of the graph, rows of its transpose), so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from mil_zoo.kernels._numba.attention import Numbers, finish_row, numbers_of, raise_top, softmax_of, start_row
from mil_zoo.kernels._numba.gathers import AHEAD, fetch, fetch_last, gather
from mil_zoo.kernels._numba.hashing import kept_scale
from mil_zoo.kernels._numba.jit import REORDER, jit
from mil_zoo.kernels._numba.loops import CHUNK, exp, number
from mil_zoo.kernels._numba.storage import widen, widened, write_row
from mil_zoo.kernels._numba.vectors import add_weighted, add_weighted_twice, dots


class Inputs(NamedTuple):
    """What all kernels read; a global key that is not there has length 0.

    Attributes:
        feat: ``[Ns, H, F]``.
        src: ``[Ns, H]``, the sources' scores.
        dst: ``[Nd, H]``, the destinations' scores.
        slope: of the leaky ReLU.
        key_feat: ``[B, H, F]``.
        key_score: ``[B, H]``.
        bag: int32 ``[Nd]``, the global key of each destination.
        lse: ``[Nd, H]``, the log-sum-exp of each row; forward writes it.
    """

    feat: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    slope: np.floating
    key_feat: np.ndarray
    key_score: np.ndarray
    bag: np.ndarray
    lse: np.ndarray


class Outputs(NamedTuple):
    """What forward writes; attention ``[E, H]`` and that of the global key ``[Nd, H]`` have length 0 if not wanted."""

    out: np.ndarray
    attention: np.ndarray
    key_attention: np.ndarray


class ByDestination(NamedTuple):
    """What backward by rows of the graph reads (three gradients) and writes.

    Attributes:
        grad_out: ``[Nd, H, F]``.
        grad_attention: ``[E, H]``, or of length 0.
        grad_key_attention: ``[Nd, H]``, or of length 0.
        grad_dst: ``[Nd, H]``.
        delta: ``[Nd, H]``, the mean of a row's gradients under its weights.
        key_weight: ``[Nd, H]``, the weight of the global key after dropout.
        key_flow: ``[Nd, H]``, the gradient of its score.
    """

    grad_out: np.ndarray
    grad_attention: np.ndarray
    grad_key_attention: np.ndarray
    grad_dst: np.ndarray
    delta: np.ndarray
    key_weight: np.ndarray
    key_flow: np.ndarray


class BySource(NamedTuple):
    """What backward by rows of the transpose reads, and the gradients that it writes: ``[Ns, H, F]``, ``[Ns, H]``."""

    grad_out: np.ndarray
    grad_attention: np.ndarray
    delta: np.ndarray
    grad_feat: np.ndarray
    grad_src: np.ndarray


class _Room(NamedTuple):
    """Room for the row and the sources at hand, ``[H, CHUNK]`` where nothing else is said.

    Attributes:
        weight: ``[2, H, CHUNK]``, scores of the sources, then their weights in two sums.
        flow: gradients of the weights, by destination.
        scale: what dropout multiplies the weights by.
        extra: gradients of the attention itself.
        shift: log-sum-exps, by source.
        mean: means of the gradients, by source.
        totals: float64 ``[3, H]``, of a row.
        sums: ``[2, H, F]``, of a row.
        numbers: for dropout.
    """

    weight: np.ndarray
    flow: np.ndarray
    scale: np.ndarray
    extra: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    totals: np.ndarray
    sums: np.ndarray
    numbers: Numbers


@jit(parallel=True)
def forward(bounds, edges, inputs, dropout, outputs):
    """Writes the outputs, and the log-sum-exp of every row."""
    for block in prange(len(bounds) - 1):
        softmax = softmax_of(inputs.feat.shape[1], inputs.feat.shape[2], inputs.src)
        _forward_rows(bounds[block : block + 2], edges, inputs, dropout, outputs, softmax)


@jit()
def _forward_rows(rows, edges, inputs, dropout, outputs, softmax):
    dst, lse, others, indptr = inputs.dst, inputs.lse, edges.others, edges.indptr
    positions, counter = softmax.numbers
    for i in range(rows[0], rows[1]):
        row = others[indptr[i] : indptr[i + 1]]
        key = inputs.bag[i : i + 1]  # the global key as a list of one source; empty where there is none
        if i + AHEAD < rows[1]:
            fetch(outputs.out, i + AHEAD)
            fetch_last(inputs.feat, edges, i + AHEAD)
        start_row(softmax)
        if len(key):
            number(len(others) + i, positions)
            kept_scale(positions, dropout, counter, softmax.scale)
            _absorb(key, dst[i], (inputs.key_score, inputs.key_feat), inputs.slope, softmax)
        for start in range(0, len(row), CHUNK):
            number(indptr[i] + start, positions)
            kept_scale(positions, dropout, counter, softmax.scale)
            _absorb(row[start : start + CHUNK], dst[i], (inputs.src, inputs.feat), inputs.slope, softmax)
        finish_row(softmax, lse[i], outputs.out[i])
        if len(outputs.attention):
            attention = outputs.attention[indptr[i] : indptr[i + 1]]
            _write_attention(row, inputs.src, inputs.slope, (dst[i], lse[i]), attention)
        if len(outputs.key_attention):
            attention = outputs.key_attention[i : i + 1]
            _write_attention(key, inputs.key_score, inputs.slope, (dst[i], lse[i]), attention)


@jit(fastmath=REORDER, inline=True)
def _absorb(sources, own, tables, slope, softmax):
    """Adds sources to a row's running softmax: its maximum, sum of exponentials, and sum of features so weighted.

    ``own`` ``[H]`` is the row's score, and ``tables`` are the sources' scores and features.
    """
    score, feat = tables
    zero, lowest = score.dtype.type(0), np.finfo(score.dtype).min
    weight, scale = softmax.weight, softmax.scale
    gather(sources, score, weight)
    for h in range(len(own)):
        for e in range(CHUNK):
            x = weight[h, e] + own[h]
            x = x if x > zero else x * slope
            weight[h, e] = x if e < len(sources) else lowest
        new = raise_top(h, softmax)
        part = zero
        for e in range(CHUNK):
            y = exp(weight[h, e] - new)
            y = y if e < len(sources) else zero
            weight[h, e] = y * scale[h, e]
            part += y
        softmax.total[h] += part
    add_weighted(softmax.sums, weight, feat, sources)


@jit()
def _write_attention(sources, score, slope, row, attention):
    """The attention of a row that is known by its (score, log-sum-exp)."""
    own, lse = row
    for e in range(len(sources)):
        for h in range(len(own)):
            x = own[h] + score[sources[e], h]
            attention[e, h] = exp((x if x > 0 else x * slope) - lse[h])


@jit(parallel=True)
def backward_dst(bounds, edges, inputs, dropout, flows):
    """Writes what ``ByDestination`` says."""
    for block in prange(len(bounds) - 1):
        room = _room(inputs.feat.shape[1], inputs.feat.shape[2], inputs.src)
        _backward_dst_rows(bounds[block : block + 2], edges, inputs, dropout, flows, room)


@jit()
def _backward_dst_rows(rows, edges, inputs, dropout, flows, room):
    """Gradient of the destinations' scores, delta, and for the global key of each row its weight and flow."""
    dst, lse, others, indptr = inputs.dst, inputs.lse, edges.others, edges.indptr
    (positions, counter), totals, grad_out = room.numbers, room.totals, room.sums[0]
    for i in range(rows[0], rows[1]):
        row, key = others[indptr[i] : indptr[i + 1]], inputs.bag[i : i + 1]
        if i + AHEAD < rows[1]:
            fetch(flows.grad_out, i + AHEAD)
            fetch_last(inputs.feat, edges, i + AHEAD)
        widen(flows.grad_out[i], grad_out)
        totals[:] = 0
        for start in range(0, len(row), CHUNK):
            chunk = row[start : start + CHUNK]
            number(indptr[i] + start, positions)
            kept_scale(positions, dropout, counter, room.scale)
            if len(flows.grad_attention):
                gather(positions[: len(chunk)], flows.grad_attention, room.extra)
            _sum_flows(
                sources=chunk,
                score=inputs.src,
                feat=inputs.feat,
                slope=inputs.slope,
                row=(dst[i], lse[i], grad_out),
                room=room,
            )
        if len(key):
            number(len(others) + i, positions)
            kept_scale(positions, dropout, counter, room.scale)
            if len(flows.grad_key_attention) or len(flows.grad_attention):
                for h in range(dst.shape[1]):
                    room.extra[h, 0] = flows.grad_key_attention[i, h] if len(flows.grad_key_attention) else 0
            _sum_flows(
                sources=key,
                score=inputs.key_score,
                feat=inputs.key_feat,
                slope=inputs.slope,
                row=(dst[i], lse[i], grad_out),
                room=room,
            )
        for h in range(dst.shape[1]):
            flows.delta[i, h] = totals[0, h]
            flows.grad_dst[i, h] = totals[1, h] - totals[0, h] * totals[2, h]
        if len(key):  # the room still holds what belongs to it
            _write_key_flow(i, key[0], inputs, room, flows)


@jit(allocates=True)
def _room(heads, width, like):
    shape = heads, CHUNK
    return _Room(
        weight=np.empty((2, heads, CHUNK), like.dtype),
        flow=np.empty(shape, like.dtype),
        scale=np.ones(shape, like.dtype),
        extra=np.zeros(shape, like.dtype),
        shift=np.empty(shape, like.dtype),
        mean=np.empty(shape, like.dtype),
        totals=np.empty((3, heads), np.float64),
        sums=np.empty((2, heads, width), like.dtype),
        numbers=numbers_of(),
    )


@jit()
def _write_key_flow(i, key, inputs, room, flows):
    for h in range(inputs.dst.shape[1]):
        x = inputs.dst[i, h] + inputs.key_score[key, h]
        bend = 1 if x > 0 else inputs.slope
        y = exp((x if x > 0 else x * inputs.slope) - inputs.lse[i, h])
        scale, flow = room.scale[h, 0], room.flow[h, 0]
        flows.key_weight[i, h] = y * scale
        flows.key_flow[i, h] = bend * y * (flow * scale + room.extra[h, 0] - flows.delta[i, h])


@jit(fastmath=REORDER, inline=True)
def _sum_flows(sources, score, feat, slope, row, room):
    """What the gradient of a row's score sums; ``row`` is its (score, log-sum-exp, gradient of its output).

    That gradient is the sum of bend * weight * (flow - delta), with flow the gradient of each weight, bend the slope
    of the leaky ReLU, and delta the sum of weight * flow, which is known at the end only: the sums of weight * flow,
    bend * weight * flow and bend * weight give it in one pass.
    """
    own, lse, grad_out = row
    weight, flow, scale, extra = room.weight[0], room.flow, room.scale, room.extra
    zero, one = score.dtype.type(0), score.dtype.type(1)
    gather(sources, score, weight)
    dots(grad_out, feat, sources, flow)
    for h in range(len(own)):
        a = b = c = zero
        for e in range(CHUNK):
            x = weight[h, e] + own[h]
            y, bend = exp((x if x > zero else x * slope) - lse[h]), one if x > zero else slope
            y, z = y if e < len(sources) else zero, flow[h, e] * scale[h, e] + extra[h, e]
            z = y * z if e < len(sources) else zero
            a += z
            b += bend * z
            c += bend * y
        room.totals[0, h] += a
        room.totals[1, h] += b
        room.totals[2, h] += c


@jit(parallel=True)
def backward_src(bounds, edges, inputs, dropout, flows):
    """Writes what ``BySource`` says."""
    for block in prange(len(bounds) - 1):
        room = _room(inputs.feat.shape[1], inputs.feat.shape[2], inputs.src)
        _backward_src_rows(bounds[block : block + 2], edges, inputs, dropout, flows, room)


@jit(fastmath=REORDER)
def _backward_src_rows(rows, edges, inputs, dropout, flows, room):
    """Gradients of the sources' features and scores, by rows of the transposed graph.

    With weights a_i of j's features in the outputs i, the gradient of the features is the sum of a_i grad_out_i. That
    of the score is the sum of bend_i (a_i <feat_j, grad_out_i> - weight_i delta_i), of which the first part is <feat_j,
    sum of bend_i a_i grad_out_i>: no product for every edge.
    """
    feat, src, indptr, slope = inputs.feat, inputs.src, edges.indptr, inputs.slope
    heads, zero, one = src.shape[1], src.dtype.type(0), src.dtype.type(1)
    weight, scale, extra, shift, mean = room.weight, room.scale, room.extra, room.shift, room.mean
    totals, sums, counter = room.totals[0], room.sums, room.numbers.counter
    for j in range(rows[0], rows[1]):
        if j + AHEAD < rows[1]:
            fetch(feat, j + AHEAD)
            fetch(flows.grad_feat, j + AHEAD)
            fetch_last(flows.grad_out, edges, j + AHEAD)
        sums[:] = 0
        totals[:] = 0
        for start in range(indptr[j], indptr[j + 1], CHUNK):
            end = min(start + CHUNK, indptr[j + 1])
            others, positions = edges.others[start:end], edges.positions[start:end]
            kept_scale(positions, dropout, counter, scale)
            if len(flows.grad_attention):
                gather(positions, flows.grad_attention, extra)
            gather(others, inputs.dst, weight[0])
            gather(others, inputs.lse, shift)
            gather(others, flows.delta, mean)
            for h in range(heads):
                total = zero
                for e in range(CHUNK):
                    x = weight[0, h, e] + src[j, h]
                    y, bend = exp((x if x > zero else x * slope) - shift[h, e]), one if x > zero else slope
                    z = bend * y * (extra[h, e] - mean[h, e])
                    weight[0, h, e] = y * scale[h, e]
                    weight[1, h, e] = bend * y * scale[h, e]
                    total += z if e < len(others) else zero
                totals[h] += total
            add_weighted_twice(sums, weight, flows.grad_out, others)
        for h in range(heads):
            total = zero
            for c in range(feat.shape[2]):
                total += widened(feat[j, h, c]) * sums[1, h, c]
            flows.grad_src[j, h] = totals[h] + total
            write_row(sums[0, h], one, flows.grad_feat[j, h])
