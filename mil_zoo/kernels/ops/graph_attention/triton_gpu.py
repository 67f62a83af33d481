"""Graph attention on a GPU: the autograd function of the fused kernels in ``triton_kernels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._triton.rows import all_rows, walk
from mil_zoo.kernels._triton.segments import Pieces, join_softmax, range_sum, segment_sum
from mil_zoo.kernels._triton.tools import Dropout, float32, sum_rows
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.devices import require
from mil_zoo.kernels.long_rows import Rows
from mil_zoo.kernels.ops.graph_attention import triton_kernels as kernels

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
        _walk(kernels.forward, graph, all_rows(graph), inputs, settings, out=out, lse=lse)
        if long := graph.long_rows:
            parts = float32(feat, long.pieces.count, heads, width), float32(feat, long.pieces.count, heads)
            _walk(kernels.forward, graph, long.pieces, inputs, settings, out=parts[0], lse=parts[1])
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
        _walk(
            kernels.backward_dst, graph, all_rows(graph), inputs, settings, **saved, **more, grad_dst=grad_dst, **to_key
        )
        if long := graph.long_rows:
            part = float32(feat, long.pieces.count, heads)
            to_key = {"key_weight": None, "key_flow": None}
            _walk(kernels.backward_dst, graph, long.pieces, inputs, settings, **saved, **more, grad_dst=part, **to_key)
            grad_dst[long.rows] += range_sum(part[:, :, None], long.first)[:, :, 0]
        grad_feat, grad_src = torch.empty_like(feat), torch.empty_like(src_score)
        saved["edge"] = back.edge
        own = {"grad_feat": grad_feat, "grad_src": grad_src}
        _walk(kernels.backward_src, back, all_rows(back), inputs, settings, **saved, **own)
        if long := back.long_rows:
            parts = float32(feat, long.pieces.count, heads, width), float32(feat, long.pieces.count, heads)
            own = {"grad_feat": parts[0], "grad_src": parts[1]}
            _walk(kernels.backward_src, back, long.pieces, inputs, settings, **saved, **own)
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
