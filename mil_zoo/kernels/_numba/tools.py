"""What the Numba kernels share: compilation, threads and exp.

Where ``REORDER`` is given the compiler may reorder sums; it may nowhere assume that there is no NaN or infinity.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from mil_zoo.errors import InputError

CHUNK = 32  # edges of a row worked on at a time: their scores and, at 4 x 64 floats, their features stay in L1
GRAIN = 2**19  # multiplications worth a thread: some 50 us, where waking one takes 10 and on a busy machine far more
REORDER = frozenset({"contract", "reassoc"})

# TBB is not distributed with Numba, and workqueue neither survives two Python threads nor is as fast.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
_process = os.getpid()


def _start_threads() -> None:
    # Numba's OpenMP layer resolves to the OpenMP library that torch brought and on its start sets that one's number of
    # threads, which is torch's.
    threads = torch.get_num_threads()
    numba.set_num_threads(numba.get_num_threads())
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


_start_threads()


def _shared_sources() -> str:
    """A hash of the files whose functions all kernels inline: what was compiled from others is compiled again."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_SHARED = _shared_sources()


def jit(parallel: bool = False, fastmath: frozenset[str] = frozenset({"contract"})):
    """``numba.njit`` with a cache on disk, wherever there is a place to write one.

    ``fastmath`` is always given, as Numba hands the caller's on to functions that leave it open.
    """
    options = {"parallel": parallel, "fastmath": set(fastmath), "error_model": "numpy"}

    def decorate(function):
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return numba.njit(**options)(function)
        # Numba notices a change in the function's own file, not in one of a function that it calls and has inlined.
        cached = compiled._cache._cache_file
        cached._source_stamp = cached._source_stamp, _SHARED
        return compiled

    return decorate


def array(tensor: Tensor | None, like: Tensor, *empty: int) -> np.ndarray:
    """A tensor's memory, or for None an array without elements of ``like``'s dtype and the shape ``empty``."""
    return (like.new_empty(empty) if tensor is None else tensor.detach().contiguous()).numpy()


def blocks(starts: Tensor | np.ndarray, cost: int) -> np.ndarray:
    """Splits rows into blocks of about equal work and sets how many threads work on them: at most torch's number.

    Args:
        starts: ``[rows + 1]``, where the elements of each row start.
        cost: multiplications that an element takes.

    Returns:
        int64: where each block starts, and the end.
    """
    if os.getpid() != _process:
        raise InputError(
            "this process was forked from one that had run numba kernels, and OpenMP does not survive that; start "
            "processes with 'spawn', or use backend='reference'"
        )
    work = np.asarray(starts) + 4 * np.arange(len(starts))
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, 1 + int(work[-1]) * cost // GRAIN)
    numba.set_num_threads(threads)
    return np.searchsorted(work, np.linspace(0, work[-1], 4 * threads + 1))


def stripes(width: int) -> np.ndarray:
    """Splits columns into stripes, whole cache lines wide, that threads may work on; see ``blocks``.

    Returns:
        int64: where each stripe starts, and the end.
    """
    blocks(np.array([0, 0]), 0)  # of no use but for its check of the process
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    bounds = np.linspace(0, width, 4 * threads + 1).astype(np.int64) // 16 * 16
    bounds[-1] = width
    return bounds


def exp(x):
    """exp for compiled code, to 1e-7 relative; 0 where float32 would be subnormal. Not for large positive x."""
    raise NotImplementedError


@overload(exp, jit_options={"fastmath": {"contract"}})
def _exp(x):
    if x == types.float64:
        return lambda x: math.exp(x)
    f32, i32 = np.float32, np.int32
    shift = f32(1.5 * 2**23)  # a float32 this large has no fraction: adding it rounds

    # Cephes' expf: 2^n times a polynomial on |r| <= ln(2) / 2. Unlike a call of expf it becomes vector instructions.
    def polynomial(x):
        shifted = f32(x * f32(1.44269504088896341) + shift)
        n = shifted - shift
        r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
        y = f32(1.9875691500e-4)
        y = y * r + f32(1.3981999507e-3)
        y = y * r + f32(8.3334519073e-3)
        y = y * r + f32(4.1665795894e-2)
        y = y * r + f32(1.6666665459e-1)
        y = y * r + f32(5.0000001201e-1)
        y = y * r * r + r + f32(1)
        power = i32((shifted.view(i32) << i32(23)) + i32(0x3F800000)).view(f32)
        return f32(0) if x < f32(-87) else y * power  # NaN comes through

    return polynomial


@jit()
def multiply(x, factor):
    """A vector times a number, in place; a loop costs a tenth of Numba's array expressions."""
    for i in range(len(x)):
        x[i] *= factor


@jit()
def largest(x, scratch):
    """The largest of ``CHUNK`` numbers, halving them: vectors, where a loop over them waits and guesses."""
    for i in range(CHUNK):
        scratch[i] = x[i]
    half = CHUNK // 2
    while half:
        for i in range(half):
            scratch[i] = scratch[i] if scratch[i] > scratch[i + half] else scratch[i + half]
        half //= 2
    return scratch[0]


@jit()
def exponentials(x):
    """exp of every element of a C-contiguous array, in place."""
    flat = x.reshape(-1)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])


@jit()
def number(first, edges):
    """``edges[e] = first + e``."""
    for e in range(len(edges)):
        edges[e] = first + e


@jit()
def gather(indices, table, result):
    """``result[h, e] = table[indices[e], h]``: heads outside, so that loops over edges are over neighbours."""
    for e in range(len(indices)):
        for h in range(table.shape[1]):
            result[h, e] = table[indices[e], h]
