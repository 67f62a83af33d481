"""Bias, residual, LayerNorm and PReLU in one op: the second half of a layer."""

from __future__ import annotations

from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_tensor, in_float32
from mil_zoo.kernels.ops.residual_norm_prelu import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.residual_norm_prelu.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.residual_norm_prelu.triton_gpu"),
}


@in_float32
def residual_norm_prelu(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    slope: Tensor,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """``prelu(layer_norm(x + bias + residual))``.

    Args:
        x: ``[N, C]`` float.
        residual: ``[N, C]``, or None.
        bias: ``[C]``.
        norm_weight: ``[C]``.
        norm_bias: ``[C]``.
        slope: ``[1]``, of the PReLU below 0.
        eps: of the LayerNorm.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[N, C]``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a backend that cannot run.
    """
    check_tensor("x", x, (None, None))
    if residual is not None:
        check_tensor("residual", residual, x.shape, like=x)
    for name, vector in {"bias": bias, "norm_weight": norm_weight, "norm_bias": norm_bias}.items():
        check_tensor(name, vector, (x.shape[1],), like=x)
    check_tensor("slope", slope, (1,), like=x)
    name = choose_backend("residual_norm_prelu", IMPLEMENTATIONS, backend, x.device, x.dtype)
    out: Tensor = IMPLEMENTATIONS[name](
        x, residual, bias=bias, norm_weight=norm_weight, norm_bias=norm_bias, slope=slope, eps=eps
    )
    return out
