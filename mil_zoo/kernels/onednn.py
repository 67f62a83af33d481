"""Matrix products in float32 by oneDNN, on CPUs whose vectors PyTorch's own products leave half empty."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.checks import autocast_dtype

LEAST = 2**21  # multiplications from which the call, 10 us longer, is made up for (one thread of a Zen 5)

COPIED, ADDED_TO = 2**18, 2**21
"""Numbers that take less time to copy than oneDNN takes to compile a product of a shape that it has not met, and those
of a result that may hold some rows more."""

LONG, PART = 2**14, 2**12
"""A longer sum, and the parts it is taken by where ``a`` is transposed: oneDNN copies it, a part in the caches."""


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


@functools.cache
def multiplies_bfloat16() -> bool:
    """Says whether this CPU has instructions that multiply bfloat16: AMX or AVX512_BF16."""
    return why_not() is None and any(flag in _cpu().split() for flag in ("amx_bf16", "avx512_bf16"))


def pays(multiplications: int, *tensors: Tensor) -> bool:
    """Says whether products of so many multiplications are taken here: of float32 on such a CPU, without autocast."""
    return (
        not torch.compiler.is_compiling()
        and is_faster()
        and multiplications >= LEAST
        and all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def check(x: Tensor, backend: str = "onednn") -> None:
    """Checks that products of ``x`` are in float32, where a backend that takes no others was asked for by name."""
    precision = autocast_dtype(x) or x.dtype
    if precision != torch.float32:
        raise InputError(f"backend {backend!r} takes float32 products, not {precision}")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` of ``[M, D]``, ``[D, O]`` and ``[O]``, without a gradient."""
    if not (a.numel() and b.numel()):  # oneDNN does not plan for nothing
        return a @ b if bias is None else torch.addmm(bias, a, b)
    if bias is None and not a.is_contiguous():
        if a.shape[1] > LONG:
            return _by_parts(a, b)
        if 2 * b.shape[1] <= a.shape[0] and b.is_contiguous():
            return product(b.t(), a.t()).t().contiguous()  # oneDNN copies what lies across: the narrower one
    bias = None if bias is None else bias.contiguous()  # whose strides oneDNN does not ask for
    out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b).t(), bias, "none", [], "")
    return out


def product_of_rows(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``product`` of one row an instance with a weight, or of two matrices of such rows where ``a`` is transposed.

    oneDNN compiles a program for every shape, half a millisecond each time, and keeps the last thousand: bags of many
    sizes make it start again and again. Few rows are followed by zeros up to one of few numbers, see :func:`room`.
    """
    if a.is_contiguous() and a.numel() <= COPIED and len(a) * b.shape[1] <= ADDED_TO:
        out = product(_with_room(a), b, bias)
        return out.resize_(len(a), out.shape[1])  # a slice would be a view, which nobody may change in place
    if not a.is_contiguous() and a.numel() + b.numel() <= COPIED:
        return product(_with_room(a.t()).t(), _with_room(b), bias)
    return product(a, b, bias)


def room(rows: int) -> int:
    """``rows``, or up to an eighth (or 7) more: of few different numbers, where products are oneDNN's."""
    step = max(8, 2 ** rows.bit_length() // 16) if is_faster() else 1
    return -(-rows // step) * step


def _with_room(rows: Tensor) -> Tensor:
    whole = room(len(rows))
    if whole == len(rows):
        return rows
    padded = rows.new_empty(whole, rows.shape[1])
    numbers = padded.numpy()  # torch would wake its threads for so few, which takes longer than the copy
    numbers[: len(rows)], numbers[len(rows) :] = rows.detach().numpy(), 0
    return padded


def _by_parts(a: Tensor, b: Tensor) -> Tensor:
    total = a.new_zeros(len(a), b.shape[1])
    for some, of_them in zip(a.split(PART, dim=1), b.split(PART), strict=True):
        total += product(some, of_them)
    return total


def _dense(x: Tensor) -> Tensor:
    """``x`` without gaps between its rows or columns, for which oneDNN takes a thousand times as long."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def _cpu() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return platform.processor()
