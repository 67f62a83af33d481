"""Linear maps in float32 by oneDNN: forward and both gradients."""

from __future__ import annotations

import torch

from mil_zoo.kernels.onednn import product


def forward(x, weight, bias=None):
    """See ``linear``."""
    out = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out if x.ndim == 2 else out.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        # The gradient of a gradient is left to PyTorch.
        multiply = torch.mm if torch.is_grad_enabled() else product
        return (
            multiply(grad, weight) if wanted_x else None,
            multiply(grad.t(), x) if wanted_weight else None,
            grad.sum(0) if wanted_bias else None,
        )
