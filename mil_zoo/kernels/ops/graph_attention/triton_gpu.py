"""Graph attention as fused Triton kernels: one pass over the edges forward, two backward, no ``[E, H, F]`` tensor.

A program walks the edges of a block of rows for one head, as tiles of rows x edges x features. Forward keeps the
log-sum-exp of every row, from which backward makes the weights again: once by destinations, for their scores, and once
by sources over the transposed graph, for the sources' features and scores. ``delta``, the mean of a row's gradients
under its weights, is the product of its output with the gradient of that (as in FlashAttention's backward: Dao et al.,
NeurIPS 2022). Rows with more than ``LONG`` edges are walked in pieces that are joined afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
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
from mil_zoo.kernels._triton.segments import Pieces, join_softmax, range_sum, segment_sum
from mil_zoo.kernels._triton.tools import LOWEST, Dropout, float32, keep, leaky_relu, sum_rows, tuned
from mil_zoo.kernels.csr import CSR, Rows
from mil_zoo.kernels.devices import require

if TYPE_CHECKING:
    from mil_zoo.kernels.ops.graph_attention import GlobalKey


class _Bags(NamedTuple):
    """Where the bags of a global key lie among the destinations.

    Attributes:
        bag: int64 ``[Nd]``.
        order: int64 ``[Nd]``, destinations sorted by bag; None where they are known to be.
        pieces: of the bags, in that order.
    """

    bag: Tensor
    order: Tensor | None
    pieces: Pieces

    @classmethod
    def of(cls, key: GlobalKey) -> _Bags:
        bag, count = key.bag.long().contiguous(), len(key.feat)
        if len(bag):
            smallest, largest = bag.aminmax()
            require(
                (smallest >= 0) & (largest < count),
                lambda: f"global_key.bag must lie in 0..{count - 1}, not {int(smallest)}..{int(largest)}",
            )
        if key.offsets is not None:
            return cls(bag, None, Pieces.of(key.offsets, len(bag), empty=True))
        ordered, order = bag.sort(stable=True)
        offsets = torch.searchsorted(ordered, torch.arange(count + 1, device=bag.device))
        return cls(bag, order, Pieces.of(offsets, len(bag), empty=True))


class _Settings(NamedTuple):
    graph: CSR
    slope: float
    dropout: Dropout
    bags: _Bags | None
    return_attention: bool


def forward(feat, src_score, dst_score, graph, negative_slope, dropout_p, seed, global_key, return_attention):
    """See ``graph_attention``."""
    key_feat = key_score = bags = None
    if global_key is not None:
        key_feat, key_score, bags = global_key.feat, global_key.score, _Bags.of(global_key)
    settings = _Settings(graph, float(negative_slope), Dropout.of(dropout_p, seed), bags, return_attention)
    return _GraphAttention.apply(feat, src_score, dst_score, key_feat, key_score, settings)


class _GraphAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feat, src_score, dst_score, key_feat, key_score, settings):
        inputs = [None if x is None else x.contiguous() for x in (feat, src_score, dst_score, key_feat, key_score)]
        graph, (_, heads, width) = settings.graph, feat.shape
        out, lse = feat.new_empty(graph.num_dst, heads, width), float32(feat, graph.num_dst, heads)
        _walk(_forward, graph, all_rows(graph), inputs, settings, out=out, lse=lse)
        if long := graph.long_rows:
            parts = float32(feat, long.pieces.count, heads, width), float32(feat, long.pieces.count, heads)
            _walk(_forward, graph, long.pieces, inputs, settings, out=parts[0], lse=parts[1])
            joined, lse[long.rows] = join_softmax(*parts, long.first)
            out[long.rows] = joined.to(out.dtype)
        ctx.save_for_backward(*inputs, out, lse)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        if not settings.return_attention:
            return out, None, None
        attention, key_attention = _attention(inputs, lse, settings)
        return out, attention.to(feat.dtype), None if key_attention is None else key_attention.to(feat.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_attention, grad_key_attention):
        *inputs, out, lse = ctx.saved_tensors
        feat, src_score = inputs[:2]
        settings, (_, heads, width) = ctx.settings, feat.shape
        graph, back, bags = settings.graph, settings.graph.transposed, settings.bags
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out.contiguous()
        grads = [None if x is None else x.contiguous() for x in (grad_attention, grad_key_attention)]
        extra = _mean_of_extra(inputs, lse, settings, *grads)
        delta, grad_dst = float32(feat, graph.num_dst, heads), float32(feat, graph.num_dst, heads)
        key_weight = key_flow = None
        if bags is not None:
            key_weight, key_flow = torch.empty_like(delta), torch.empty_like(delta)
        saved = {"lse": lse, "grad_out": grad_out, "grad_attention": grads[0], "delta": delta}
        more = {"out": out, "grad_key_attention": grads[1], "extra": extra}
        to_key = {"key_weight": key_weight, "key_flow": key_flow}
        _walk(_backward_dst, graph, all_rows(graph), inputs, settings, **saved, **more, grad_dst=grad_dst, **to_key)
        if long := graph.long_rows:
            part = float32(feat, long.pieces.count, heads)
            to_key = {"key_weight": None, "key_flow": None}
            _walk(_backward_dst, graph, long.pieces, inputs, settings, **saved, **more, grad_dst=part, **to_key)
            grad_dst[long.rows] += range_sum(part[:, :, None], long.first)[:, :, 0]
        grad_feat, grad_src = torch.empty_like(feat), torch.empty_like(src_score)
        saved["edge"] = back.edge
        own = {"grad_feat": grad_feat, "grad_src": grad_src}
        _walk(_backward_src, back, all_rows(back), inputs, settings, **saved, **own)
        if long := back.long_rows:
            parts = float32(feat, long.pieces.count, heads, width), float32(feat, long.pieces.count, heads)
            own = {"grad_feat": parts[0], "grad_src": parts[1]}
            _walk(_backward_src, back, long.pieces, inputs, settings, **saved, **own)
            grad_feat[long.rows] = range_sum(parts[0], long.first).to(feat.dtype)
            grad_src[long.rows] = range_sum(parts[1][:, :, None], long.first)[:, :, 0].to(feat.dtype)
        grad_dst = grad_dst.to(feat.dtype)
        if bags is None:
            return grad_feat, grad_src, grad_dst, None, None, None
        if bags.order is not None:
            key_weight, key_flow, grad_out = (x[bags.order] for x in (key_weight, key_flow, grad_out))
        grad_key_feat = segment_sum(grad_out, bags.pieces, key_weight).to(feat.dtype)
        grad_key_score = segment_sum(key_flow[:, :, None], bags.pieces)[:, :, 0].to(feat.dtype)
        return grad_feat, grad_src, grad_dst, grad_key_feat, grad_key_score, None


def _walk(kernel, graph, rows: Rows, inputs, settings: _Settings, **arrays) -> None:
    _, heads, width = inputs[0].shape
    walk(
        kernel,
        graph,
        rows,
        dropout=settings.dropout,
        heads=heads,
        width=width,
        indptr=graph.indptr.contiguous(),
        **dict(zip(("feat", "src", "dst", "key_feat", "key_score"), inputs, strict=True)),
        bag=None if settings.bags is None else settings.bags.bag,
        edges=len(graph.indices),
        slope=settings.slope,
        F=width,
        **arrays,
    )


def _attention(inputs, lse: Tensor, settings: _Settings) -> tuple[Tensor, Tensor | None]:
    """float32 weights ``[E, H]`` and those of the global key ``[Nd, H]``, before dropout."""
    _, src_score, dst_score, _, key_score = (None if x is None else x.float() for x in inputs)
    graph, bags = settings.graph, settings.bags
    row = graph.destinations
    scores = F.leaky_relu(src_score[graph.indices.long()] + dst_score[row], settings.slope)
    key_attention = None
    if bags is not None:
        key_attention = (F.leaky_relu(key_score[bags.bag] + dst_score, settings.slope) - lse).exp()
    return (scores - lse[row]).exp(), key_attention


def _mean_of_extra(inputs, lse, settings, grad_attention, grad_key_attention) -> Tensor | None:
    """``[Nd, H]``: what gradients of the attention itself add to ``delta``; None where there are none."""
    if grad_attention is None and grad_key_attention is None:
        return None
    attention, key_attention = _attention(inputs, lse, settings)
    extra = torch.zeros_like(lse)
    if grad_attention is not None:
        extra += sum_rows(attention * grad_attention, settings.graph)
    if grad_key_attention is not None:
        extra += key_attention * grad_key_attention
    return extra


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _forward(
    starts,
    ends,
    rows,
    count,
    indptr,
    indices,
    feat,
    src,
    dst,
    key_feat,
    key_score,
    bag,
    edges,
    threshold,
    low,
    high,
    kept,
    slope,
    out,
    lse,
    DROPOUT: tl.constexpr,
    H: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    h, item, here, row, start, end, longest = row_block(starts, ends, rows, count, H, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    own = tl.load(dst + row * H + h, here, 0.0).to(tl.float32)
    top = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    if bag is not None:
        keyed = here  # a row in pieces takes its global key with the first of them
        if rows is not None:
            keyed = here & (start == tl.load(indptr + row, here, 0).to(tl.int64))
        b = tl.load(bag + row, keyed, 0)
        score = leaky_relu(tl.load(key_score + b * H + h, keyed, 0.0).to(tl.float32) + own, slope)
        score = tl.where(keyed, score, -float("inf"))
        top = tl.maximum(score, top)
        total = tl.exp(score - top)
        acc = tile_of_rows(key_feat, b, h, keyed, column, H, F) * total[:, None]
        if DROPOUT:
            acc *= keep((edges + row) * H + h, threshold, low, high, kept)[:, None]
    done = longest * 0
    while done < longest:
        e, there, j = edge_block(indices, start, end, done, BLOCK_E)
        x = leaky_relu(tl.load(src + j * H + h, there, 0.0).to(tl.float32) + own[:, None], slope)
        x = tl.where(there, x, -float("inf"))
        top, total, shrink, weight = softmax_step(top, total, x)
        if DROPOUT:
            weight *= keep(e * H + h, threshold, low, high, kept)
        tile = tile_of_edges(feat, j, h, there, column, H, F)
        acc = acc * shrink[:, None] + tl.sum(weight[:, :, None] * tile, 1)
        done += BLOCK_E
    finish_softmax(out, lse, acc, top, total, item, h, here, column, rows, H, F)


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _backward_dst(
    starts,
    ends,
    rows,
    count,
    indptr,
    indices,
    feat,
    src,
    dst,
    key_feat,
    key_score,
    bag,
    edges,
    threshold,
    low,
    high,
    kept,
    slope,
    lse,
    out,
    grad_out,
    grad_attention,
    grad_key_attention,
    extra,
    delta,
    grad_dst,
    key_weight,
    key_flow,
    DROPOUT: tl.constexpr,
    H: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of the destinations' scores, and ``delta``; for the global key of each row its weight after dropout and
    the gradient of its score."""
    h, item, here, row, start, end, longest = row_block(starts, ends, rows, count, H, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    own = tl.load(dst + row * H + h, here, 0.0).to(tl.float32)
    shift = tl.load(lse + row * H + h, here, 0.0)
    g = tile_of_rows(grad_out, row, h, here, column, H, F)
    mean = tl.sum(g * tile_of_rows(out, row, h, here, column, H, F), 1)
    if extra is not None:
        mean += tl.load(extra + row * H + h, here, 0.0)
    total = tl.zeros([BLOCK_R], tl.float32)
    if rows is None:
        tl.store(delta + row * H + h, mean, here)
        if bag is not None:
            b = tl.load(bag + row, here, 0)
            score = tl.load(key_score + b * H + h, here, 0.0).to(tl.float32) + own
            share = tl.exp(leaky_relu(score, slope) - shift)
            total = tl.sum(g * tile_of_rows(key_feat, b, h, here, column, H, F), 1)
            if DROPOUT:
                scale = keep((edges + row) * H + h, threshold, low, high, kept)
                total *= scale
                tl.store(key_weight + row * H + h, share * scale, here)
            else:
                tl.store(key_weight + row * H + h, share, here)
            if grad_key_attention is not None:
                total += tl.load(grad_key_attention + row * H + h, here, 0.0).to(tl.float32)
            total = share * (total - mean) * tl.where(score > 0, 1.0, slope)
            tl.store(key_flow + row * H + h, total, here)
    done = longest * 0
    while done < longest:
        e, there, j = edge_block(indices, start, end, done, BLOCK_E)
        x = tl.load(src + j * H + h, there, 0.0).to(tl.float32) + own[:, None]
        weight = tl.where(there, tl.exp(leaky_relu(x, slope) - shift[:, None]), 0.0)
        tile = tile_of_edges(feat, j, h, there, column, H, F)
        flow = tl.sum(g[:, None, :] * tile, 2)
        if DROPOUT:
            flow *= keep(e * H + h, threshold, low, high, kept)
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        total += tl.sum(weight * (flow - mean[:, None]) * tl.where(x > 0, 1.0, slope), 1)
        done += BLOCK_E
    tl.store(grad_dst + item * H + h, total, here)


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def _backward_src(
    starts,
    ends,
    rows,
    count,
    indptr,
    indices,
    feat,
    src,
    dst,
    key_feat,
    key_score,
    bag,
    edges,
    threshold,
    low,
    high,
    kept,
    slope,
    edge,
    lse,
    grad_out,
    grad_attention,
    delta,
    grad_feat,
    grad_src,
    DROPOUT: tl.constexpr,
    H: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of the sources' features and scores, by rows of the transposed graph."""
    h, item, here, row, start, end, longest = row_block(starts, ends, rows, count, H, BLOCK_R)
    column = tl.arange(0, BLOCK_F)
    own = tl.load(src + row * H + h, here, 0.0).to(tl.float32)
    f = tile_of_rows(feat, row, h, here, column, H, F)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    done = longest * 0
    while done < longest:
        t, there, i = edge_block(indices, start, end, done, BLOCK_E)
        e = tl.load(edge + t, there, 0).to(tl.int64)
        x = tl.load(dst + i * H + h, there, 0.0).to(tl.float32) + own[:, None]
        weight = tl.exp(leaky_relu(x, slope) - tl.load(lse + i * H + h, there, 0.0))
        weight = tl.where(there, weight, 0.0)
        g = tile_of_edges(grad_out, i, h, there, column, H, F)
        flow = tl.sum(f[:, None, :] * g, 2)
        dropped = weight
        if DROPOUT:
            scale = keep(e * H + h, threshold, low, high, kept)
            flow *= scale
            dropped *= scale
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        mean = tl.load(delta + i * H + h, there, 0.0)
        total += tl.sum(weight * (flow - mean) * tl.where(x > 0, 1.0, slope), 1)
        acc += tl.sum(dropped[:, :, None] * g, 1)
        done += BLOCK_E
    store_rows(grad_feat, item, h, acc, here, column, H, F)
    tl.store(grad_src + item * H + h, total.to(grad_src.dtype.element_ty), here)
