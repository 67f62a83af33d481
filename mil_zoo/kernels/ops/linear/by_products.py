"""A linear map and both gradients by a product of matrices that is faster than PyTorch's own."""

from __future__ import annotations

import math

import torch


def linear(x, weight, bias, product):
    """See ``linear``; ``product(a, b, bias)`` gives ``a @ b + bias`` of matrices, without a gradient."""
    rows = math.prod(x.shape[:-1])  # of no columns, too, which leave a -1 open
    out = _Linear.apply(x.reshape(rows, x.shape[-1]), weight, bias, product)
    return out if x.ndim == 2 else out.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, product):
        ctx.save_for_backward(x, weight)
        ctx.product = product
        return product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias, _ = ctx.needs_input_grad
        # The gradient of a gradient is left to PyTorch.
        multiply = torch.mm if torch.is_grad_enabled() else ctx.product
        return (
            multiply(grad, weight) if wanted_x else None,
            multiply(grad.t(), x) if wanted_weight else None,
            grad.sum(0) if wanted_bias else None,
            None,
        )
