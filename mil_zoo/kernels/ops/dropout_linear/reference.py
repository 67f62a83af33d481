"""Picked rows, dropout and linear maps in plain PyTorch: the oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mil_zoo.kernels.dropout import dropout_scale


def forward(x, weight, bias, sizes, index, token, dropout_p, seed, precision):
    """See ``dropout_linear``. Returns one ``[M, size]`` a size."""
    h = x
    if index is not None:
        h = x.index_select(0, index.clamp(min=0)) if len(x) else x.new_zeros(len(index), x.shape[1])
        if token is not None:
            h = torch.where((index < 0)[:, None], token, h)
    if dropout_p > 0:
        h = h * dropout_scale(h.numel(), dropout_p, seed, h.device, h.dtype).view_as(h)
    out = F.linear(h.to(precision), weight.to(precision)).to(x.dtype)
    return (out if bias is None else out + bias).split(sizes, dim=1)
