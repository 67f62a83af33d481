"""Work on a GPU runs ahead of the process that hands it over: what must not make the process wait is here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mil_zoo.errors import InputError


def runs_ahead(device: torch.device) -> bool:
    """Whether the process does not wait for what it hands over to ``device``, unless it reads a value."""
    return device.type == "cuda"


def require(holds: Tensor, message: Callable[[], str]) -> None:
    """Raises an ``InputError`` unless the boolean scalar ``holds`` is true.

    A GPU looks at it when it gets there: what does not hold ends in CUDA's device-side assertion, as an index out of
    range does in torch. While torch traces, nothing has a value yet and nothing is checked.
    """
    if torch.compiler.is_compiling():
        return
    if runs_ahead(holds.device):
        torch._assert_async(holds)
    elif not holds:
        raise InputError(message())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; from the CPU to a GPU by way of pinned memory, which nobody waits for."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)


def positions(mask: Tensor, count: int) -> Tensor:
    """int64 ``[count]``: where ``mask`` ``[N]`` is true, which is at most ``count`` times; then zeros.

    On a CPU without the zeros: there the number is known.
    """
    if not runs_ahead(mask.device):
        return mask.nonzero()[:, 0]
    # Each true one to its rank, every other to one more place; a sort takes several times as long.
    place = torch.where(mask, mask.cumsum(0) - 1, count)
    found = torch.zeros(count + 1, dtype=torch.int64, device=mask.device)
    return found.scatter_(0, place, torch.arange(len(mask), device=mask.device))[:count]
