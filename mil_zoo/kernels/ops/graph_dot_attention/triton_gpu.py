"""Dot-product graph attention as fused Triton kernels; what is said of ``graph_attention``'s holds here too."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.rows import (
    INTERPRETED_ROW_BLOCKS,
    ROW_BLOCKS,
    all_rows,
    edge_block,
    finish_softmax,
    row_block,
    softmax_step,
    store_rows,
    tile_of_edges,
    tile_of_rows,
    walk,
)
from mil_zoo.kernels._triton.segments import join_softmax, range_sum
from mil_zoo.kernels._triton.tools import LOWEST, Dropout, float32, kept_scale, sum_rows, tuned
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.long_rows import Rows


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
    q, _, v, _ = inputs
    walk(
        kernel,
        graph,
        rows,
        dropout=settings.dropout,
        heads=q.shape[1],
        width=max(q.shape[2], v.shape[2]),
        **dict(zip(("q", "k", "v", "bias"), inputs, strict=True)),
        scale=settings.scale,
        F=q.shape[2],
        FV=v.shape[2],
        **arrays,
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
    h, item, here, row, start, end, longest = row_block(starts, ends, rows, count, H, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    own = tile_of_rows(q, row, h, here, column, H, F) * scale
    top = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    done = longest * 0
    while done < longest:
        e, there, j = edge_block(indices, start, end, done, BLOCK_E)
        tile = tile_of_edges(k, j, h, there, column, H, F)
        x = tl.sum(own[:, None, :] * tile, 2)
        if bias is not None:
            x += tl.load(bias + e * H + h, there, 0.0).to(tl.float32)
        if score is not None:
            tl.store(score + e * H + h, x, there)
        x = tl.where(there, x, -float("inf"))
        top, total, shrink, weight = softmax_step(top, total, x)
        if DROPOUT:
            weight *= kept_scale(e * H + h, threshold, low, high, kept)
        tile = tile_of_edges(v, j, h, there, column, H, FV)
        acc = acc * shrink[:, None] + tl.sum(weight[:, :, None] * tile, 1)
        done += BLOCK_E
    finish_softmax(out, lse, acc, top, total, item, h, here, column, rows, H, FV)


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
    h, item, here, row, start, end, longest = row_block(starts, ends, rows, count, H, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    own = tile_of_rows(q, row, h, here, column, H, F) * scale
    shift = tl.load(lse + row * H + h, here, 0.0)
    g = tile_of_rows(grad_out, row, h, here, column, H, FV)
    mean = tl.sum(g * tile_of_rows(out, row, h, here, column, H, FV), 1)
    if extra is not None:
        mean += tl.load(extra + row * H + h, here, 0.0)
    if rows is None:
        tl.store(delta + row * H + h, mean, here)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    done = longest * 0
    while done < longest:
        e, there, j = edge_block(indices, start, end, done, BLOCK_E)
        tile = tile_of_edges(v, j, h, there, column, H, FV)
        flow = tl.sum(g[:, None, :] * tile, 2)
        if DROPOUT:
            flow *= kept_scale(e * H + h, threshold, low, high, kept)
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        tile = tile_of_edges(k, j, h, there, column, H, F)
        x = tl.sum(own[:, None, :] * tile, 2)
        if bias is not None:
            x += tl.load(bias + e * H + h, there, 0.0).to(tl.float32)
        weight = tl.where(there, tl.exp(x - shift[:, None]), 0.0)
        gradient = weight * (flow - mean[:, None])
        if grad_bias is not None:
            tl.store(grad_bias + e * H + h, gradient.to(grad_bias.dtype.element_ty), there)
        acc += tl.sum(gradient[:, :, None] * tile, 1)
        done += BLOCK_E
    store_rows(grad_q, item, h, acc * scale, here, column, H, F)


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
    h, item, here, row, start, end, longest = row_block(starts, ends, rows, count, H, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    own = tile_of_rows(k, row, h, here, column, H, F) * scale
    value = tile_of_rows(v, row, h, here, column, H, FV)
    acc_k = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    acc_v = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    done = longest * 0
    while done < longest:
        t, there, i = edge_block(indices, start, end, done, BLOCK_E)
        e = tl.load(edge + t, there, 0).to(tl.int64)
        g = tile_of_edges(grad_out, i, h, there, column, H, FV)
        flow = tl.sum(value[:, None, :] * g, 2)
        query = tile_of_edges(q, i, h, there, column, H, F)
        x = tl.sum(own[:, None, :] * query, 2)
        if bias is not None:
            x += tl.load(bias + e * H + h, there, 0.0).to(tl.float32)
        weight = tl.where(there, tl.exp(x - tl.load(lse + i * H + h, there, 0.0)), 0.0)
        dropped = weight
        if DROPOUT:
            factor = kept_scale(e * H + h, threshold, low, high, kept)
            flow *= factor
            dropped *= factor
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        gradient = weight * (flow - tl.load(delta + i * H + h, there, 0.0))
        acc_k += tl.sum(gradient[:, :, None] * query, 1)
        acc_v += tl.sum(dropped[:, :, None] * g, 1)
        done += BLOCK_E
    acc_k *= scale
    store_rows(grad_k, item, h, acc_k, here, column, H, F)
    store_rows(grad_v, item, h, acc_v, here, column, H, FV)
