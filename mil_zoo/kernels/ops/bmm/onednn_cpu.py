"""Products of pairs of matrices by oneDNN, one after another: forward and both gradients."""

from __future__ import annotations

import torch

from mil_zoo.kernels.onednn import product


def forward(a, b):
    """See ``bmm``."""
    return _Bmm.apply(a, b)


class _Bmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return _products(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        # The gradient of a gradient is left to PyTorch.
        multiply = torch.bmm if torch.is_grad_enabled() else _products
        return (
            multiply(grad, b.transpose(1, 2)) if ctx.needs_input_grad[0] else None,
            multiply(a.transpose(1, 2), grad) if ctx.needs_input_grad[1] else None,
        )


def _products(a, b):
    out = a.new_empty(len(a), a.shape[1], b.shape[2])
    for h in range(len(a)):
        out[h] = product(a[h], b[h])
    return out
