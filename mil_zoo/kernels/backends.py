"""Which implementations of an op can run here, and which one a call gets."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mil_zoo.errors import InputError, did_you_mean


def _reference() -> str | None:
    return None


def _dgl() -> str | None:
    if _forked_from_numba:
        return _FORKED
    reason: str | None = importlib.import_module("mil_zoo._dgl").why_not()
    return reason


def _numba() -> str | None:
    if _forked_from_numba:
        return _FORKED
    try:
        numba = importlib.import_module("numba")  # not just found: it refuses versions of numpy that it does not know
        if numba.config.DISABLE_JIT:
            return "NUMBA_DISABLE_JIT is set, and what it compiles cannot run otherwise; unset it"
    except ImportError as error:
        return f"numba cannot be imported ({error}); `mil-zoo doctor` tells what to install"
    except Exception as error:  # NUMBA_NUM_THREADS=0 for instance
        return f"numba cannot be imported ({error}); look at the variables NUMBA_... of the environment"
    return None


_FORKED = (
    "this process was forked from one that had run numba kernels, and OpenMP does not survive that; start processes "
    "with 'spawn'"
)
_forked_from_numba = False
_forked = False


def set_threads(number: int) -> None:
    """Sets how many CPU threads torch and the kernels use; a forked child keeps one, as it would wait for others."""
    torch.set_num_threads(1 if _forked else number)  # the Numba kernels follow torch


def _after_fork() -> None:
    # A team of OpenMP threads does not survive a fork: a child that asks for one waits for ever. With one thread torch
    # asks for none, and ``auto`` leaves the kernels of numba out.
    global _forked, _forked_from_numba
    _forked = True
    _forked_from_numba = _forked_from_numba or "mil_zoo.kernels._numba.threads" in sys.modules
    _reason.cache_clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _triton() -> str | None:
    try:
        tools = importlib.import_module("mil_zoo.kernels._triton.tools")
    except ImportError as error:
        return f"triton cannot be imported ({error}); it comes with CUDA builds of torch, or: pip install triton"
    if tools.INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return (
            "torch sees no CUDA device (Triton's interpreter, slow and made for tests, takes CPU tensors: set "
            "TRITON_INTERPRET=1 before Python starts)"
        )
    capability = torch.cuda.get_device_capability()
    if torch.version.cuda and capability < (8, 0):
        return f"the CUDA device has compute capability {'.'.join(map(str, capability))}, and Triton needs 8.0"
    return None


def _onednn() -> str | None:
    reason: str | None = importlib.import_module("mil_zoo.kernels.onednn").why_not()
    return reason


_CHECKS: dict[str, Callable[[], str | None]] = {
    "reference": _reference,
    "onednn": _onednn,
    "dgl": _dgl,
    "numba": _numba,
    "triton": _triton,
}

FEW = 2**19  # multiplications, some 50 us: what the kernels of an op over bags take to be called, forward and backward

# What "auto" prefers on each kind of device, best first. DGL's own wheels hold no CUDA code.
_PREFERENCE = {"cpu": ("numba", "dgl", "reference"), "cuda": ("triton", "reference")}
_CPU_ONLY = ("onednn", "dgl", "numba")


def lazy(module: str) -> Callable[..., Any]:
    """The ``forward`` of an implementation that is imported when it is first called, for what is slow to import."""

    load = functools.cache(functools.partial(importlib.import_module, module))

    def forward(*args: Any, **options: Any) -> Any:
        return load().forward(*args, **options)

    return forward


@functools.cache
def _reason(name: str) -> str | None:
    return _CHECKS[name]()


def backend_status() -> dict[str, str | None]:
    """Every backend by name: None where it runs on this machine, else the reason why it does not."""
    return {name: _reason(name) for name in _CHECKS}


def available_backends() -> list[str]:
    """Names of the backends that run on this machine."""
    return [name for name, reason in backend_status().items() if reason is None]


def ops_of(backend: str) -> list[str]:
    """Names of the ops that a backend has."""
    package = importlib.import_module("mil_zoo.kernels")
    modules = {name: sys.modules.get(f"{package.__name__}.ops.{name}") for name in package.__all__}
    return [name for name, module in modules.items() if backend in getattr(module, "IMPLEMENTATIONS", ())]


def choose_backend(
    op: str,
    implementations: Mapping[str, Any],
    requested: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> str:
    """The backend that a call of ``op`` runs on. An explicit request never falls back to another one.

    While torch traces a model to export it, "auto" is the reference.

    Args:
        op: name of the op, for messages.
        implementations: the backends that ``op`` has.
        requested: a backend's name, or "auto".
        device: where the call's tensors lie.
        dtype: of the call's tensors.

    Raises:
        InputError: an unknown backend, one that ``op`` does not have, or one that cannot run here or on such tensors.
    """
    if requested == "auto":
        if torch.compiler.is_exporting():  # only plain PyTorch can be traced
            return "reference"
        preferred = _PREFERENCE.get(device.type, ("reference",))
        able = (name for name in preferred if name in implementations and _reason(name) is None)
        return next(name for name in able if not _unfit(name, op, device, dtype))
    if requested not in _CHECKS:
        raise InputError(f"unknown backend {requested!r}{did_you_mean(requested, [*_CHECKS, 'auto'])}")
    if requested not in implementations:
        raise InputError(f"{op} has no {requested!r} backend; it has {', '.join(implementations)}")
    if _reason(requested) is not None:
        raise InputError(f"backend {requested!r} cannot run here: {_reason(requested)}")
    if unfit := _unfit(requested, op, device, dtype):
        raise InputError(unfit)
    return requested


def is_small_bag(values: torch.Tensor, offsets: torch.Tensor, multiplications: int) -> bool:
    """Says whether a batch is one bag of so few numbers that PyTorch's operations end before a kernel was called.

    Of half precision it is not: the kernels compute in float32.
    """
    return len(offsets) == 2 and multiplications < FEW and values.dtype.itemsize >= 4


def _unfit(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend does not take tensors of ``dtype`` on ``device``; None where it does."""
    if name in _CPU_ONLY and device.type != "cpu":
        return f"backend {name!r} works on CPU tensors, and {op} was given {device.type} tensors"
    if name == "triton":
        interpreted = importlib.import_module("mil_zoo.kernels._triton.tools").INTERPRETED
        if device.type != "cuda" and not (interpreted and device.type == "cpu"):
            return f"backend 'triton' works on CUDA tensors, and {op} was given {device.type} tensors; move them"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"backend 'triton' takes float16, bfloat16 and float32, not {dtype}; use backend='reference'"
    return None
