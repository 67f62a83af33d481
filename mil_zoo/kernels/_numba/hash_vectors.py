"""The hash of dropout as vector instructions in LLVM's language.

``hash_run`` and ``hash_counters`` stand for loops over ``hashing._scale``. Numba widens their 32-bit products to 64
bits, which have no fast vector instruction: on one thread of an AMD EPYC with AVX2 the loops took 1.4 (a run) and 2.4
times (32 edges) as long.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mil_zoo.kernels._numba.vectors import Array, check_layout, splat

HASH_LANES = 16  # counters hashed at a time
_WORDS = ir.VectorType(ir.IntType(32), HASH_LANES)


class _Hash:
    """The scales of sixteen counters, in code that is being generated."""

    def __init__(self, context: Any, builder: Any, dropout: tuple[Any, Any], scale: Array) -> None:
        kind, value = dropout
        threshold, low, high, kept = cgutils.unpack_tuple(builder, value)
        self.kept = context.cast(builder, kept, kind[3], scale.dtype)
        self.builder, self.scale = builder, scale
        self.threshold, self.low, self.high = (self.splat(word) for word in (threshold, low, high))

    def splat(self, word: Any) -> Any:
        """The word in every lane; of a longer one its low half."""
        short = word if isinstance(word.type, ir.IntType) and word.type.width == 32 else None
        return splat(self.builder, short or self.builder.trunc(word, ir.IntType(32)), HASH_LANES)

    def write(self, base: Any, shift: Any, top: Any, position: Any) -> None:
        """The scales of the counters ``top * 2^32 + base + shift``, to ``scale.flat[position:]``."""
        b, here = self.builder, self.builder.add(base, shift)
        carry = b.zext(b.icmp_unsigned("<", here, base), _WORDS)
        word = self._finalise(b.xor(here, self.low))
        word = self._finalise(b.xor(b.xor(word, b.add(top, carry)), self.high))
        keeps = b.icmp_unsigned(">=", word, self.threshold)
        kept = splat(b, self.kept, HASH_LANES)
        pointer = b.bitcast(b.gep(self.scale.pointer, [position]), kept.type.as_pointer())
        b.store(b.select(keeps, kept, ir.Constant(kept.type, None)), pointer, align=self.scale.align)

    def _finalise(self, x: Any) -> Any:
        b = self.builder
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = b.xor(x, b.lshr(x, ir.Constant(_WORDS, [shift] * HASH_LANES)))
            x = b.mul(x, ir.Constant(_WORDS, [factor] * HASH_LANES))
        return b.xor(x, b.lshr(x, ir.Constant(_WORDS, [16] * HASH_LANES)))


@intrinsic
def hash_run(typing, first, column, dropout, scale):
    """``scale[c:][:16]``, c = ``column``, of the counters ``first + c`` and those that follow; ``first`` is uint64."""
    check_layout(scale)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, column, dropout, scale = args
        scales = Array(context, builder, signature.args[3], scale)
        hashed = _Hash(context, builder, (signature.args[2], dropout), scales)
        shifts = builder.add(hashed.splat(column), ir.Constant(_WORDS, list(range(HASH_LANES))))
        top = builder.lshr(first, first.type(32))
        hashed.write(hashed.splat(first), shifts, hashed.splat(top), column)
        return context.get_dummy_value()

    return types.void(types.uint64, types.intp, dropout, scale), generate


@intrinsic
def hash_counters(typing, counter, dropout, scale, place):
    """``scale[h, e:][:16]`` of the counters ``counter[1, e:] * 2^32 + counter[0, e:] + h``, with ``place`` = (h, e)."""
    check_layout(counter, scale)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter, dropout, scale, place = args
        head, at = cgutils.unpack_tuple(builder, place)
        counters = Array(context, builder, signature.args[0], counter)
        scales = Array(context, builder, signature.args[2], scale)
        hashed = _Hash(context, builder, (signature.args[1], dropout), scales)
        base, top = counters.load_vector(at), counters.load_vector(builder.add(counters.shape[1], at))
        hashed.write(base, hashed.splat(head), top, builder.add(builder.mul(head, scales.shape[1]), at))
        return context.get_dummy_value()

    return types.void(counter, dropout, scale, types.UniTuple(types.intp, 2)), generate
