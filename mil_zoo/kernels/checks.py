"""Argument checks that every op shares: an error, never a crash."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels import devices
from mil_zoo.kernels.csr import CSR

Op = TypeVar("Op", bound=Callable[..., Any])


def in_float32(op: Op) -> Op:
    """Decorator of a public op: under autocast its floating tensors are float32, and so are its results.

    Softmax, norms and sums are thus taken in float32 whatever precision the products around them have.
    """

    @functools.wraps(op)
    def wrapped(*args: Any, **options: Any) -> Any:
        # A list, and not the next of a generator, which torch 2.8 cannot trace.
        tensors = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
        first = tensors[0] if tensors else None
        if first is None or autocast_dtype(first) is None:
            return op(*args, **options)
        with torch.autocast(first.device.type, enabled=False):
            return op(*map(_float32, args), **{name: _float32(value) for name, value in options.items()})

    return wrapped  # type: ignore[return-value]


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The precision of matrix products under the autocast that is on for the tensor's device, or None."""
    if torch.compiler.is_exporting():  # nothing is exported under autocast, and not every torch can trace the question
        return None
    device = tensor.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return None
    return torch.get_autocast_dtype(device)


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_float32, value))
    return value


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int | None], like: Tensor | None = None) -> None:
    """Checks a floating tensor's shape (None: any size) and, against ``like``, its device and dtype."""
    if not tensor.is_floating_point():
        raise InputError(f"{name} must be floating point, not {tensor.dtype}")
    sizes = tensor.shape
    if len(sizes) != len(shape) or [s for s, t in zip(shape, sizes, strict=True) if s is not None and s != t]:
        expected = ", ".join("*" if size is None else str(size) for size in shape)
        raise InputError(f"{name} must have shape [{expected}], not {list(tensor.shape)}")
    if like is not None and (tensor.device != like.device or tensor.dtype != like.dtype):
        raise InputError(
            f"{name} is {tensor.dtype} on {tensor.device}, the first argument {like.dtype} on {like.device}; "
            "convert one of them"
        )


def check_graph(graph: CSR, num_src: int, num_dst: int, device: torch.device) -> None:
    """Checks that a CSR is int32, on ``device``, of the given size, and that no index points outside.

    The values are read once for each graph: ``graph.problem``.
    """
    if (graph.num_src, graph.num_dst) != (num_src, num_dst):
        raise InputError(
            f"the graph has {graph.num_src} sources and {graph.num_dst} destinations, the tensors {num_src} and "
            f"{num_dst}"
        )
    if graph.indptr.device != device or graph.indices.device != device:
        raise InputError(f"the graph is on {graph.indptr.device}, the tensors on {device}; move it with graph.to(...)")
    if graph.problem is not None:
        raise InputError(graph.problem)


def check_offsets(offsets: Tensor, num_rows: int, device: torch.device) -> None:
    """Checks bag offsets: integer ``[B + 1]`` on ``device``, strictly rising from 0 to ``num_rows`` (no empty bag)."""
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.is_floating_point():
        raise InputError(f"offsets must be integer [B + 1], not {offsets.dtype} {list(offsets.shape)}")
    if offsets.device != device:
        raise InputError(f"offsets are on {offsets.device}, the values on {device}")
    if devices.runs_ahead(device):
        return  # what cuts the bags into pieces looks at the values: one launch instead of ten
    if torch.compiler.is_compiling():
        return
    numbers = offsets.numpy()  # a tenth of what torch's operations take on a few numbers
    if numbers[0] != 0 or numbers[-1] != num_rows:
        raise InputError(f"offsets must run from 0 to {num_rows}, not {numbers[0]} to {numbers[-1]}")
    rising = numbers[1:] > numbers[:-1]
    if not rising.all():
        bag = int((~rising).nonzero()[0][0])
        raise InputError(f"bag {bag} is empty or its offsets fall; every bag needs an instance")


def check_dropout(dropout_p: float) -> None:
    """Checks a dropout rate."""
    if not 0 <= dropout_p < 1:
        raise InputError(f"dropout_p must be at least 0 and below 1, not {dropout_p}")
