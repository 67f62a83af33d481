"""Processes in which nothing of this one is: torch's and Numba's threads do not survive a fork of it."""

from __future__ import annotations

import multiprocessing
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
