"""Linear maps, by the fastest matrix product that the CPU or the GPU has."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mil_zoo.kernels import matrix_units, onednn
from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_tensor
from mil_zoo.kernels.ops.linear import onednn_cpu

IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": F.linear,
    "onednn": onednn_cpu.forward,
    "triton": lazy("mil_zoo.kernels.ops.linear.triton_gpu"),
}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """A linear map ``x @ weight^T + bias``: ``torch.nn.functional.linear``, faster on some CPUs and on GPUs.

    PyTorch takes products in float32 from MKL, which gives CPUs that are not Intel's code for AVX2, whatever they have.
    oneDNN, which PyTorch carries too, asks the CPU: on a Zen 5 it takes half the time. It is used for such products on
    such CPUs, from ``onednn.LEAST`` multiplications on. On a GPU of compute capability 8.0 or more, cuBLAS leaves the
    matrix units alone in float32; Triton's product gives them each number in two parts, with no larger error, and is
    used from ``matrix_units.LEAST`` multiplications on. Sums are taken in float32 either way, in another order.

    Args:
        x: ``[..., D]`` float.
        weight: ``[O, D]``.
        bias: ``[O]``, or None.
        backend: "auto", "reference" (PyTorch's own), "onednn" (float32 on a CPU), or "triton" (float32 on a GPU).

    Returns:
        ``[..., O]``; under autocast in its precision, as PyTorch's.

    Raises:
        InputError: a backend that cannot run, or tensors that it does not take.
    """
    if backend == "auto":
        return _fastest(x, weight, bias)(x, weight, bias)
    name = choose_backend("linear", IMPLEMENTATIONS, backend, x.device, x.dtype)
    if name != "reference":
        onednn.check(x, name)
        check_tensor("weight", weight, (None, x.shape[-1]), like=x)
        if bias is not None:
            check_tensor("bias", bias, (len(weight),), like=x)
    return IMPLEMENTATIONS[name](x, weight, bias)


def _fastest(x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if onednn.pays(x.numel() * len(weight), *tensors) and _fits(*tensors):
        return IMPLEMENTATIONS["onednn"]
    if matrix_units.pays(x, len(weight)) and _fits(*tensors):
        return IMPLEMENTATIONS["triton"]
    return F.linear


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Says whether the tensors are those of the docstring: what else PyTorch takes or refuses is left to it."""
    alike = all(
        tensor.dtype == x.dtype and tensor.device == x.device for tensor in (weight, bias) if tensor is not None
    )
    shaped = weight.ndim == 2 and x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
    return alike and shaped
