"""Dot-product graph attention as fused Triton kernels; what is said of ``graph_attention``'s holds here too."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.segments import join_softmax, range_sum
from mil_zoo.kernels._triton.tools import (
    INTERPRETED_ROW_BLOCKS,
    LOWEST,
    ROW_BLOCKS,
    Dropout,
    all_rows,
    block,
    float32,
    keep,
    row_block,
    sum_rows,
    tuned,
)
from mil_zoo.kernels.csr import CSR, Rows


class _Settings(NamedTuple):
    graph: CSR
    scale: float
    dropout: Dropout
    return_attention: bool


def forward(q, k, v, graph, scale, bias, dropout_p, seed, return_attention):
    """See ``graph_dot_attention``. Returns out ``[Nd, H, Fv]`` and, where it is asked for, attention ``[E, H]``."""
    settings = _Settings(graph, float(scale), Dropout.of(dropout_p, seed), return_attention)
    return _GraphDotAttention.apply(q, k, v, bias, settings)


class _GraphDotAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, settings):
        inputs = [None if x is None else x.contiguous() for x in (q, k, v, bias)]
        graph, (_, heads, width) = settings.graph, v.shape
        out, lse = q.new_empty(graph.num_dst, heads, width), float32(q, graph.num_dst, heads)
        score = float32(q, graph.num_edges, heads) if settings.return_attention else None
        _walk(_forward, graph, all_rows(graph), inputs, settings, score=score, out=out, lse=lse)
        if long := graph.long_rows:
            parts = float32(q, long.pieces.count, heads, width), float32(q, long.pieces.count, heads)
            _walk(_forward, graph, long.pieces, inputs, settings, score=score, out=parts[0], lse=parts[1])
            joined, lse[long.rows] = join_softmax(*parts, long.first)
            out[long.rows] = joined.to(out.dtype)
        attention = None
        if score is not None:
            attention = (score - lse.index_select(0, graph.destinations)).exp().to(q.dtype)
        ctx.save_for_backward(*inputs, out, lse, attention)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return out, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_attention):
        *inputs, out, lse, attention = ctx.saved_tensors
        q, k, v, bias = inputs
        graph, settings, heads = ctx.settings.graph, ctx.settings, q.shape[1]
        back = graph.transposed
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out.contiguous()
        extra = None
        if grad_attention is not None:
            grad_attention = grad_attention.contiguous()
            extra = sum_rows(attention.float() * grad_attention, graph)
        delta = float32(q, graph.num_dst, heads)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = torch.empty_like(bias) if ctx.needs_input_grad[3] else None
        saved = {"lse": lse, "grad_out": grad_out, "grad_attention": grad_attention, "delta": delta}
        more = {"out": out, "extra": extra, "grad_bias": grad_bias}
        _walk(_backward_dst, graph, all_rows(graph), inputs, settings, **saved, **more, grad_q=grad_q)
        if long := graph.long_rows:
            part = float32(q, long.pieces.count, *q.shape[1:])
            _walk(_backward_dst, graph, long.pieces, inputs, settings, **saved, **more, grad_q=part)
            grad_q[long.rows] = range_sum(part, long.first).to(q.dtype)
        saved["edge"] = back.edge
        _walk(_backward_src, back, all_rows(back), inputs, settings, **saved, grad_k=grad_k, grad_v=grad_v)
        if long := back.long_rows:
            parts = [float32(q, long.pieces.count, *x.shape[1:]) for x in (k, v)]
            _walk(_backward_src, back, long.pieces, inputs, settings, **saved, grad_k=parts[0], grad_v=parts[1])
            grad_k[long.rows] = range_sum(parts[0], long.first).to(k.dtype)
            grad_v[long.rows] = range_sum(parts[1], long.first).to(v.dtype)
        return grad_q, grad_k, grad_v, grad_bias, None


def _walk(kernel, graph, rows: Rows, inputs: list[Tensor | None], settings: _Settings, **arrays: Tensor | None) -> None:
    """Launches ``kernel`` over rows of a graph, or of its transpose."""
    q, _, v, _ = inputs
    heads, width, dropout = q.shape[1], max(q.shape[2], v.shape[2]), settings.dropout
    kernel[lambda meta: (triton.cdiv(rows.count, meta["BLOCK_R"]) * heads,)](
        **rows._asdict(),
        indices=graph.indices.contiguous(),
        **dict(zip(("q", "k", "v", "bias"), inputs, strict=True)),
        **dropout._asdict(),
        scale=settings.scale,
        **arrays,
        DROPOUT=dropout.threshold != 0,
        H=heads,
        F=q.shape[2],
        FV=v.shape[2],
        BLOCK_F=block(width),
    )


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _forward(
    starts,
    ends,
    rows,
    count,
    indices,
    q,
    k,
    v,
    bias,
    threshold,
    low,
    high,
    kept,
    scale,
    score,
    out,
    lse,
    DROPOUT: tl.constexpr,
    H: tl.constexpr,
    F: tl.constexpr,
    FV: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    h = tl.program_id(0) % H
    first = (tl.program_id(0) // H).to(tl.int64) * BLOCK_R
    item, here, row, start, end = row_block(starts, ends, rows, count, first, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    mask = here[:, None] & (column < F)[None, :]
    own = tl.load(q + ((row * H + h) * F)[:, None] + column[None, :], mask, 0.0).to(tl.float32) * scale
    top = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    longest = tl.max(end - start, 0)
    done = longest * 0
    while done < longest:
        e = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        there = e < end[:, None]
        j = tl.load(indices + e, there, 0).to(tl.int64)
        inside = there[:, :, None] & (column < F)[None, None, :]
        tile = tl.load(k + ((j * H + h) * F)[:, :, None] + column[None, None, :], inside, 0.0).to(tl.float32)
        x = tl.sum(own[:, None, :] * tile, 2)
        if bias is not None:
            x += tl.load(bias + e * H + h, there, 0.0).to(tl.float32)
        if score is not None:
            tl.store(score + e * H + h, x, there)
        x = tl.where(there, x, -float("inf"))
        new = tl.maximum(top, tl.max(x, 1))
        shrink = tl.exp(top - new)
        weight = tl.exp(x - new[:, None])
        total = total * shrink + tl.sum(weight, 1)
        top = new
        if DROPOUT:
            weight *= keep(e * H + h, threshold, low, high, kept)
        inside = there[:, :, None] & (column < FV)[None, None, :]
        tile = tl.load(v + ((j * H + h) * FV)[:, :, None] + column[None, None, :], inside, 0.0).to(tl.float32)
        acc = acc * shrink[:, None] + tl.sum(weight[:, :, None] * tile, 1)
        done += BLOCK_E
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    acc = acc / total[:, None]
    mask = here[:, None] & (column < FV)[None, :]
    tl.store(out + ((item * H + h) * FV)[:, None] + column[None, :], acc.to(out.dtype.element_ty), mask)
    marker = float("inf") if rows is None else -float("inf")
    tl.store(lse + item * H + h, tl.where(nothing, marker, top + tl.log(total)), here)


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _backward_dst(
    starts,
    ends,
    rows,
    count,
    indices,
    q,
    k,
    v,
    bias,
    threshold,
    low,
    high,
    kept,
    scale,
    lse,
    out,
    grad_out,
    grad_attention,
    extra,
    delta,
    grad_q,
    grad_bias,
    DROPOUT: tl.constexpr,
    H: tl.constexpr,
    F: tl.constexpr,
    FV: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of the queries and the bias, and ``delta``."""
    h = tl.program_id(0) % H
    first = (tl.program_id(0) // H).to(tl.int64) * BLOCK_R
    item, here, row, start, end = row_block(starts, ends, rows, count, first, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    mask = here[:, None] & (column < F)[None, :]
    own = tl.load(q + ((row * H + h) * F)[:, None] + column[None, :], mask, 0.0).to(tl.float32) * scale
    shift = tl.load(lse + row * H + h, here, 0.0)
    mask = here[:, None] & (column < FV)[None, :]
    place = ((row * H + h) * FV)[:, None] + column[None, :]
    g = tl.load(grad_out + place, mask, 0.0).to(tl.float32)
    mean = tl.sum(g * tl.load(out + place, mask, 0.0).to(tl.float32), 1)
    if extra is not None:
        mean += tl.load(extra + row * H + h, here, 0.0)
    if rows is None:
        tl.store(delta + row * H + h, mean, here)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    longest = tl.max(end - start, 0)
    done = longest * 0
    while done < longest:
        e = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        there = e < end[:, None]
        j = tl.load(indices + e, there, 0).to(tl.int64)
        inside = there[:, :, None] & (column < FV)[None, None, :]
        tile = tl.load(v + ((j * H + h) * FV)[:, :, None] + column[None, None, :], inside, 0.0).to(tl.float32)
        flow = tl.sum(g[:, None, :] * tile, 2)
        if DROPOUT:
            flow *= keep(e * H + h, threshold, low, high, kept)
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        inside = there[:, :, None] & (column < F)[None, None, :]
        tile = tl.load(k + ((j * H + h) * F)[:, :, None] + column[None, None, :], inside, 0.0).to(tl.float32)
        x = tl.sum(own[:, None, :] * tile, 2)
        if bias is not None:
            x += tl.load(bias + e * H + h, there, 0.0).to(tl.float32)
        weight = tl.where(there, tl.exp(x - shift[:, None]), 0.0)
        gradient = weight * (flow - mean[:, None])
        if grad_bias is not None:
            tl.store(grad_bias + e * H + h, gradient.to(grad_bias.dtype.element_ty), there)
        acc += tl.sum(gradient[:, :, None] * tile, 1)
        done += BLOCK_E
    mask = here[:, None] & (column < F)[None, :]
    acc *= scale
    tl.store(grad_q + ((item * H + h) * F)[:, None] + column[None, :], acc.to(grad_q.dtype.element_ty), mask)


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _backward_src(
    starts,
    ends,
    rows,
    count,
    indices,
    q,
    k,
    v,
    bias,
    threshold,
    low,
    high,
    kept,
    scale,
    edge,
    lse,
    grad_out,
    grad_attention,
    delta,
    grad_k,
    grad_v,
    DROPOUT: tl.constexpr,
    H: tl.constexpr,
    F: tl.constexpr,
    FV: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of the keys and values, by rows of the transposed graph."""
    h = tl.program_id(0) % H
    first = (tl.program_id(0) // H).to(tl.int64) * BLOCK_R
    item, here, row, start, end = row_block(starts, ends, rows, count, first, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    mask = here[:, None] & (column < F)[None, :]
    own = tl.load(k + ((row * H + h) * F)[:, None] + column[None, :], mask, 0.0).to(tl.float32) * scale
    mask = here[:, None] & (column < FV)[None, :]
    value = tl.load(v + ((row * H + h) * FV)[:, None] + column[None, :], mask, 0.0).to(tl.float32)
    acc_k = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    acc_v = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    longest = tl.max(end - start, 0)
    done = longest * 0
    while done < longest:
        t = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        there = t < end[:, None]
        i = tl.load(indices + t, there, 0).to(tl.int64)
        e = tl.load(edge + t, there, 0).to(tl.int64)
        inside = there[:, :, None] & (column < FV)[None, None, :]
        g = tl.load(grad_out + ((i * H + h) * FV)[:, :, None] + column[None, None, :], inside, 0.0).to(tl.float32)
        flow = tl.sum(value[:, None, :] * g, 2)
        inside = there[:, :, None] & (column < F)[None, None, :]
        query = tl.load(q + ((i * H + h) * F)[:, :, None] + column[None, None, :], inside, 0.0).to(tl.float32)
        x = tl.sum(own[:, None, :] * query, 2)
        if bias is not None:
            x += tl.load(bias + e * H + h, there, 0.0).to(tl.float32)
        weight = tl.where(there, tl.exp(x - tl.load(lse + i * H + h, there, 0.0)), 0.0)
        dropped = weight
        if DROPOUT:
            factor = keep(e * H + h, threshold, low, high, kept)
            flow *= factor
            dropped *= factor
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        gradient = weight * (flow - tl.load(delta + i * H + h, there, 0.0))
        acc_k += tl.sum(gradient[:, :, None] * query, 1)
        acc_v += tl.sum(dropped[:, :, None] * g, 1)
        done += BLOCK_E
    acc_k *= scale
    mask = here[:, None] & (column < F)[None, :]
    tl.store(grad_k + ((item * H + h) * F)[:, None] + column[None, :], acc_k.to(grad_k.dtype.element_ty), mask)
    mask = here[:, None] & (column < FV)[None, :]
    tl.store(grad_v + ((item * H + h) * FV)[:, None] + column[None, :], acc_v.to(grad_v.dtype.element_ty), mask)
