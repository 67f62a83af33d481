"""Counter-based dropout for the Numba kernels: ``dropout.dropout_scale``, sixteen numbers at a time.

Numba widens 32-bit products to 64 bits, which have no fast vector instruction: the hash is written in LLVM's language.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mil_zoo.kernels._numba.tools import jit
from mil_zoo.kernels._numba.vectors import Array, check_layout, splat

LANES = 16
WORDS = ir.VectorType(ir.IntType(32), LANES)


def dropout_key(p: float, seed: int, dtype: np.dtype) -> tuple:
    """What ``keep`` needs: the threshold, the two words of the seed, and 1 / (1 - p) in ``dtype``."""
    low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32((seed >> 32) & 0xFFFFFFFF)
    return np.uint32(int(p * 2**32)), low, high, dtype.type(1 / (1 - p))


@jit()
def keep(edges, dropout, counter, scale):
    """Fills ``scale`` ``[H, n]`` with what dropout multiplies each head of edges by: ``dropout.dropout_scale``.

    There are n edges or fewer; what is beyond them in ``scale`` has no meaning. Nothing is written where nothing is
    dropped. ``counter`` is room for uint32 ``[2, n]``.
    """
    threshold, low, high, kept = dropout
    if threshold == 0:
        return
    heads, n = scale.shape
    whole = n // LANES * LANES
    for e in range(len(edges)):
        first = np.uint64(edges[e]) * np.uint64(heads)
        counter[0, e], counter[1, e] = np.uint32(first), np.uint32(first >> np.uint64(32))
    for h in range(heads):
        for e in range(0, min(len(edges), whole), LANES):
            _keep_counters(counter, n, e, np.uint32(h), threshold, low, high, kept, scale, h * n + e)
        for e in range(whole, len(edges)):
            first = np.uint64(edges[e]) * np.uint64(heads) + np.uint64(h)
            scale[h, e] = kept if _word(first, low, high) >= threshold else kept - kept


@jit()
def keep_run(first, dropout, scale):
    """Fills ``scale`` ``[n]`` with what dropout multiplies elements ``first .. first + n - 1`` by."""
    threshold, low, high, kept = dropout
    if threshold == 0:
        for c in range(len(scale)):
            scale[c] = kept
        return
    start, top = np.uint32(np.uint64(first)), np.uint32(np.uint64(first) >> np.uint64(32))
    for c in range(0, len(scale) - LANES + 1, LANES):
        _keep_run(start, top, np.uint32(c), threshold, low, high, kept, scale, c)
    for c in range(len(scale) // LANES * LANES, len(scale)):
        scale[c] = kept if _word(np.uint64(first) + np.uint64(c), low, high) >= threshold else kept - kept


@jit()
def _word(counter, low, high):
    """The hash of one counter."""
    word = _finalise(np.uint32(np.uint32(counter) ^ low))
    return _finalise(np.uint32(word ^ np.uint32(counter >> np.uint64(32)) ^ high))


@jit()
def _finalise(x):
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


class _Hash:
    """The same for sixteen counters, in code that is being generated."""

    def __init__(self, builder: Any, scale: Array, threshold: Any, low: Any, high: Any, kept: Any) -> None:
        self.builder, self.scale, self.kept = builder, scale, kept
        self.threshold, self.low, self.high = (self.splat(word) for word in (threshold, low, high))

    def splat(self, word: Any) -> Any:
        return splat(self.builder, word, LANES)

    def write(self, base: Any, shift: Any, top: Any, position: Any) -> None:
        """The scales of the counters ``top * 2^32 + base + shift``, to ``scale.flat[position:]``."""
        b, here = self.builder, self.builder.add(base, shift)
        carry = b.zext(b.icmp_unsigned("<", here, base), WORDS)
        word = self._finalise(b.xor(here, self.low))
        word = self._finalise(b.xor(b.xor(word, b.add(top, carry)), self.high))
        keeps = b.icmp_unsigned(">=", word, self.threshold)
        kept = self.splat(self.kept)
        pointer = b.bitcast(b.gep(self.scale.pointer, [position]), kept.type.as_pointer())
        b.store(b.select(keeps, kept, ir.Constant(kept.type, None)), pointer, align=self.scale.align)

    def _finalise(self, x: Any) -> Any:
        b = self.builder
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = b.xor(x, b.lshr(x, ir.Constant(WORDS, [shift] * LANES)))
            x = b.mul(x, ir.Constant(WORDS, [factor] * LANES))
        return b.xor(x, b.lshr(x, ir.Constant(WORDS, [16] * LANES)))


@intrinsic
def _keep_run(typing, start, top, shift, threshold, low, high, kept, scale, position):
    """``scale.flat[position:][:16]`` of the counters ``top * 2^32 + start + shift`` and those that follow."""
    check_layout(scale)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start, top, shift, *words, kept, scale, position = args
        hashed = _Hash(builder, Array(context, builder, signature.args[7], scale), *words, kept)
        shifts = builder.add(hashed.splat(shift), ir.Constant(WORDS, list(range(LANES))))
        hashed.write(hashed.splat(start), shifts, hashed.splat(top), position)
        return context.get_dummy_value()

    word = types.uint32
    return types.void(word, word, word, word, word, word, scale.dtype, scale, types.intp), generate


@intrinsic
def _keep_counters(typing, counter, n, at, shift, threshold, low, high, kept, scale, position):
    """``scale.flat[position:][:16]`` of the counters ``counter[1, at:] * 2^32 + counter[0, at:] + shift``."""
    check_layout(counter, scale)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter, n, at, shift, *words, kept, scale, position = args
        hashed = _Hash(builder, Array(context, builder, signature.args[8], scale), *words, kept)
        counters = Array(context, builder, signature.args[0], counter)
        base, top = counters.load_vector(at), counters.load_vector(builder.add(n, at))
        hashed.write(base, hashed.splat(shift), top, position)
        return context.get_dummy_value()

    word, place = types.uint32, types.intp
    return types.void(counter, place, place, word, word, word, word, scale.dtype, scale, place), generate
