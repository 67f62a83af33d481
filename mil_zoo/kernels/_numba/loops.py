"""Small loops that the Numba kernels share, and exp and tanh as vector instructions."""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from mil_zoo.kernels._numba.jit import jit

CHUNK = 32  # edges of a row worked on at a time: their scores and, at 4 x 64 floats, their features stay in L1


def exp(x):
    """exp for compiled code, to 1e-7 relative; 0 where float32 would be subnormal. Not for large positive x."""
    raise TypeError("this exp stands in compiled code; elsewhere call numpy's")


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


def tanh(x):
    """tanh for compiled code, to 2e-7 relative."""
    raise TypeError("this tanh stands in compiled code; elsewhere call numpy's")


@overload(tanh, jit_options={"fastmath": {"contract"}})
def _tanh(x):
    if x == types.float64:
        return lambda x: math.tanh(x)
    f32 = np.float32

    # Cephes' tanhf: a polynomial near 0, where 1 - exp(-2 |x|) would lose what it is the difference of.
    def vectorised(x):
        z = x * x
        y = f32(-5.70498872745e-3)
        y = y * z + f32(2.06390887954e-2)
        y = y * z - f32(5.37397155531e-2)
        y = y * z + f32(1.33314422036e-1)
        y = y * z - f32(3.33332819422e-1)
        near = x + x * z * y
        e = exp(f32(-2) * abs(x))
        far = (f32(1) - e) / (f32(1) + e)
        far = far if x >= 0 else -far
        return near if abs(x) < f32(0.625) else far  # NaN comes through

    return vectorised


@jit(inline=True)
def multiply(x, factor):
    """A vector times a number, in place; a loop costs a tenth of Numba's array expressions."""
    for i in range(len(x)):
        x[i] *= factor


@jit()
def exponentials(x):
    """exp of every element of a C-contiguous array, in place."""
    flat = x.reshape(-1)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])


@jit(inline=True)
def number(first, edges):
    """``edges[e] = first + e``."""
    for e in range(len(edges)):
        edges[e] = first + e
