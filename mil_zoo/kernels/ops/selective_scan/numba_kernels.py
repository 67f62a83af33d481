"""Selective scan as CPU kernels: one pass over the instances forward, and one over chunks of them backward.

Channels are worked on in stripes, so that the states of a stripe stay in the nearest cache; bags and stripes run in
parallel. Backward starts from the states that forward kept at the start of every chunk, and steps through the chunk
twice: ahead, to have its states again, and back. What is summed over stripes is summed in their order, so the bits do
not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import prange, types
from numba.extending import overload

from mil_zoo.kernels._numba.jit import REORDER, jit
from mil_zoo.kernels._numba.loops import exp
from mil_zoo.kernels._numba.storage import rounded, widen, widened, write_row

CHUNK = 32  # instances whose states backward holds: with a stripe of 128 channels and 16 states a quarter of a megabyte
STRIPE = 128  # channels; wide enough for what a loop over them costs to start


class Arrays(NamedTuple):
    """The op's tensors as arrays: A transposed, zeros for D and delta_bias that are not there, no rows for z."""

    u: np.ndarray
    delta: np.ndarray
    A: np.ndarray  # [n, d]
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    z: np.ndarray
    delta_bias: np.ndarray


class Tasks(NamedTuple):
    """What is worked on in parallel: every stripe of channels of every bag.

    ``offsets`` ``[bags + 1]`` are the bags' rows, ``chunks`` ``[bags + 1]`` the first chunk of each.
    """

    offsets: np.ndarray
    chunks: np.ndarray
    stripes: int


class Gradients(NamedTuple):
    """Where backward writes: rows of the inputs, for each stripe of B and C, for each bag of A, D and delta_bias."""

    u: np.ndarray
    delta: np.ndarray
    A: np.ndarray  # [bags, n, d]
    B: np.ndarray  # [stripes, L, n]
    C: np.ndarray
    D: np.ndarray  # [bags, d]
    z: np.ndarray
    delta_bias: np.ndarray


def softplus_of(x):
    """log(1 + exp(x)) for compiled code, to 1e-7 relative."""
    raise TypeError("this softplus stands in compiled code; elsewhere call numpy's logaddexp")


@overload(softplus_of, jit_options={"fastmath": {"contract"}})
def _softplus_of(x):
    if x == types.float64:
        return lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))
    f32 = np.float32

    # log(1 + e) = 2 artanh(e / (2 + e)), whose argument is at most 1/3. Unlike a call of log1p it becomes vectors.
    def series(x):
        e = exp(-abs(x))
        r = e / (f32(2) + e)
        q = r * r
        y = f32(1 / 13)
        y = y * q + f32(1 / 11)
        y = y * q + f32(1 / 9)
        y = y * q + f32(1 / 7)
        y = y * q + f32(1 / 5)
        y = y * q + f32(1 / 3)
        return max(x, f32(0)) + (f32(2) * r + f32(2) * r * q * y)

    return series


@jit(parallel=True)
def forward(bounds, tasks, inputs, softplus, results):
    """Writes the states at the start of every chunk, the last of every bag, and the outputs: ``results``."""
    for block in prange(len(bounds) - 1):
        for task in range(bounds[block], bounds[block + 1]):
            _scan(task, tasks, inputs, softplus, results)


@jit(allocates=True)
def _scan(task, tasks, inputs, softplus, results):
    """The instances of one bag, in one stripe of channels."""
    states, last, out = results
    bag, first = task // tasks.stripes, task % tasks.stripes * STRIPE
    end = min(first + STRIPE, inputs.u.shape[1])
    start, count = tasks.offsets[bag], len(inputs.A)
    A = inputs.A[:, first:end].copy()
    h, row = np.zeros_like(A), np.empty((3, end - first), A.dtype)
    dt, x, y = row[0], row[1], row[2]
    for t in range(start, tasks.offsets[bag + 1]):
        if (t - start) % CHUNK == 0:
            states[tasks.chunks[bag] + (t - start) // CHUNK, :, first:end] = h
        _time_step(inputs.delta[t, first:end], inputs.delta_bias[first:end], softplus, dt)
        _enter(dt, inputs.u[t, first:end], x)
        y[:] = 0
        _advance(dt, A, x, inputs.B[t], inputs.C[t], h, y)
        _leave(inputs.D[first:end], inputs.u[t, first:end], y)
        if len(inputs.z):
            _gate(inputs.z[t, first:end], y)
        write_row(y, A.dtype.type(1), out[t, first:end])
    for s in range(count):
        last[bag, first:end, s] = h[s]


@jit()
def _time_step(delta, bias, softplus, dt):
    for i in range(len(dt)):
        dt[i] = widened(delta[i]) + bias[i]
    if softplus:
        for i in range(len(dt)):
            dt[i] = softplus_of(dt[i])


@jit()
def _enter(dt, u, x):
    for i in range(len(x)):
        x[i] = dt[i] * widened(u[i])


@jit()
def _advance(dt, A, x, B, C, h, y):
    """All states one instance ahead, and what they add to the output."""
    for s in range(len(A)):
        b, c = B[s], C[s]
        for i in range(len(dt)):
            new = exp(dt[i] * A[s, i]) * h[s, i] + x[i] * b
            h[s, i] = new
            y[i] += c * new


@jit()
def _advance_again(dt, A, x, B, before, decay, h):
    """All states one instance ahead, with their decays, which backward takes."""
    for s in range(len(A)):
        b = B[s]
        for i in range(len(dt)):
            decay[s, i] = exp(dt[i] * A[s, i])
            h[s, i] = decay[s, i] * before[s, i] + x[i] * b


@jit()
def _read(C, h, y):
    for s in range(len(h)):
        c = C[s]
        for i in range(len(y)):
            y[i] += c * h[s, i]


@jit()
def _leave(D, u, y):
    for i in range(len(y)):
        y[i] += D[i] * widened(u[i])


@jit()
def _sigmoid(x):
    one, e = type(x)(1), exp(-abs(x))
    return (one if x >= 0 else e) / (one + e)


@jit()
def _gate(z, y):
    for i in range(len(y)):
        x = widened(z[i])
        y[i] *= x * _sigmoid(x)


@jit(parallel=True)
def backward(bounds, tasks, inputs, softplus, given, gradients):
    """Writes the gradients; ``given`` are the states that forward kept, and the gradient of the outputs."""
    for block in prange(len(bounds) - 1):
        for task in range(bounds[block], bounds[block + 1]):
            _scan_back(task, tasks, inputs, softplus, given, gradients)


@jit(allocates=True)
def _scan_back(task, tasks, inputs, softplus, given, gradients):
    """The gradients of one bag in one stripe of channels, from its last chunk to its first."""
    states, grad = given
    bag, stripe = task // tasks.stripes, task % tasks.stripes
    first = stripe * STRIPE
    end = min(first + STRIPE, inputs.u.shape[1])
    start, stop = tasks.offsets[bag], tasks.offsets[bag + 1]
    A = inputs.A[:, first:end].copy()
    count, width = A.shape
    h, decay = np.empty((CHUNK + 1, count, width), A.dtype), np.empty((CHUNK, count, width), A.dtype)
    dt, x = np.empty((CHUNK, width), A.dtype), np.empty((CHUNK, width), A.dtype)
    carry, grad_A = np.zeros_like(A), np.zeros_like(A)  # decayed gradients of the state that comes after
    sums, row = np.zeros((2, width), A.dtype), np.empty((4, width), A.dtype)
    flow, grad_x, grad_dt, y = row[0], row[1], row[2], row[3]
    for chunk in range(tasks.chunks[bag + 1] - 1, tasks.chunks[bag] - 1, -1):
        begin = start + CHUNK * (chunk - tasks.chunks[bag])
        rows = min(CHUNK, stop - begin)
        h[0] = states[chunk, :, first:end]
        for k in range(rows):
            t = begin + k
            _time_step(inputs.delta[t, first:end], inputs.delta_bias[first:end], softplus, dt[k])
            _enter(dt[k], inputs.u[t, first:end], x[k])
            _advance_again(dt[k], A, x[k], inputs.B[t], h[k], decay[k], h[k + 1])
        for k in range(rows - 1, -1, -1):
            t = begin + k
            widen(grad[t : t + 1, first:end], row[:1])  # to flow
            if len(inputs.z):
                y[:] = 0
                _read(inputs.C[t], h[k + 1], y)
                _leave(inputs.D[first:end], inputs.u[t, first:end], y)
                _gate_back(inputs.z[t, first:end], y, flow, gradients.z[t, first:end])
            grad_x[:] = 0
            grad_dt[:] = 0
            _step_back(
                (inputs.B[t], inputs.C[t], flow, x[k], dt[k], decay[k], h[k], h[k + 1], A),
                (carry, grad_x, grad_dt, grad_A, gradients.B[stripe, t], gradients.C[stripe, t]),
            )
            given_row = inputs.u[t, first:end], inputs.D[first:end], dt[k], flow, grad_x
            _row_back(given_row, gradients.u[t, first:end], grad_dt)
            if softplus:
                _time_step_back(inputs.delta[t, first:end], inputs.delta_bias[first:end], grad_dt)
            write_row(grad_dt, A.dtype.type(1), gradients.delta[t, first:end])
            _add_up(flow, inputs.u[t, first:end], grad_dt, sums)
    gradients.A[bag, :, first:end] = grad_A
    gradients.D[bag, first:end] = sums[0]
    gradients.delta_bias[bag, first:end] = sums[1]


@jit()
def _gate_back(z, y, flow, grad_z):
    """Of ``out = y silu(z)``: writes the gradient of z, and turns ``flow`` from that of out into that of y."""
    one = y.dtype.type(1)
    for i in range(len(z)):
        x = widened(z[i])
        s = _sigmoid(x)
        grad_z[i] = rounded(flow[i] * y[i] * s * (one + x * (one - s)), grad_z)
        flow[i] *= x * s


@jit(fastmath=REORDER)
def _step_back(given, sums):
    """All states one instance back: adds to the gradients, and decays those of the states before."""
    B, C, flow, x, dt, decay, before, after, A = given
    carry, grad_x, grad_dt, grad_A, grad_B, grad_C = sums
    for s in range(len(A)):
        b, c = B[s], C[s]
        grad_b, grad_c = x.dtype.type(0), x.dtype.type(0)
        for i in range(len(x)):
            g = carry[s, i] + c * flow[i]
            grad_b += g * x[i]
            grad_c += after[s, i] * flow[i]
            grad_x[i] += g * b
            g *= decay[s, i]
            carry[s, i] = g
            faded = g * before[s, i]
            grad_dt[i] += faded * A[s, i]
            grad_A[s, i] += faded * dt[i]
        grad_B[s] = grad_b
        grad_C[s] = grad_c


@jit()
def _row_back(given, grad_u, grad_dt):
    u, D, dt, flow, grad_x = given
    for i in range(len(u)):
        grad_u[i] = rounded(grad_x[i] * dt[i] + flow[i] * D[i], grad_u)
        grad_dt[i] += grad_x[i] * widened(u[i])


@jit()
def _time_step_back(delta, bias, grad_dt):
    for i in range(len(delta)):
        grad_dt[i] *= _sigmoid(widened(delta[i]) + bias[i])


@jit()
def _add_up(flow, u, grad_dt, sums):
    """Adds one instance's part to the gradients of D and delta_bias."""
    for i in range(len(u)):
        sums[0, i] += flow[i] * widened(u[i])
        sums[1, i] += grad_dt[i]
