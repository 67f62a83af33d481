"""Selective scan as Triton kernels: chunks of bags in parallel, and a short pass that carries states across chunks.

A chunk's effect on the state is linear, ``h_out = exp(A sum dt) h_in + h_local``: every chunk is first run from zero,
then the states are carried over the chunks of each bag, then every chunk is run again from the state that enters it.
Backward does the same with the gradient of the state, from the last chunk to the first; its second run needs the states
inside a chunk and keeps them in scratch memory, which has a place for each program and not for each chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mil_zoo.kernels._triton.tools import tuned

WARPS = [{"num_warps": warps} for warps in (1, 2, 4, 8)]
INTERPRETED: dict[str, int] = {}


@triton.jit
def _time_step(delta, delta_bias, place, column, inside, SOFTPLUS: tl.constexpr):
    """dt of one instance, and what its gradient is multiplied by to be that of delta."""
    x = tl.load(delta + place, inside, 0.0).to(tl.float32)
    if delta_bias is not None:
        x += tl.load(delta_bias + column, inside, 0.0).to(tl.float32)
    slope = x * 0 + 1
    if SOFTPLUS:
        e = tl.exp(-tl.abs(x))
        r = e / (2 + e)  # log(1 + e) = 2 artanh(r), exact also where 1 + e is 1
        q = r * r
        y = r * (1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13))))))
        slope = tl.where(x >= 0, 1.0, e) / (1 + e)
        x = tl.maximum(x, 0.0) + 2 * y
    dt = tl.where(inside, x, 0.0)
    return dt, slope


@triton.jit
def _gate(z, place, inside):
    """silu(z) and its slope; 1 and 0 without a gate."""
    x = tl.load(z + place, inside, 0.0).to(tl.float32)
    e = tl.exp(-tl.abs(x))
    s = tl.where(x >= 0, 1.0, e) / (1 + e)
    return x * s, s * (1 + x * (1 - s))


@triton.jit
def _load_A(A, state, column, inside, D_: tl.constexpr, S_: tl.constexpr):
    mask = (state < S_)[:, None] & inside[None, :]
    return tl.load(A + column[None, :] * S_ + state[:, None], mask, 0.0).to(tl.float32), mask


@tuned(("BLOCK_D", "BLOCK_S"), WARPS, INTERPRETED)
def run_chunks(
    u,
    delta,
    delta_bias,
    A,
    B,
    starts,
    leaving,
    total,
    SOFTPLUS: tl.constexpr,
    D_: tl.constexpr,
    S_: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The state that a chunk leaves behind where it enters with zeros, and the sum of its dt."""
    p = tl.program_id(0).to(tl.int64)
    column, state = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    inside = column < D_
    rates, mask = _load_A(A, state, column, inside, D_, S_)
    h = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    time = tl.zeros([BLOCK_D], tl.float32)
    t, end = tl.load(starts + p), tl.load(starts + p + 1)
    while t < end:
        place = t * D_ + column
        dt, _ = _time_step(delta, delta_bias, place, column, inside, SOFTPLUS)
        x = dt * tl.load(u + place, inside, 0.0).to(tl.float32)
        b = tl.load(B + t * S_ + state, state < S_, 0.0).to(tl.float32)
        h = tl.exp(dt[None, :] * rates) * h + x[None, :] * b[:, None]
        time += dt
        t += 1
    tl.store(leaving + (p * S_ + state)[:, None] * D_ + column[None, :], h, mask)
    tl.store(total + p * D_ + column, time, inside)


@tuned(("BLOCK_D", "BLOCK_S"), WARPS, INTERPRETED, restore=("state",))
def carry(
    first,
    total,
    A,
    state,
    last,
    D_: tl.constexpr,
    S_: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Replaces what each chunk of a bag leaves behind by what enters it; the state after the last one."""
    bag = tl.program_id(0).to(tl.int64)
    column, s = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    inside = column < D_
    rates, mask = _load_A(A, s, column, inside, D_, S_)
    h = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    p, end = tl.load(first + bag), tl.load(first + bag + 1)
    while p < end:
        place = state + (p * S_ + s)[:, None] * D_ + column[None, :]
        local = tl.load(place, mask, 0.0)
        tl.store(place, h, mask)
        time = tl.load(total + p * D_ + column, inside, 0.0)
        h = tl.exp(time[None, :] * rates) * h + local
        p += 1
    tl.store(last + (bag * D_ + column)[None, :] * S_ + s[:, None], h, mask)


@tuned(("BLOCK_D", "BLOCK_S"), WARPS, INTERPRETED)
def forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    starts,
    entering,
    y,
    SOFTPLUS: tl.constexpr,
    D_: tl.constexpr,
    S_: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    column, state = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    inside = column < D_
    rates, mask = _load_A(A, state, column, inside, D_, S_)
    direct = tl.zeros([BLOCK_D], tl.float32)
    if D is not None:
        direct += tl.load(D + column, inside, 0.0).to(tl.float32)
    h = tl.load(entering + (p * S_ + state)[:, None] * D_ + column[None, :], mask, 0.0)
    t, end = tl.load(starts + p), tl.load(starts + p + 1)
    while t < end:
        place = t * D_ + column
        dt, _ = _time_step(delta, delta_bias, place, column, inside, SOFTPLUS)
        value = tl.load(u + place, inside, 0.0).to(tl.float32)
        b = tl.load(B + t * S_ + state, state < S_, 0.0).to(tl.float32)
        c = tl.load(C + t * S_ + state, state < S_, 0.0).to(tl.float32)
        h = tl.exp(dt[None, :] * rates) * h + (dt * value)[None, :] * b[:, None]
        out = tl.sum(h * c[:, None], 0) + direct * value
        if z is not None:
            gate, _ = _gate(z, place, inside)
            out *= gate
        tl.store(y + place, out.to(y.dtype.element_ty), inside)
        t += 1


@tuned(("BLOCK_D", "BLOCK_S"), WARPS, INTERPRETED)
def run_chunks_back(
    delta,
    delta_bias,
    A,
    C,
    z,
    starts,
    grad,
    leaving,
    SOFTPLUS: tl.constexpr,
    D_: tl.constexpr,
    S_: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The gradient of the state that enters a chunk, where that of the state it leaves behind is zero."""
    p = tl.program_id(0).to(tl.int64)
    column, state = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    inside = column < D_
    rates, mask = _load_A(A, state, column, inside, D_, S_)
    carry = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    start, t = tl.load(starts + p), tl.load(starts + p + 1) - 1
    while t >= start:
        place = t * D_ + column
        dt, _ = _time_step(delta, delta_bias, place, column, inside, SOFTPLUS)
        flow = tl.load(grad + place, inside, 0.0).to(tl.float32)
        if z is not None:
            gate, _ = _gate(z, place, inside)
            flow *= gate
        c = tl.load(C + t * S_ + state, state < S_, 0.0).to(tl.float32)
        carry = tl.exp(dt[None, :] * rates) * (carry + flow[None, :] * c[:, None])
        t -= 1
    tl.store(leaving + (p * S_ + state)[:, None] * D_ + column[None, :], carry, mask)


@tuned(("BLOCK_D", "BLOCK_S"), WARPS, INTERPRETED, restore=("state",))
def carry_back(
    first,
    total,
    A,
    state,
    D_: tl.constexpr,
    S_: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """``_carry`` from a bag's last chunk to its first, of gradients."""
    bag = tl.program_id(0).to(tl.int64)
    column, s = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    inside = column < D_
    rates, mask = _load_A(A, s, column, inside, D_, S_)
    carry = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    begin, p = tl.load(first + bag), tl.load(first + bag + 1) - 1
    while p >= begin:
        place = state + (p * S_ + s)[:, None] * D_ + column[None, :]
        local = tl.load(place, mask, 0.0)
        tl.store(place, carry, mask)
        time = tl.load(total + p * D_ + column, inside, 0.0)
        carry = tl.exp(time[None, :] * rates) * carry + local
        p -= 1


@tuned(("BLOCK_D", "BLOCK_S"), WARPS, INTERPRETED)
def backward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    starts,
    entering,
    carried,
    grad,
    scratch,
    grad_u,
    grad_delta,
    grad_z,
    grad_A,
    grad_B,
    grad_C,
    sums,
    count,
    num_rows,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    D_: tl.constexpr,
    S_: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """All gradients, a chunk and a block of channels at a time; a program takes one after the other."""
    across: tl.constexpr = (D_ + BLOCK_D - 1) // BLOCK_D
    state = tl.arange(0, BLOCK_S)
    tile = state[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    room = scratch + tl.program_id(0).to(tl.int64) * (CHUNK * BLOCK_S * BLOCK_D)
    item = tl.program_id(0).to(tl.int64)
    while item < count * across:
        p, stripe = item // across, item % across
        column = stripe * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = column < D_
        rates, mask = _load_A(A, state, column, inside, D_, S_)
        direct = tl.zeros([BLOCK_D], tl.float32)
        if D is not None:
            direct += tl.load(D + column, inside, 0.0).to(tl.float32)
        chunk = (p * S_ + state)[:, None] * D_ + column[None, :]
        h = tl.load(entering + chunk, mask, 0.0)
        start, end = tl.load(starts + p), tl.load(starts + p + 1)
        t = start
        while t < end:  # the state before each instance, into the scratch memory
            place = t * D_ + column
            tl.store(room + (t - start) * (BLOCK_S * BLOCK_D) + tile, h)
            dt, _ = _time_step(delta, delta_bias, place, column, inside, SOFTPLUS)
            x = dt * tl.load(u + place, inside, 0.0).to(tl.float32)
            b = tl.load(B + t * S_ + state, state < S_, 0.0).to(tl.float32)
            h = tl.exp(dt[None, :] * rates) * h + x[None, :] * b[:, None]
            t += 1
        tl.debug_barrier()  # what was stored above is read below
        carry = tl.load(carried + chunk, mask, 0.0)
        sum_A = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
        sum_D = tl.zeros([BLOCK_D], tl.float32)
        sum_bias = tl.zeros([BLOCK_D], tl.float32)
        t = end - 1
        while t >= start:
            place = t * D_ + column
            dt, slope = _time_step(delta, delta_bias, place, column, inside, SOFTPLUS)
            value = tl.load(u + place, inside, 0.0).to(tl.float32)
            b = tl.load(B + t * S_ + state, state < S_, 0.0).to(tl.float32)
            c = tl.load(C + t * S_ + state, state < S_, 0.0).to(tl.float32)
            before = tl.load(room + (t - start) * (BLOCK_S * BLOCK_D) + tile)
            decay = tl.exp(dt[None, :] * rates)
            after = decay * before + (dt * value)[None, :] * b[:, None]
            flow = tl.load(grad + place, inside, 0.0).to(tl.float32)
            if z is not None:
                gate, steepness = _gate(z, place, inside)
                y = tl.sum(after * c[:, None], 0) + direct * value
                tl.store(grad_z + place, (flow * y * steepness).to(grad_z.dtype.element_ty), inside)
                flow *= gate
            g = carry + flow[None, :] * c[:, None]
            row = (stripe * num_rows + t) * S_ + state
            tl.store(grad_C + row, tl.sum(after * flow[None, :], 1), state < S_)
            tl.store(grad_B + row, tl.sum(g * (dt * value)[None, :], 1), state < S_)
            grad_x = tl.sum(g * b[:, None], 0)
            carry = g * decay
            faded = carry * before
            change = (tl.sum(faded * rates, 0) + grad_x * value) * slope
            tl.store(grad_u + place, (grad_x * dt + flow * direct).to(grad_u.dtype.element_ty), inside)
            tl.store(grad_delta + place, change.to(grad_delta.dtype.element_ty), inside)
            sum_A += faded * dt[None, :]
            sum_D += flow * value
            sum_bias += change
            t -= 1
        tl.store(grad_A + chunk, sum_A, mask)
        tl.store(sums + 2 * p * D_ + column, sum_D, inside)
        tl.store(sums + (2 * p + 1) * D_ + column, sum_bias, inside)
        tl.debug_barrier()  # the scratch memory is written again
        item += tl.num_programs(0)
