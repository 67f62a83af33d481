"""The three loops on which attention on a CPU spends its time, as vector instructions in LLVM's language.

Each stands for a plain loop, which is written out beside it and runs where less than a vector is left:

- ``add_weighted`` for ``_add_columns``. Of that loop LLVM makes vectors at the price of checks (may these rows overlap,
  is this index negative) that take longer than the loop, and loads and stores the sums for each row of the index. Here
  they stay in registers.
- ``dots`` for ``_dot_columns``, whose sum LLVM must not reorder. Here the lanes are summed apart, then together.
- ``hash_run`` and ``hash_counters`` for ``hashing._scale``. Numba widens 32-bit products to 64 bits, which have no fast
  vector instruction.

Measured against loops that the compiler may reorder, in turns, on one thread of an AMD EPYC with AVX2, 25 rows at a
time: sums 1.7 times (4 heads of 64 floats), products 1.2 times, hashes 1.4 (a run) and 2.4 times (32 edges). Vectors
are 64 bytes long, and LLVM maps them to those of the processor. Indices are not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mil_zoo.kernels._numba.jit import jit

BYTES = 64  # of a vector
HASH_LANES = 16  # counters hashed at a time
_WORDS = ir.VectorType(ir.IntType(32), HASH_LANES)
WIDE = 4  # vectors, or rows, whose sums are kept at a time


@jit()
def add_weighted(out, weight, table, indices):
    """``out[h] += sum_e weight[h, e] * table[indices[e], h]``, ``out`` ``[H, F]``; a table of one head serves all."""
    width, lanes = out.shape[1], BYTES // out.itemsize
    for h in range(len(out)):
        f = 0
        while f + WIDE * lanes <= width:
            _add_wide(out, weight, table, indices, (h, f))
            f += WIDE * lanes
        while f + lanes <= width:
            _add_one(out, weight, table, indices, (h, f))
            f += lanes
        if f < width:
            _add_columns(f, out[h], weight[h], table[:, min(h, table.shape[1] - 1)], indices)


@jit()
def _add_columns(first, out, weight, table, indices):
    """``out[c] += sum_e weight[e] * table[indices[e], c]`` for the columns c from ``first`` on."""
    for e in range(len(indices)):
        row = table[indices[e]]
        for c in range(first, len(out)):
            out[c] += weight[e] * row[c]


@jit()
def dots(row, table, indices, result):
    """``result[h, e] = <row[h], table[indices[e], h]>`` for ``row`` ``[H, F]``; a table of one head serves all."""
    width, lanes = row.shape[1], BYTES // row.itemsize
    whole = width // lanes * lanes
    for h in range(len(row)):
        _dots(row, table, indices, result, (h, whole))
        if whole < width:
            _dot_columns(whole, row[h], table[:, min(h, table.shape[1] - 1)], indices, result[h])


@jit()
def _dot_columns(first, row, table, indices, result):
    """``result[e] += <row, table[indices[e]]>`` over the columns from ``first`` on."""
    for e in range(len(indices)):
        other, total = table[indices[e]], result[e]
        for c in range(first, len(row)):
            total += row[c] * other[c]
        result[e] = total


class Array:
    """A C-contiguous array, addressed by position, in code that is being generated."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        proxy = context.make_array(kind)(context, builder, value)
        self.builder, self.pointer = builder, proxy.data
        self.dtype, self.shape = kind.dtype, cgutils.unpack_tuple(builder, proxy.shape)
        self.align, self.number = kind.dtype.bitwidth // 8, context.get_data_type(kind.dtype)
        self.vector = ir.VectorType(self.number, BYTES // self.align)

    def load(self, position: Any) -> Any:
        return self.builder.load(self.builder.gep(self.pointer, [position]))

    def store(self, value: Any, position: Any) -> None:
        self.builder.store(value, self.builder.gep(self.pointer, [position]))

    def _vector_at(self, position: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.pointer, [position]), self.vector.as_pointer())

    def load_vector(self, position: Any) -> Any:
        return self.builder.load(self._vector_at(position), align=self.align)

    def store_vector(self, value: Any, position: Any) -> None:
        self.builder.store(value, self._vector_at(position), align=self.align)


def splat(builder: Any, number: Any, lanes: int) -> Any:
    """A vector with the number in every lane."""
    word = ir.IntType(32)
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined), number, word(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(word, lanes), [0] * lanes))


def _total(builder: Any, vector: Any) -> Any:
    """The sum of the lanes, in whatever order is fastest."""
    number, lanes = vector.type.element, vector.type.count
    name = f"llvm.vector.reduce.fadd.v{lanes}f{8 * BYTES // lanes}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number, vector.type]), name)
    return builder.call(function, [ir.Constant(number, 0.0), vector], fastmath=["reassoc"])


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> None:
    product = builder.fmul(a, b, flags=["contract"])
    builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)


class _Table:
    """The rows of a table ``[N, H or 1, F]`` that indices name, for one head."""

    def __init__(self, builder: Any, table: Array, indices: Array, head: Any) -> None:
        self.builder, self.table, self.indices = builder, table, indices
        _, heads, width = table.shape
        self.stride = builder.mul(heads, width)
        alone = builder.icmp_signed("==", heads, heads.type(1))
        self.column = builder.select(alone, heads.type(0), builder.mul(head, width))

    def start(self, position: Any) -> Any:
        """Where the head's part of the row that ``indices[position]`` names starts."""
        index, builder = self.indices.load(position), self.builder
        index = index if index.type == self.stride.type else builder.sext(index, self.stride.type)
        return builder.add(builder.mul(index, self.stride), self.column)


def check_layout(*arrays: Any) -> None:
    """Refuses, while Numba finds types, arrays that cannot be addressed by position."""
    if any(array.layout != "C" for array in arrays):
        raise TypingError("rows must be C-contiguous")


def _make_add(vectors: int) -> Any:
    @intrinsic
    def add(typing, out, weight, table, indices, place):
        """``out[h, f:][:n] += sum_e weight[h, e] * table[indices[e], h, f:][:n]``, n the lanes of so many vectors.

        ``place`` is (h, f).
        """
        check_layout(out, weight, table, indices)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, weight, table, indices = (Array(context, builder, signature.args[i], args[i]) for i in range(4))
            head, column = cgutils.unpack_tuple(builder, args[4])
            rows, count = _Table(builder, table, indices, head), out.vector.count
            at = builder.add(builder.mul(head, out.shape[1]), column)
            first = builder.mul(head, weight.shape[1])
            shifts = [at.type(v * count) for v in range(vectors)]
            totals = [cgutils.alloca_once(builder, out.vector) for _ in shifts]
            for total, shift in zip(totals, shifts, strict=True):
                builder.store(out.load_vector(builder.add(at, shift)), total)
            with cgutils.for_range(builder, indices.shape[0], intp=at.type) as loop:
                start = builder.add(rows.start(loop.index), column)
                factor = splat(builder, weight.load(builder.add(first, loop.index)), count)
                for total, shift in zip(totals, shifts, strict=True):
                    _add_product(builder, total, table.load_vector(builder.add(start, shift)), factor)
            for total, shift in zip(totals, shifts, strict=True):
                out.store_vector(builder.load(total), builder.add(at, shift))
            return context.get_dummy_value()

        return types.void(out, weight, table, indices, types.UniTuple(types.intp, 2)), generate

    return add


_add_wide, _add_one = _make_add(WIDE), _make_add(1)


@intrinsic
def _dots(typing, row, table, indices, result, place):
    """``result[h, e] = <row[h, :w], table[indices[e], h, :w]>``, ``place`` = (h, w), w a multiple of the lanes."""
    check_layout(row, table, indices, result)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, table, indices, result = (Array(context, builder, signature.args[i], args[i]) for i in range(4))
        head, width = cgutils.unpack_tuple(builder, args[4])
        rows, count = _Table(builder, table, indices, head), indices.shape[0]
        at, first = builder.mul(head, row.shape[1]), builder.mul(head, result.shape[1])
        totals = [cgutils.alloca_once(builder, row.vector) for _ in range(WIDE)]
        last = builder.sub(count, at.type(1))
        with cgutils.for_range_slice(builder, at.type(0), count, at.type(WIDE), intp=at.type) as (e, _):
            edges = [e]  # the last one again where there are fewer
            for k in range(1, WIDE):
                edge = builder.add(e, at.type(k))
                edges.append(builder.select(builder.icmp_signed("<", edge, last), edge, last))
            starts = [rows.start(edge) for edge in edges]
            for total in totals:
                builder.store(ir.Constant(row.vector, None), total)
            lanes = (at.type(0), width, at.type(row.vector.count))
            with cgutils.for_range_slice(builder, *lanes, intp=at.type) as (f, _):
                own = row.load_vector(builder.add(at, f))
                for total, start in zip(totals, starts, strict=True):
                    _add_product(builder, total, table.load_vector(builder.add(start, f)), own)
            for total, edge in zip(totals, edges, strict=True):
                result.store(_total(builder, builder.load(total)), builder.add(first, edge))
        return context.get_dummy_value()

    return types.void(row, table, indices, result, types.UniTuple(types.intp, 2)), generate


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
