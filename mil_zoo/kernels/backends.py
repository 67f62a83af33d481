"""Which implementations of an op can run here, and which one a call gets."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mil_zoo.errors import InputError, did_you_mean


def _reference() -> str | None:
    return None


def _dgl() -> str | None:
    return None if importlib.util.find_spec("dgl") else "dgl is not installed"


def _numba() -> str | None:
    try:
        importlib.import_module("numba")  # not just found: it refuses versions of numpy that it does not know
    except ImportError as error:
        return f"numba cannot be imported ({error}); install it with: pip install 'numba>=0.59'"
    return None


_CHECKS: dict[str, Callable[[], str | None]] = {"reference": _reference, "dgl": _dgl, "numba": _numba}

# What "auto" prefers on each kind of device, best first. DGL's own wheels hold no CUDA code.
_PREFERENCE = {"cpu": ("numba", "dgl", "reference"), "cuda": ("reference",)}
_CPU_ONLY = ("dgl", "numba")


def lazy(module: str) -> Callable[..., Any]:
    """The ``forward`` of an implementation that is imported when it is first called, for what is slow to import."""

    def forward(*args: Any) -> Any:
        return importlib.import_module(module).forward(*args)

    return forward


@functools.cache
def backend_status() -> dict[str, str | None]:
    """Every backend by name: None where it runs on this machine, else the reason why it does not."""
    return {name: check() for name, check in _CHECKS.items()}


def available_backends() -> list[str]:
    """Names of the backends that run on this machine."""
    return [name for name, reason in backend_status().items() if reason is None]


def choose_backend(op: str, implementations: Mapping[str, Any], requested: str, device: torch.device) -> str:
    """The backend that a call of ``op`` runs on. An explicit request never falls back to another one.

    Args:
        op: name of the op, for messages.
        implementations: the backends that ``op`` has.
        requested: a backend's name, or "auto".
        device: where the call's tensors lie.

    Raises:
        InputError: an unknown backend, one that ``op`` does not have, or one that cannot run here.
    """
    status = backend_status()
    if requested == "auto":
        preferred = _PREFERENCE.get(device.type, ("reference",))
        return next(name for name in preferred if name in implementations and status[name] is None)
    if requested not in status:
        raise InputError(f"unknown backend {requested!r}{did_you_mean(requested, [*status, 'auto'])}")
    if requested not in implementations:
        raise InputError(f"{op} has no {requested!r} backend; it has {', '.join(implementations)}")
    if status[requested] is not None:
        raise InputError(f"backend {requested!r} cannot run here: {status[requested]}")
    if requested in _CPU_ONLY and device.type != "cpu":
        raise InputError(f"backend {requested!r} works on CPU tensors, and {op} was given {device.type} tensors")
    return requested
