"""Relational graph convolution in plain PyTorch: gather, one GEMM a relation, scatter."""

from __future__ import annotations

import torch


def forward(x, weight, edges):
    """See ``relational_gather_gemm``."""
    total = x.new_zeros(edges.num_dst, weight.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    parts = zip(weight.unbind(), edges.src.split(edges.counts), edges.dst.split(edges.counts), strict=True)
    for w, src, dst in parts:
        if len(src):
            total.index_add_(0, dst, (x.index_select(0, src) @ w).to(total.dtype))
    return total.to(x.dtype)
