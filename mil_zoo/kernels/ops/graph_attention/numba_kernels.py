"""Graph attention as fused CPU kernels: one pass over the rows forward, two backward, no ``[E, H, F]`` tensor.

Forward keeps the log-sum-exp of every row, from which backward makes the weights again. Every number is summed by one
thread in a fixed order (rows of the graph, rows of its transpose), so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from mil_zoo.kernels._numba.attention import Numbers, finish_row, numbers_of, raise_top, softmax_of, start_row
from mil_zoo.kernels._numba.hashing import kept_scale
from mil_zoo.kernels._numba.jit import REORDER, jit
from mil_zoo.kernels._numba.loops import CHUNK, exp, gather, number
from mil_zoo.kernels._numba.vectors import add_weighted, dots


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
    """Room for the sources at hand, ``[H, CHUNK]`` each.

    Attributes:
        weight: scores of the sources.
        flow: gradients of the weights.
        scale: what dropout multiplies the weights by.
        extra: gradients of the attention itself.
        shift: log-sum-exps, by source.
        mean: means of the gradients, by source.
        sums: float64 ``[3, H]``, of a row, by destination.
        numbers: for dropout.
    """

    weight: np.ndarray
    flow: np.ndarray
    scale: np.ndarray
    extra: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    sums: np.ndarray
    numbers: Numbers


@jit(parallel=True)
def forward(bounds, edges, inputs, dropout, outputs):
    """Writes the outputs, and the log-sum-exp of every row."""
    for block in prange(len(bounds) - 1):
        softmax = softmax_of(inputs.dst.shape[1], inputs.feat)
        _forward_rows(bounds[block : block + 2], edges, inputs, dropout, outputs, softmax)


@jit()
def _forward_rows(rows, edges, inputs, dropout, outputs, softmax):
    dst, lse, others, indptr = inputs.dst, inputs.lse, edges.others, edges.indptr
    positions, counter = softmax.numbers
    for i in range(rows[0], rows[1]):
        row, out = others[indptr[i] : indptr[i + 1]], outputs.out[i]
        key = inputs.bag[i : i + 1]  # the global key as a list of one source; empty where there is none
        start_row(softmax, out)
        if len(key):
            number(len(others) + i, positions)
            kept_scale(positions, dropout, counter, softmax.scale)
            _absorb(
                sources=key,
                own=dst[i],
                score=inputs.key_score,
                feat=inputs.key_feat,
                slope=inputs.slope,
                softmax=softmax,
                out=out,
            )
        for start in range(0, len(row), CHUNK):
            number(indptr[i] + start, positions)
            kept_scale(positions, dropout, counter, softmax.scale)
            _absorb(
                sources=row[start : start + CHUNK],
                own=dst[i],
                score=inputs.src,
                feat=inputs.feat,
                slope=inputs.slope,
                softmax=softmax,
                out=out,
            )
        finish_row(softmax, lse[i], out)
        if len(outputs.attention):
            attention = outputs.attention[indptr[i] : indptr[i + 1]]
            _write_attention(row, inputs.src, inputs.slope, (dst[i], lse[i]), attention)
        if len(outputs.key_attention):
            attention = outputs.key_attention[i : i + 1]
            _write_attention(key, inputs.key_score, inputs.slope, (dst[i], lse[i]), attention)


@jit(fastmath=REORDER)
def _absorb(sources, own, score, feat, slope, softmax, out):
    """Adds sources to a row's running softmax: its maximum, sum of exponentials, and sum of features so weighted."""
    zero, lowest = feat.dtype.type(0), np.finfo(feat.dtype).min
    weight, scale = softmax.weight, softmax.scale
    gather(sources, score, weight)
    for h in range(len(own)):
        for e in range(CHUNK):
            x = weight[h, e] + own[h]
            x = x if x > zero else x * slope
            weight[h, e] = x if e < len(sources) else lowest
        new = raise_top(h, softmax, out)
        part = zero
        for e in range(weight.shape[1]):
            y = exp(weight[h, e] - new)
            y = y if e < len(sources) else zero
            weight[h, e] = y * scale[h, e]
            part += y
        softmax.total[h] += part
    add_weighted(out, weight, feat, sources)


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
        room = _room(inputs.dst.shape[1], inputs.feat)
        _backward_dst_rows(bounds[block : block + 2], edges, inputs, dropout, flows, room)


@jit()
def _backward_dst_rows(rows, edges, inputs, dropout, flows, room):
    """Gradient of the destinations' scores, delta, and for the global key of each row its weight and flow."""
    dst, lse, others, indptr = inputs.dst, inputs.lse, edges.others, edges.indptr
    (positions, counter), sums = room.numbers, room.sums
    for i in range(rows[0], rows[1]):
        row, key = others[indptr[i] : indptr[i + 1]], inputs.bag[i : i + 1]
        sums[:] = 0
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
                row=(dst[i], lse[i], flows.grad_out[i]),
                room=room,
                sums=sums,
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
                row=(dst[i], lse[i], flows.grad_out[i]),
                room=room,
                sums=sums,
            )
        for h in range(dst.shape[1]):
            flows.delta[i, h] = sums[0, h]
            flows.grad_dst[i, h] = sums[1, h] - sums[0, h] * sums[2, h]
        if len(key):  # the room still holds what belongs to it
            _write_key_flow(i, key[0], inputs, room, flows)


@jit(allocates=True)
def _room(heads, like):
    shape = heads, CHUNK
    return _Room(
        weight=np.empty(shape, like.dtype),
        flow=np.empty(shape, like.dtype),
        scale=np.ones(shape, like.dtype),
        extra=np.zeros(shape, like.dtype),
        shift=np.empty(shape, like.dtype),
        mean=np.empty(shape, like.dtype),
        sums=np.empty((3, heads), np.float64),
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


@jit(fastmath=REORDER)
def _sum_flows(sources, score, feat, slope, row, room, sums):
    """What the gradient of a row's score sums; ``row`` is its (score, log-sum-exp, gradient of its output).

    That gradient is the sum of bend * weight * (flow - delta), with flow the gradient of each weight, bend the slope
    of the leaky ReLU, and delta the sum of weight * flow, which is known at the end only: the sums of weight * flow,
    bend * weight * flow and bend * weight give it in one pass.
    """
    own, lse, grad_out = row
    weight, flow, scale, extra = room.weight, room.flow, room.scale, room.extra
    zero, one = feat.dtype.type(0), feat.dtype.type(1)
    gather(sources, score, weight)
    dots(grad_out, feat, sources, flow)
    for h in range(len(own)):
        a = b = c = zero
        for e in range(weight.shape[1]):
            x = weight[h, e] + own[h]
            y, bend = exp((x if x > zero else x * slope) - lse[h]), one if x > zero else slope
            y, z = y if e < len(sources) else zero, flow[h, e] * scale[h, e] + extra[h, e]
            z = y * z if e < len(sources) else zero
            a += z
            b += bend * z
            c += bend * y
        sums[0, h] += a
        sums[1, h] += b
        sums[2, h] += c


@jit(parallel=True)
def backward_src(bounds, edges, inputs, dropout, flows):
    """Writes what ``BySource`` says."""
    for block in prange(len(bounds) - 1):
        room = _room(inputs.src.shape[1], inputs.feat)
        _backward_src_rows(bounds[block : block + 2], edges, inputs, dropout, flows, room)


@jit(fastmath=REORDER)
def _backward_src_rows(rows, edges, inputs, dropout, flows, room):
    """Gradients of the sources' features and scores, by rows of the transposed graph."""
    feat, src, indptr, slope = inputs.feat, inputs.src, edges.indptr, inputs.slope
    heads, zero, one = src.shape[1], feat.dtype.type(0), feat.dtype.type(1)
    weight, flow, scale, extra = room.weight, room.flow, room.scale, room.extra
    shift, mean, counter = room.shift, room.mean, room.numbers.counter
    for j in range(rows[0], rows[1]):
        grad_feat, grad_src = flows.grad_feat[j], flows.grad_src[j]
        grad_feat[:] = 0
        grad_src[:] = 0
        for start in range(indptr[j], indptr[j + 1], CHUNK):
            end = min(start + CHUNK, indptr[j + 1])
            others, positions = edges.others[start:end], edges.positions[start:end]
            kept_scale(positions, dropout, counter, scale)
            if len(flows.grad_attention):
                gather(positions, flows.grad_attention, extra)
            gather(others, inputs.dst, weight)
            gather(others, inputs.lse, shift)
            gather(others, flows.delta, mean)
            dots(feat[j], flows.grad_out, others, flow)
            for h in range(heads):
                total = zero
                for e in range(weight.shape[1]):
                    x = weight[h, e] + src[j, h]
                    y, bend = exp((x if x > zero else x * slope) - shift[h, e]), one if x > zero else slope
                    z = bend * y * (flow[h, e] * scale[h, e] + extra[h, e] - mean[h, e])
                    weight[h, e] = y * scale[h, e]
                    total += z if e < len(others) else zero
                grad_src[h] += total
            add_weighted(grad_feat, weight, flows.grad_out, others)
