"""What data-parallel training shares between processes; in a single process everything here is the identity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mil_zoo.train.device import default_device


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def all_sum(x: Tensor) -> Tensor:
    """The sum of ``x`` over all processes, with gradients.

    The gradient that reaches ``x`` is the sum of every process's gradient of the result. So where all processes compute
    the same loss, each one's parameters get that loss's gradient through its own part, times the number of processes:
    after :func:`average_gradients` it is the gradient of one process on the whole batch.
    """
    return x if world()[1] == 1 else _AllSum.apply(x)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over processes, in one exchange; parameters without one are left so."""
    if world()[1] == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world()[1]
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def all_max(x: Tensor) -> Tensor:
    """The largest value of each entry over all processes, without gradients."""
    if world()[1] > 1:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes one after another, with gradients; processes may hold different numbers of rows.

    Args:
        x: ``[b, F]``.

    Returns:
        ``[sum of b, F]``, the same on every process.
    """
    rank, size = world()
    if size == 1:
        return x
    counts = torch.zeros(size, dtype=torch.int64, device=x.device)
    counts[rank] = len(x)
    dist.all_reduce(counts)
    first = int(counts[:rank].sum())
    rows = torch.arange(first, first + len(x), device=x.device)
    return all_sum(x.new_zeros(int(counts.sum()), x.shape[1]).index_add(0, rows, x))


@contextmanager
def processes() -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` started, if it did, and yields this one's device."""
    device = torch.device(default_device())
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
