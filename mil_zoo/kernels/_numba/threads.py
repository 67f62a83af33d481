"""How the Numba kernels use threads: as many as torch does, on blocks of about equal work."""

from __future__ import annotations

import logging
import os
import threading

import numba
import numpy as np
import torch

from mil_zoo.errors import InputError

GRAIN = 2**19  # multiplications worth a thread: some 50 us, where waking one takes 10 and on a busy machine far more

# TBB is not distributed with Numba, and workqueue neither survives two Python threads nor is as fast.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
_process = os.getpid()
_last = threading.local()


def _start_threads() -> None:
    # Numba's OpenMP layer resolves to the OpenMP library that torch brought and on its start sets that one's number of
    # threads, which is torch's.
    threads = torch.get_num_threads()
    numba.set_num_threads(numba.get_num_threads())
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


try:
    _start_threads()
except ValueError:  # the environment names a threading layer that is not installed
    logging.getLogger("mil_zoo").warning(
        "mil-zoo: numba's threading layer %r is not installed; another one is used", numba.config.THREADING_LAYER
    )
    numba.config.THREADING_LAYER = "default"
    _start_threads()


def blocks(starts: np.ndarray | int, cost: int) -> np.ndarray:
    """Splits rows into blocks of about equal work and sets how many threads work on them: at most torch's number.

    Args:
        starts: ``[rows + 1]``, where the elements of each row start; or how many rows of one element there are.
        cost: multiplications that an element takes.

    Returns:
        int64: where each block starts, and the end.
    """
    if isinstance(starts, int):
        rows = elements = starts
    else:
        rows, elements = len(starts) - 1, int(starts[-1])
    work = elements + 4 * rows
    threads = _take_threads(work * cost)
    if threads == 1:
        return np.array([0, rows])
    numbers = np.arange(rows + 1)
    until = (numbers if isinstance(starts, int) else starts) + 4 * numbers  # work before each row
    return np.searchsorted(until, np.linspace(0, work, 4 * threads + 1))


def stripes(width: int, cost: int) -> np.ndarray:
    """Splits columns into stripes, whole cache lines wide, that threads may work on; see ``blocks``.

    Args:
        width: how many columns there are.
        cost: multiplications that a column takes.

    Returns:
        int64: where each stripe starts, and the end.
    """
    threads = _take_threads(width * cost)
    if threads == 1:
        return np.array([0, width])
    bounds = np.linspace(0, width, 4 * threads + 1).astype(np.int64) // 16 * 16
    bounds[-1] = width
    return bounds


def _take_threads(multiplications: int) -> int:
    """Sets how many threads work on so many multiplications, and says how many."""
    if os.getpid() != _process:
        raise InputError(
            "this process was forked from one that had run numba kernels, and OpenMP does not survive that; start "
            "processes with 'spawn', or use backend='reference'"
        )
    threads = 1 + multiplications // GRAIN
    if threads > 1:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, threads)
    if getattr(_last, "threads", 0) != threads:  # Numba's setting is a thread's own
        numba.set_num_threads(threads)
        _last.threads = threads
    return threads
