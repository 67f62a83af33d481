"""Rows picked by an index, dropout and linear maps in one op: the first half of a layer over packed copies of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import autocast_dtype, check_dropout, check_tensor, in_float32
from mil_zoo.kernels.devices import require
from mil_zoo.kernels.draws import draw_seed
from mil_zoo.kernels.ops.dropout_linear import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.dropout_linear.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.dropout_linear.triton_gpu"),
}


def dropout_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    sizes: Sequence[int] | None = None,
    index: Tensor | None = None,
    token: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """A linear map of dropped-out rows, its columns dealt out to several tensors.

    ``h_m = dropout(x[index_m])``, or ``dropout(token)`` where ``index_m`` is -1; the output is ``h @ weight^T + bias``.
    A row that is listed twice is dropped out twice, independently. Under autocast products are taken in its precision.

    Args:
        x: ``[N, D]`` float.
        weight: ``[O, D]``.
        bias: ``[O]``, or None.
        sizes: columns of each output, O in all; None for one output.
        index: integer ``[M]``, rows of ``x``, -1 for the token; None for every row once.
        token: ``[D]``, needed where the index holds -1.
        dropout_p: rate at which entries of h are dropped.
        seed: of the dropout; None draws one. Entry d of row m is keyed by ``m * D + d``.
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[M, size]`` for each size.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, an index out of range, or a backend that cannot run.
    """
    precision = autocast_dtype(x) or x.dtype
    return _in_precision(
        x,
        weight,
        bias,
        sizes=sizes,
        index=index,
        token=token,
        dropout_p=dropout_p,
        seed=seed,
        backend=backend,
        precision=precision,
    )


@in_float32
def _in_precision(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    sizes: Sequence[int] | None,
    index: Tensor | None,
    token: Tensor | None,
    dropout_p: float,
    seed: int | Tensor | None,
    backend: str,
    precision: torch.dtype,
) -> tuple[Tensor, ...]:
    check_tensor("x", x, (None, None))
    check_tensor("weight", weight, (None, x.shape[1]), like=x)
    if bias is not None:
        check_tensor("bias", bias, (len(weight),), like=x)
    sizes = [len(weight)] if sizes is None else list(sizes)
    if sum(sizes) != len(weight):
        raise InputError(f"sizes must add up to the {len(weight)} rows of weight, not {sum(sizes)}")
    if token is not None:
        check_tensor("token", token, (x.shape[1],), like=x)
    check_dropout(dropout_p)
    if index is not None:
        _check_index(index, x, token)
    if dropout_p > 0 and seed is None:
        seed = draw_seed()
    name = choose_backend("dropout_linear", IMPLEMENTATIONS, backend, x.device, x.dtype)
    outputs: tuple[Tensor, ...] = IMPLEMENTATIONS[name](
        x,
        weight,
        bias,
        sizes=sizes,
        index=index,
        token=token,
        dropout_p=dropout_p,
        seed=0 if seed is None else seed,
        precision=precision,
    )
    return outputs


def _check_index(index: Tensor, x: Tensor, token: Tensor | None) -> None:
    if index.ndim != 1 or index.dtype not in (torch.int32, torch.int64):
        raise InputError(f"index must be integer [M], not {index.dtype} {list(index.shape)}")
    if index.device != x.device:
        raise InputError(f"index is on {index.device}, x on {x.device}; convert one of them")
    lowest = 0 if token is None else -1
    if len(index):
        least, most = index.aminmax()
        require(
            (least >= lowest) & (most < len(x)),
            lambda: f"index must lie in {lowest}..{len(x) - 1}, not {int(least)}..{int(most)}",
        )
