"""The loops on which attention on a CPU spends its time, as vector instructions in LLVM's language.

Each stands for a plain loop, which is written out beside it and runs where less than a vector is left:

- ``add_weighted`` and ``add_weighted_twice`` for ``_add_columns``. Of that loop LLVM makes vectors at the price of
  checks (may these rows overlap, is this index negative) that take longer than the loop, and loads and stores the sums
  for each row of the index. Here they stay in registers, sixteen at a time: an addition waits for the one before it.
- ``dots`` for ``_dot_columns``, whose sum LLVM must not reorder. Here the lanes of eight rows are summed apart, then
  folded into one vector of eight products.

Tables may be bfloat16, as its bits in uint16: they are widened in registers, and sums are float32. Vectors are 64 bytes
long, and LLVM maps them to those of the processor. Indices are not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mil_zoo.kernels._numba.jit import jit
from mil_zoo.kernels._numba.storage import widened

BYTES = 64  # of a vector
WIDE = 4  # vectors of a unit: columns of one head that are summed together
ROWS = 8  # whose products are summed at a time


@jit(inline=True)
def add_weighted(out, weight, table, indices):
    """``out[h] += sum_e weight[h, e] * table[indices[e], h]``, ``out`` ``[H, F]``; a table of one head serves all."""
    heads, width = out.shape
    lanes = BYTES // out.itemsize
    wide = WIDE * lanes
    units, a = heads * (width // wide), (0, 0)
    while units >= 4:
        b = _after(a, width, wide)
        c = _after(b, width, wide)
        d = _after(c, width, wide)
        _add_four(out, weight, table, indices, (*a, *b, *c, *d))
        a, units = _after(d, width, wide), units - 4
    while units:
        _add_unit(out, weight, table, indices, a)
        a, units = _after(a, width, wide), units - 1
    if width % wide:
        _add_rest(width // wide * wide, out, weight, table, indices)


@jit(inline=True)
def add_weighted_twice(out, weight, table, indices):
    """``add_weighted`` of two sums over the same rows: ``out`` is ``[2, H, F]``, ``weight`` ``[2, H, ...]``.

    A row is loaded once for both. The table has H heads.
    """
    _, heads, width = out.shape
    lanes = BYTES // out.itemsize
    wide = WIDE * lanes
    units, a = heads * (width // wide), (0, 0)
    while units >= 2:
        b = _after(a, width, wide)
        _add_two_twice(out, weight, table, indices, (*a, *b))
        a, units = _after(b, width, wide), units - 2
    if units:
        _add_unit_twice(out, weight, table, indices, a)
    if width % wide:
        for k in range(2):
            _add_rest(width // wide * wide, out[k], weight[k], table, indices)


@jit(inline=True)
def _after(place, width, wide):
    """The unit after the one at ``place`` = (head, column)."""
    head, column = place
    return (head, column + wide) if column + 2 * wide <= width else (head + 1, 0)


@jit()
def _add_rest(first, out, weight, table, indices):
    """``add_weighted`` of the columns from ``first`` on, which are no unit."""
    width, lanes = out.shape[1], BYTES // out.itemsize
    for h in range(len(out)):
        f = first
        while f + lanes <= width:
            _add_vector(out, weight, table, indices, (h, f))
            f += lanes
        if f < width:
            _add_columns(f, out[h], weight[h], table[:, min(h, table.shape[1] - 1)], indices)


@jit()
def _add_columns(first, out, weight, table, indices):
    """``out[c] += sum_e weight[e] * table[indices[e], c]`` for the columns c from ``first`` on."""
    for e in range(len(indices)):
        row = table[indices[e]]
        for c in range(first, len(out)):
            out[c] += weight[e] * widened(row[c])


@jit(inline=True)
def dots(row, table, indices, result):
    """``result[h, e] = <row[h], table[indices[e], h]>`` for ``row`` ``[H, F]``; a table of one head serves all."""
    width, lanes, count = row.shape[1], BYTES // row.itemsize, len(indices)
    whole = width // lanes * lanes
    if count < ROWS:
        for e in range(count):
            _dot_row(row, table, indices, result, (whole, e))
    else:
        for e in range(0, count, ROWS):  # the last ones start earlier, and are some of those before once more
            _dot_rows(row, table, indices, result, (whole, min(e, count - ROWS)))
    if whole < width:
        for h in range(len(row)):
            _dot_columns(whole, row[h], table[:, min(h, table.shape[1] - 1)], indices, result[h])


@jit()
def _dot_columns(first, row, table, indices, result):
    """``result[e] += <row, table[indices[e]]>`` over the columns from ``first`` on."""
    for e in range(len(indices)):
        other, total = table[indices[e]], result[e]
        for c in range(first, len(row)):
            total += row[c] * widened(other[c])
        result[e] = total


class Array:
    """A C-contiguous array, addressed by position, in code that is being generated.

    A ``vector`` of one of uint16, the bits of bfloat16, is widened to float32 when it is loaded.
    """

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        proxy = context.make_array(kind)(context, builder, value)
        self.builder, self.pointer = builder, proxy.data
        self.dtype, self.shape = kind.dtype, cgutils.unpack_tuple(builder, proxy.shape)
        self.align, self.widens = kind.dtype.bitwidth // 8, kind.dtype == types.uint16
        self.number = context.get_data_type(kind.dtype)
        number = ir.FloatType() if self.widens else self.number
        self.vector = ir.VectorType(number, BYTES // (4 if self.widens else self.align))

    def load(self, position: Any) -> Any:
        return self.builder.load(self.builder.gep(self.pointer, [position]))

    def store(self, value: Any, position: Any) -> None:
        self.builder.store(value, self.builder.gep(self.pointer, [position]))

    def at(self, position: Any, kind: Any) -> Any:
        """A pointer to something of a kind that starts at ``position``."""
        return self.builder.bitcast(self.builder.gep(self.pointer, [position]), kind.as_pointer())

    def load_vector(self, position: Any) -> Any:
        if not self.widens:
            return self.builder.load(self.at(position, self.vector), align=self.align)
        count, builder = self.vector.count, self.builder
        bits = builder.load(self.at(position, ir.VectorType(ir.IntType(16), count)), align=self.align)
        words = ir.VectorType(ir.IntType(32), count)
        return builder.bitcast(builder.shl(builder.zext(bits, words), ir.Constant(words, [16] * count)), self.vector)

    def store_vector(self, value: Any, position: Any) -> None:
        self.builder.store(value, self.at(position, value.type), align=self.align)


def splat(builder: Any, number: Any, lanes: int) -> Any:
    """A vector with the number in every lane."""
    word = ir.IntType(32)
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined), number, word(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(word, lanes), [0] * lanes))


def shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """A vector of the given lanes of two, which count from 0 through both."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _fold(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of the lanes of each of 1, 2, 4 ... vectors; pairs are folded together."""
    lanes = size = vectors[0].type.count  # size: lanes that are still to be added to one
    while size > 1:
        size //= 2
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        total = 2 * lanes if len(vectors) > 1 else vectors[0].type.count
        left = [2 * size * group + k for group in range(total // (2 * size)) for k in range(size)]
        right = [lane + size for lane in left]
        vectors = [builder.fadd(shuffle(builder, a, b, left), shuffle(builder, a, b, right)) for a, b in pairs]
    return vectors[0]


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> None:
    product = builder.fmul(a, b, flags=["contract"])
    builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)


class _Table:
    """The rows of a table ``[N, H or 1, F]`` that indices name."""

    def __init__(self, builder: Any, table: Array, indices: Array) -> None:
        self.builder, self.table, self.indices = builder, table, indices
        _, self.heads, self.width = table.shape
        self.stride = builder.mul(self.heads, self.width)

    def column(self, head: Any) -> Any:
        """Where a head's part of a row starts."""
        alone = self.builder.icmp_signed("==", self.heads, self.heads.type(1))
        return self.builder.select(alone, self.heads.type(0), self.builder.mul(head, self.width))

    def start(self, position: Any) -> Any:
        """Where the row that ``indices[position]`` names starts."""
        index, builder = self.indices.load(position), self.builder
        index = index if index.type == self.stride.type else builder.sext(index, self.stride.type)
        return builder.mul(index, self.stride)


def check_layout(*arrays: Any) -> None:
    """Refuses, while Numba finds types, arrays that cannot be addressed by position."""
    if any(array.layout != "C" for array in arrays):
        raise TypingError("rows must be C-contiguous")


def _make_add(units: int, vectors: int, sums: int = 1) -> Any:
    @intrinsic
    def add(typing, out, weight, table, indices, places):
        """For each (h, f) of ``places``: ``out[h, f:][:n] += sum_e weight[h, e] * table[indices[e], h, f:][:n]``.

        n are the lanes of so many vectors. Of more than one sum, ``out`` and ``weight`` have one more axis in front.
        """
        check_layout(out, weight, table, indices)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, weight, table, indices = (Array(context, builder, signature.args[i], args[i]) for i in range(4))
            numbers, b = cgutils.unpack_tuple(builder, args[4]), builder
            rows, lanes = _Table(b, table, indices), out.vector.count
            (heads, width), room = out.shape[-2:], weight.shape[-1]
            intp, shifts = heads.type, [heads.type(v * lanes) for v in range(vectors)]
            parts = []  # a unit's column of the table, and for each sum its first weight, and its totals by position
            for head, column in zip(numbers[::2], numbers[1::2], strict=True):
                sets = []
                for k in range(sums):
                    line = b.add(head, b.mul(heads, intp(k)))
                    at = b.add(b.mul(line, width), column)
                    places_of = [b.add(at, shift) for shift in shifts]
                    totals = [cgutils.alloca_once_value(b, out.load_vector(place)) for place in places_of]
                    sets.append((b.mul(line, room), places_of, totals))
                parts.append((b.add(rows.column(head), column), sets))
            with cgutils.for_range(b, indices.shape[0], intp=intp) as loop:
                row = rows.start(loop.index)
                for column, sets in parts:
                    start = b.add(row, column)
                    loaded = [table.load_vector(b.add(start, shift)) for shift in shifts]
                    for first, _, totals in sets:
                        factor = splat(b, weight.load(b.add(first, loop.index)), lanes)
                        for total, vector in zip(totals, loaded, strict=True):
                            _add_product(b, total, vector, factor)
            for _, sets in parts:
                for _, places_of, totals in sets:
                    for place, total in zip(places_of, totals, strict=True):
                        out.store_vector(b.load(total), place)
            return context.get_dummy_value()

        return types.void(out, weight, table, indices, types.UniTuple(types.intp, 2 * units)), generate

    return add


_add_four, _add_unit, _add_vector = _make_add(4, WIDE), _make_add(1, WIDE), _make_add(1, 1)
_add_two_twice, _add_unit_twice = _make_add(2, WIDE, sums=2), _make_add(1, WIDE, sums=2)


def _make_dots(count: int) -> Any:
    @intrinsic
    def dots(typing, row, table, indices, result, place):
        """``result[h, e + k] = <row[h, :w], table[indices[e + k], h, :w]>`` for so many k, ``place`` = (w, e)."""
        check_layout(row, table, indices, result)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            row, table, indices, result = (Array(context, builder, signature.args[i], args[i]) for i in range(4))
            (width, edge), b = cgutils.unpack_tuple(builder, args[4]), builder
            rows, lanes, intp = _Table(b, table, indices), row.vector.count, edge.type
            starts = [rows.start(b.add(edge, intp(k))) for k in range(count)]
            totals = [cgutils.alloca_once(b, row.vector) for _ in starts]
            wide = b.mul(b.sdiv(width, intp(WIDE * lanes)), intp(WIDE * lanes))

            def add(first: Any, end: Any, vectors: int, own: Any, column: Any) -> None:
                with cgutils.for_range_slice(b, first, end, intp(vectors * lanes), intp=intp) as (f, _):
                    for shift in [intp(v * lanes) for v in range(vectors)]:
                        vector = row.load_vector(b.add(b.add(own, f), shift))
                        for total, start in zip(totals, starts, strict=True):
                            at = b.add(b.add(b.add(start, column), f), shift)
                            _add_product(b, total, table.load_vector(at), vector)

            with cgutils.for_range(b, row.shape[0], intp=intp) as loop:
                for total in totals:
                    b.store(ir.Constant(row.vector, None), total)
                own, column = b.mul(loop.index, row.shape[1]), rows.column(loop.index)
                add(intp(0), wide, WIDE, own, column)
                add(wide, width, 1, own, column)
                sums = _fold(b, [b.load(total) for total in totals])
                result.store_vector(sums, b.add(b.mul(loop.index, result.shape[1]), edge))
            return context.get_dummy_value()

        return types.void(row, table, indices, result, types.UniTuple(types.intp, 2)), generate

    return dots


_dot_rows, _dot_row = _make_dots(ROWS), _make_dots(1)
