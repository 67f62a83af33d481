"""Attention of all queries to all keys by products of oneDNN: head by head, and a block of queries at a time."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from mil_zoo.kernels.onednn import product

PAIRS = 2**20  # logits of a block: 4 MB


def forward(q, k, v, bias):
    """See ``dense_attention``."""
    return _DenseAttention.apply(q, k, v, bias)


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias):
        q = q * q.shape[-1] ** -0.5
        out = q.new_empty(*q.shape[:2], v.shape[2])
        k, v = k.contiguous(), v.contiguous()  # once, and not in every block
        for h, rows in _blocks(q, k):
            out[h, rows] = product(_weights(q[h, rows], k[h], bias), v[h])
        ctx.save_for_backward(q, k, v, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, bias, out = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (grad * out).sum(-1, keepdim=True)  # of the weights' gradients, by the weights
        for h, rows in _blocks(q, k):
            queries, flow = q[h, rows], grad[h, rows]
            weights = _weights(queries, k[h], bias)
            grad_v[h] += product(flow.t(), weights).t()  # of two orders the faster
            logits = product(flow, v[h].t()).sub_(mean[h, rows]).mul_(weights)
            grad_q[h, rows] = product(logits, k[h])
            grad_k[h] += product(queries.t(), logits).t()
        return grad_q.mul_(q.shape[-1] ** -0.5), grad_k, grad_v, None


def _blocks(q, k):
    """Each head, and slices of its queries."""
    rows = max(1, PAIRS // max(1, k.shape[1]))
    return [(h, slice(i, i + rows)) for h in range(len(q)) for i in range(0, q.shape[1], rows)]


def _weights(q, k, bias):
    logits = product(q, k.t())
    if bias is not None:
        logits += bias
    return torch.softmax(logits, -1)
