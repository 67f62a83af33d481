"""What the suites of kernels share: which backend is timed, random inputs, and a step forward and backward."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from mil_zoo.kernels.backends import ops_of


def fused(op: str, device: torch.device) -> str:
    """The fused backend of an op on a device; Triton's interpreter on a CPU, to rehearse what a GPU will run."""
    name = "triton" if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1" else "numba"
    if op not in ops_of(name):
        pytest.skip(f"{op} has no {name} backend")
    return name


def random_inputs(device, dtype, *shapes) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def floor_of(inputs: list[Tensor], out: Tensor, *constants: Tensor) -> int:
    return 2 * sum(x.nbytes for x in [*inputs, out]) + sum(x.nbytes for x in constants)


def run(measure, side: str, function, inputs: list[Tensor], constants: list[Tensor], size: int, **options) -> None:
    """Times ``function(*inputs)`` with its gradients."""
    with torch.no_grad():
        out = function(*inputs)
    grad, floor = torch.randn_like(out), floor_of(inputs, out, *constants)
    del out
    measure(lambda: torch.autograd.grad(function(*inputs), inputs, grad), side, floor_bytes=floor, size=size, **options)
