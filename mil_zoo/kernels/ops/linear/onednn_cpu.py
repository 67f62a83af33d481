"""Linear maps in float32 by oneDNN, on CPUs whose vectors PyTorch's own products leave half empty."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

LEAST = 2**21  # multiplications from which the call, 10 us longer, is made up for (one thread of a Zen 5)


def why_not() -> str | None:
    """Why oneDNN's products cannot be had here; None where they can."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch does not offer oneDNN's linear map"
    return None


@functools.cache
def is_faster() -> bool:
    """Says whether PyTorch's own products are MKL's on a CPU with AVX-512 whose maker is not Intel."""
    wide = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and "GenuineIntel" not in _cpu() and why_not() is None


def pays(x: Tensor, weight: Tensor) -> bool:
    """Says whether the map of ``x [..., D]`` by ``weight [O, D]`` is taken here."""
    return (
        is_faster()
        and x.numel() * len(weight) >= LEAST
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See ``linear``."""
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out if x.ndim == 2 else out.view(*x.shape[:-1], -1)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` of ``[M, D]``, ``[D, O]`` and ``[O]``, without a gradient."""
    if not (a.numel() and b.numel()):  # oneDNN does not plan for nothing
        return a @ b if bias is None else torch.addmm(bias, a, b)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        # The gradient of a gradient is left to PyTorch.
        multiply = torch.matmul if torch.is_grad_enabled() else product
        return (
            multiply(grad, weight) if wanted_x else None,
            multiply(grad.t(), x) if wanted_weight else None,
            grad.sum(0) if wanted_bias else None,
        )


def _cpu() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return platform.processor()
