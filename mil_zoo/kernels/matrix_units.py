"""Which products in float32 go to a GPU's matrix units, which cuBLAS leaves alone in that precision."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mil_zoo.kernels.backends import available_backends

LEAST = 2**31  # multiplications from which a launch by Python, 30 us longer, is made up for


def pays(x: Tensor, columns: int) -> bool:
    """Says whether the product of ``x`` ``[..., K]`` with so many columns is taken from ``_triton.products``.

    It is where it is large and in float32, and the user has not asked PyTorch for TensorFloat-32 alone.
    """
    return (
        x.is_cuda
        and x.dtype == torch.float32
        and x.numel() * columns >= LEAST
        and x.shape[-1] % 4 == columns % 4 == 0  # rows that begin at a multiple of 16 bytes
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cuda")
        and not allows_tensorfloat32()
        and _has_units(x.device)
    )


def allows_tensorfloat32() -> bool:
    """Says whether the user has asked PyTorch for products in TensorFloat-32 on GPUs, in one of its ways."""
    try:
        precision: str = torch.backends.cuda.matmul.fp32_precision
    except AttributeError:  # before torch 2.9; later ones refuse the old question once the new setting was used
        return torch.get_float32_matmul_precision() != "highest"
    return precision not in ("none", "ieee")


@functools.cache
def _has_units(device: torch.device) -> bool:
    is_nvidia = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_nvidia and "triton" in available_backends()
