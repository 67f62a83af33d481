"""bfloat16 in the Numba kernels: NumPy and Numba do not know it, so its bits are handed over as uint16.

What is computed is float32: elements are widened where they are read and rounded, as torch rounds them, where they are
written.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from mil_zoo.kernels._numba.jit import jit


def computed(tensor: Tensor) -> torch.dtype:
    """The precision in which kernels compute with a tensor: float64, or float32 for all others."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def stored(tensor: Tensor) -> Tensor:
    """A tensor as kernels read it: float16, which they do not widen, as float32, and others as they are."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def widened(x):
    """An element as a number: float32 where it is the bits of a bfloat16, else itself."""
    raise TypeError("this function stands in compiled code")


@overload(widened)
def _widened(x):
    if x != types.uint16:
        return lambda x: x
    f32, u32 = np.float32, np.uint32
    return lambda x: u32(u32(x) << u32(16)).view(f32)


def rounded(x, like):
    """A number as an element of an array such as ``like``: the bits of the nearest bfloat16 (ties to even), or it."""
    raise TypeError("this function stands in compiled code")


@overload(rounded)
def _rounded(x, like):
    if like.dtype != types.uint16:
        return lambda x, like: x
    f32, u16, u32, one, half = np.float32, np.uint16, np.uint32, np.uint32(1), np.uint32(0x7FFF)

    def nearest(x, like):
        number = f32(x)
        bits = number.view(u32)
        odd = u32(u32(bits >> u32(16)) & one)
        return u16(u32(u32(bits + half) + odd) >> u32(16)) if x == x else u16(0x7FC0)

    return nearest


@jit(inline=True)
def widen(row, result):
    """``result = row`` ``[H, F]``, as numbers."""
    for h in range(row.shape[0]):
        for c in range(row.shape[1]):
            result[h, c] = widened(row[h, c])


@jit(inline=True)
def write_row(row, factor, result):
    """``result = factor * row`` ``[F]``, in the precision of ``result``."""
    for c in range(len(row)):
        result[c] = rounded(row[c] * factor, result)
