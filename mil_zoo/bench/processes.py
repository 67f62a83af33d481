"""Processes in which nothing of this one is: torch's and Numba's threads do not survive a fork of it."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext

# What a trial imports and what starts no threads when it is imported; torch's optimisers import torch._dynamo.
LIBRARIES = ["numba", "pandas", "scipy.ndimage", "scipy.stats", "sklearn.metrics", "torch._dynamo"]


def fresh_interpreters(gpu: bool = False) -> BaseContext:
    """Returns the context of :mod:`multiprocessing` that starts such processes.

    Importing torch and the others takes seconds. Where the system can, one process imports them and does nothing else,
    and every fresh interpreter is a fork of it, with the environment that this process had when the first one started.

    Args:
        gpu: whether they use a GPU. Each then imports for itself: what an import asks of CUDA does not survive a fork.
    """
    if gpu or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def start_importing() -> None:
    """Starts the process that all fresh interpreters will be forks of, so that it imports beside this one.

    Nothing is started on a single core, or where there is a GPU.
    """
    import torch

    if cores() > 1 and not torch.cuda.is_available() and fresh_interpreters().get_start_method() == "forkserver":
        from multiprocessing import forkserver  # not there on every system

        forkserver.ensure_running()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
