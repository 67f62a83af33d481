"""Reductions over packed bags: sum, mean, max, logsumexp."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.backends import choose_backend, is_small_bag, lazy
from mil_zoo.kernels.checks import check_offsets, check_tensor, in_float32
from mil_zoo.kernels.ops.segment_reduce import one_bag, reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.segment_reduce.numba_cpu"),
    "triton": lazy("mil_zoo.kernels.ops.segment_reduce.triton_gpu"),
}


Reduction = Literal["sum", "mean", "max", "logsumexp"]


@overload
def segment_reduce(
    values: Tensor, offsets: Tensor, reduce: Reduction, *, return_argmax: Literal[False] = ..., backend: str = ...
) -> Tensor: ...


@overload
def segment_reduce(
    values: Tensor, offsets: Tensor, reduce: Reduction, *, return_argmax: Literal[True], backend: str = ...
) -> tuple[Tensor, Tensor]: ...


@in_float32
def segment_reduce(
    values: Tensor,
    offsets: Tensor,
    reduce: Reduction,
    *,
    return_argmax: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Reduces the instances of each bag.

    Args:
        values: ``[N, F]`` float.
        offsets: integer ``[B + 1]``; no bag may be empty.
        reduce: the reduction. The gradient of "max" goes to the first instance that attains it (or is NaN). The
            "logsumexp" of values with +inf is +inf, of -inf alone -inf; its gradient is NaN at values that are that
            infinity, and 0 at others.
        return_argmax: with "max", also return which instance attains it.
        backend: "auto", or one of ``available_backends()``. On a CPU "auto" takes PyTorch's own operations for one bag
            of few numbers.

    Returns:
        ``[B, F]``; with ``return_argmax`` also int64 ``[B, F]`` (rows of ``values``).

    Raises:
        InputError: shapes or devices that do not fit, an empty bag, an unknown reduction.
    """
    check_tensor("values", values, (None, None))
    check_offsets(offsets, len(values), values.device)
    if reduce not in ("sum", "mean", "max", "logsumexp"):
        raise InputError(f"reduce must be sum, mean, max or logsumexp, not {reduce!r}")
    if return_argmax and reduce != "max":
        raise InputError(f"return_argmax needs reduce='max', not {reduce!r}")
    name = choose_backend("segment_reduce", IMPLEMENTATIONS, backend, values.device, values.dtype)
    implementation = IMPLEMENTATIONS[name]
    if backend == "auto" and name == "numba" and is_small_bag(values, offsets, 4 * values.numel()):
        implementation = one_bag.forward
    reduced, argmax = implementation(values, offsets, reduce)
    return (reduced, argmax) if return_argmax else reduced
