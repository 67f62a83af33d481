"""Selective scan over packed bags: the state-space recurrence of Mamba, along the instances of each bag."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import check_offsets, check_tensor, in_float32
from mil_zoo.kernels.draws import from_host
from mil_zoo.kernels.ops.selective_scan import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.selective_scan.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.selective_scan.triton_gpu"),
}


class Inputs(NamedTuple):
    """The tensors of a call, as every backend gets them; see :func:`selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


@in_float32
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    softplus: bool = False,
    offsets: Tensor | None = None,
    *,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs a linear recurrence with n states along each of d channels, whose coefficients the inputs select.

    From ``h = 0`` at the start of every bag, with ``dt_t = delta_t + delta_bias`` (through softplus where asked for)::

        h_t = exp(dt_t A) * h_(t-1) + (dt_t u_t) B_t^T        [d, n]
        y_t = (h_t C_t + D * u_t) * silu(z_t)                 [d]

    Time is linear in L. Memory beside inputs and result too: backward keeps the states at every 64th instance, and
    computes those between them again; nothing of size L x d x n is ever stored.

    Args:
        u: ``[L, d]`` float.
        delta: ``[L, d]``.
        A: ``[d, n]``; entries should not be positive, for then states grow.
        B: ``[L, n]``.
        C: ``[L, n]``.
        D: ``[d]``, or None for no direct path from input to output.
        z: ``[L, d]``, or None for no gate.
        delta_bias: ``[d]``, or None.
        softplus: whether dt is the softplus of delta and its bias.
        offsets: integer ``[bags + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``. None for one bag.
        return_last_state: also return the state after the last instance of each bag (without gradient).
        backend: "auto", or one of ``available_backends()``.

    Returns:
        ``[L, d]``; with ``return_last_state`` also ``[bags, d, n]``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, an empty bag, or a backend that cannot run.

    Source: Gu & Dao, Mamba, 2023, algorithm 2; github state-spaces/mamba (``selective_scan_ref``).
    """
    check_tensor("u", u, (None, None))
    rows, channels = u.shape
    check_tensor("A", A, (channels, None), like=u)
    states = A.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]]
    expected = {"delta": (delta, (rows, channels)), "B": (B, (rows, states)), "C": (C, (rows, states))}
    expected |= {"D": (D, (channels,)), "z": (z, (rows, channels)), "delta_bias": (delta_bias, (channels,))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            check_tensor(name, tensor, shape, like=u)
    if offsets is None:
        offsets = from_host(lambda: torch.tensor([0, rows]), u.device)
    check_offsets(offsets, rows, u.device)
    name = choose_backend("selective_scan", IMPLEMENTATIONS, backend, u.device, u.dtype)
    y, last = IMPLEMENTATIONS[name](Inputs(u, delta, A, B, C, D, z, delta_bias), softplus, offsets)
    return (y, last) if return_last_state else y
