"""Attention of all queries to all keys by products of matrices, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mil_zoo.kernels import onednn


class _Blocks(NamedTuple):
    """What is taken together.

    Attributes:
        heads: of a block; None for all.
        pairs: logits of a block, about.
        multiply: gives ``a_h @ b_h`` of ``[heads, M, K]`` and ``[heads, K, N]``.
    """

    heads: int | None
    pairs: int
    multiply: Callable[[Tensor, Tensor], Tensor]

    def of(self, q: Tensor, k: Tensor) -> list[tuple[slice, slice]]:
        """Heads and queries of each block."""
        heads = self.heads or max(1, len(q))
        rows = max(1, self.pairs // max(1, heads * k.shape[1]))
        return [
            (slice(h, h + heads), slice(i, i + rows))
            for h in range(0, len(q), heads)
            for i in range(0, q.shape[1], rows)
        ]


_CPU = _Blocks(1, 2**20, lambda a, b: onednn.product(a[0], b[0])[None])  # 4 MB of logits
_GPU = _Blocks(None, 2**26, torch.bmm)  # 256 MB


def on_a_cpu(q, k, v, bias):
    """See ``dense_attention``: by products of oneDNN."""
    return _DenseAttention.apply(q, k, v, bias, _CPU)


def on_a_gpu(q, k, v, bias):
    """See ``dense_attention``: by PyTorch's products, all heads at a time."""
    return _DenseAttention.apply(q, k, v, bias, _GPU)


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, blocks):
        # Without gaps between rows: a product would copy what it is given, once in every block.
        q = torch.mul(q, _scale(q), out=q.new_empty(q.shape))
        k, v = k.contiguous(), v.contiguous()
        out = q.new_empty(*q.shape[:2], v.shape[2])
        for h, rows in blocks.of(q, k):
            out[h, rows] = blocks.multiply(_weights(q[h, rows], k[h], bias, blocks), v[h])
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, bias, out = ctx.saved_tensors
        grad = grad.contiguous()
        blocks, multiply = ctx.blocks, ctx.blocks.multiply
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (grad * out).sum(-1, keepdim=True)  # of the weights' gradients, by the weights
        for h, rows in blocks.of(q, k):
            queries, flow = q[h, rows], grad[h, rows]
            weights = _weights(queries, k[h], bias, blocks)
            grad_v[h] += multiply(flow.mT, weights).mT  # of two orders the faster
            logits = multiply(flow, v[h].mT).sub_(mean[h, rows]).mul_(weights)
            grad_q[h, rows] = multiply(logits, k[h])
            grad_k[h] += multiply(queries.mT, logits).mT
        return grad_q.mul_(_scale(q)), grad_k, grad_v, None, None


def _scale(q):
    return max(1, q.shape[-1]) ** -0.5  # of no columns all logits are 0


def _weights(q, k, bias, blocks):
    logits = blocks.multiply(q, k.mT)
    if bias is not None:
        logits += bias
    return torch.softmax(logits, -1)
