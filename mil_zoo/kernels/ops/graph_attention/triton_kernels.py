"""Fused kernels of graph attention: one pass over the edges forward, two backward, no ``[E, H, F]`` tensor.

A program walks the edges of a block of rows for one head, as tiles of rows x edges x features. Forward keeps the
log-sum-exp of every row, from which backward makes the weights again: once by destinations, for their scores, and once
by sources over the transposed graph, for the sources' features and scores. ``delta``, the mean of a row's gradients
under its weights, is the product of its output with the gradient of that (as in FlashAttention's backward: Dao et al.,
NeurIPS 2022). Rows with more than ``LONG`` edges are walked in pieces that are joined afterwards.
"""

from __future__ import annotations

import triton.language as tl

from mil_zoo.kernels._triton.rows import (
    INTERPRETED_ROW_BLOCKS,
    ROW_BLOCKS,
    edge_block,
    finish_softmax,
    row_block,
    softmax_step,
    store_rows,
    tile_of_edges,
    tile_of_rows,
)
from mil_zoo.kernels._triton.tools import LOWEST, kept_scale, leaky_relu, tuned


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def forward(
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
            acc *= kept_scale((edges + row) * H + h, threshold, low, high, kept)[:, None]
    done = longest * 0
    while done < longest:
        e, there, j = edge_block(indices, start, end, done, BLOCK_E)
        x = leaky_relu(tl.load(src + j * H + h, there, 0.0).to(tl.float32) + own[:, None], slope)
        x = tl.where(there, x, -float("inf"))
        top, total, shrink, weight = softmax_step(top, total, x)
        if DROPOUT:
            weight *= kept_scale(e * H + h, threshold, low, high, kept)
        tile = tile_of_edges(feat, j, h, there, column, H, F)
        acc = acc * shrink[:, None] + tl.sum(weight[:, :, None] * tile, 1)
        done += BLOCK_E
    finish_softmax(out, lse, acc, top, total, item, h, here, column, rows, H, F)


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def backward_dst(
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
                scale = kept_scale((edges + row) * H + h, threshold, low, high, kept)
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
            flow *= kept_scale(e * H + h, threshold, low, high, kept)
        if grad_attention is not None:
            flow += tl.load(grad_attention + e * H + h, there, 0.0).to(tl.float32)
        total += tl.sum(weight * (flow - mean[:, None]) * tl.where(x > 0, 1.0, slope), 1)
        done += BLOCK_E
    tl.store(grad_dst + item * H + h, total, here)


@tuned(("H", "BLOCK_F"), ROW_BLOCKS, INTERPRETED_ROW_BLOCKS)
def backward_src(
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
            scale = kept_scale(e * H + h, threshold, low, high, kept)
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
