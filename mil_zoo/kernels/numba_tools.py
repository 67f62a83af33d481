"""What the Numba kernels share: compilation, threads, exp, dropout, and sums over the rows that an index lists.

Numba's cache notices a change in the file of the function it compiled, not in a file that this one calls: after a
change here, delete ``*.nbi`` beside the kernels.

Only ``dots`` lets the compiler reorder sums, and nothing lets it assume that there is no NaN or infinity.
"""

from __future__ import annotations

import math
import os

import numba
import numpy as np
import torch
from numba import prange, types
from numba.extending import overload
from torch import Tensor

from mil_zoo.errors import InputError

CHUNK = 32  # edges of a row worked on at a time: their scores and, at 4 x 64 floats, their features stay in L1
PIECE = 512  # rows summed by one thread; fixed, so that the order of additions does not depend on the threads

# TBB is not distributed with Numba, and workqueue neither survives two Python threads nor is as fast.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
_process = os.getpid()


def jit(parallel: bool = False, fastmath: frozenset[str] = frozenset({"contract"})):
    """``numba.njit`` with a cache on disk, wherever there is a place to write one.

    ``fastmath`` is always given, as Numba hands the caller's on to functions that leave it open.
    """
    options = {"parallel": parallel, "fastmath": set(fastmath), "error_model": "numpy"}

    def decorate(function):
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return numba.njit(**options)(function)

    return decorate


def array(tensor: Tensor | None, like: Tensor, *empty: int) -> np.ndarray:
    """A tensor's memory, or for None an array without elements of ``like``'s dtype and the shape ``empty``."""
    return (like.new_empty(empty) if tensor is None else tensor.detach().contiguous()).numpy()


def blocks(starts: Tensor) -> np.ndarray:
    """Splits rows into blocks of about equal work and sets Numba's threads to torch's number.

    Args:
        starts: ``[rows + 1]``, where the elements of each row start.

    Returns:
        int64: where each block starts, and the end.
    """
    if os.getpid() != _process:
        raise InputError(
            "this process was forked from one that had run numba kernels, and OpenMP does not survive that; start "
            "processes with 'spawn', or use backend='reference'"
        )
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    work = np.asarray(starts) + 4 * np.arange(len(starts))
    return np.searchsorted(work, np.linspace(0, work[-1], 4 * threads + 1))


def exp(x):
    """exp for compiled code, to 1e-7 relative; 0 where float32 would be subnormal. Not for large positive x."""
    raise NotImplementedError


@overload(exp, jit_options={"fastmath": False})
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
