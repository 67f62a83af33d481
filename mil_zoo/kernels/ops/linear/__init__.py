"""Linear maps, by the fastest matrix product that the CPU has."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mil_zoo.kernels import onednn
from mil_zoo.kernels.backends import choose_backend
from mil_zoo.kernels.checks import check_tensor
from mil_zoo.kernels.ops.linear import onednn_cpu

IMPLEMENTATIONS = {"reference": F.linear, "onednn": onednn_cpu.forward}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """A linear map ``x @ weight^T + bias``: ``torch.nn.functional.linear``, faster on some CPUs.

    PyTorch takes products in float32 from MKL, which gives CPUs that are not Intel's code for AVX2, whatever they have.
    oneDNN, which PyTorch carries too, asks the CPU: on a Zen 5 it takes half the time. It is used for such products on
    such CPUs, from ``onednn.LEAST`` multiplications on; sums are taken in float32 either way, in another order.

    Args:
        x: ``[..., D]`` float.
        weight: ``[O, D]``.
        bias: ``[O]``, or None.
        backend: "auto", "reference" (PyTorch's own), or "onednn" (float32 on a CPU).

    Returns:
        ``[..., O]``; under autocast in its precision, as PyTorch's.

    Raises:
        InputError: a backend that cannot run, or tensors that it does not take.
    """
    if backend == "auto":
        tensors = (x, weight) if bias is None else (x, weight, bias)
        is_faster = onednn.pays(x.numel() * len(weight), *tensors) and _fits(x, weight, bias)
        return (onednn_cpu.forward if is_faster else F.linear)(x, weight, bias)
    name = choose_backend("linear", IMPLEMENTATIONS, backend, x.device, x.dtype)
    if name == "onednn":
        onednn.check(x)
        check_tensor("weight", weight, (None, x.shape[-1]), like=x)
        if bias is not None:
            check_tensor("bias", bias, (len(weight),), like=x)
    return IMPLEMENTATIONS[name](x, weight, bias)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Says whether the shapes are those of the docstring: what else PyTorch takes or refuses is left to it."""
    return weight.ndim == 2 and x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
