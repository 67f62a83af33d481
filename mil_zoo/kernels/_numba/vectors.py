"""Sums over the rows that an index lists, as vector instructions: where attention on a CPU spends its time.

Of a loop over the features of a row LLVM makes vectors at the price of checks (may these rows overlap, is this index
negative) that take longer than the loop. Here vectors of 64 bytes are written out in LLVM's language, which maps them
to those of the processor, and sums stay in registers over all rows of an index. Indices are not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mil_zoo.kernels._numba.tools import jit

BYTES = 64  # of a vector
WIDE = 4  # vectors, or rows, whose sums are kept at a time


@jit()
def add_weighted(out, weight, table, indices):
    """``out[h] += sum_e weight[h, e] * table[indices[e], h]``, ``out`` ``[H, F]``; a table of one head serves all."""
    heads, width, lanes = out.shape[0], out.shape[1], BYTES // out.itemsize
    step, stride = 0 if table.shape[1] == 1 else width, table.shape[1] * width
    for h in range(heads):
        f = 0
        while f + WIDE * lanes <= width:
            _add_wide(out, h * width + f, weight, h * weight.shape[1], table, h * step + f, stride, indices)
            f += WIDE * lanes
        while f + lanes <= width:
            _add_one(out, h * width + f, weight, h * weight.shape[1], table, h * step + f, stride, indices)
            f += lanes
        if f < width:
            head = min(h, table.shape[1] - 1)
            for e in range(len(indices)):
                for c in range(f, width):
                    out[h, c] += weight[h, e] * table[indices[e], head, c]


@jit()
def dots(row, table, indices, result):
    """``result[h, e] = <row[h], table[indices[e], h]>`` for ``row`` ``[H, F]``; a table of one head serves all."""
    heads, width, lanes = row.shape[0], row.shape[1], BYTES // row.itemsize
    step, stride, whole = 0 if table.shape[1] == 1 else width, table.shape[1] * width, width // lanes * lanes
    for h in range(heads):
        _dots(row, h * width, whole, table, h * step, stride, indices, result, h * result.shape[1])
        if whole < width:
            head = min(h, table.shape[1] - 1)
            for e in range(len(indices)):
                for c in range(whole, width):
                    result[h, e] += row[h, c] * table[indices[e], head, c]


class Array:
    """A C-contiguous array, addressed by position, in code that is being generated."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        proxy = context.make_array(kind)(context, builder, value)
        self.builder, self.pointer = builder, proxy.data
        self.length = cgutils.unpack_tuple(builder, proxy.shape)[0]
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


def _row(builder: Any, indices: Array, position: Any, stride: Any) -> Any:
    """Where the row that ``indices[position]`` names starts."""
    index = indices.load(position)
    return builder.mul(index if index.type == stride.type else builder.sext(index, stride.type), stride)


def check_layout(*arrays: Any) -> None:
    """Refuses, while Numba finds types, arrays that cannot be addressed by position."""
    if any(array.layout != "C" for array in arrays):
        raise TypingError("rows must be C-contiguous")


def _make_add(vectors: int) -> Any:
    @intrinsic
    def add(typing, out, at, weight, first, table, column, stride, indices):
        """``out.flat[at:][:n] += sum_e weight.flat[first + e] * table.flat[indices[e] * stride + column:][:n]``, with n
        the lanes of so many vectors."""
        check_layout(out, weight, table, indices)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, weight, table, indices = (Array(context, builder, signature.args[i], args[i]) for i in (0, 2, 4, 7))
            at, first, column, stride = (args[i] for i in (1, 3, 5, 6))
            shifts = [at.type(v * out.vector.count) for v in range(vectors)]
            totals = [cgutils.alloca_once(builder, out.vector) for _ in shifts]
            for total, shift in zip(totals, shifts, strict=True):
                builder.store(out.load_vector(builder.add(at, shift)), total)
            with cgutils.for_range(builder, indices.length, intp=at.type) as loop:
                start = builder.add(_row(builder, indices, loop.index, stride), column)
                factor = splat(builder, weight.load(builder.add(first, loop.index)), out.vector.count)
                for total, shift in zip(totals, shifts, strict=True):
                    _add_product(builder, total, table.load_vector(builder.add(start, shift)), factor)
            for total, shift in zip(totals, shifts, strict=True):
                out.store_vector(builder.load(total), builder.add(at, shift))
            return context.get_dummy_value()

        position = types.intp
        return types.void(out, position, weight, position, table, position, position, indices), generate

    return add


_add_wide, _add_one = _make_add(WIDE), _make_add(1)


@intrinsic
def _dots(typing, row, at, width, table, column, stride, indices, result, first):
    """``result.flat[first + e] = <row.flat[at:], table.flat[indices[e] * stride + column:]>`` over ``width`` numbers,
    a multiple of the lanes."""
    check_layout(row, table, indices, result)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, table, indices, result = (Array(context, builder, signature.args[i], args[i]) for i in (0, 3, 6, 7))
        at, width, column, stride, first = (args[i] for i in (1, 2, 4, 5, 8))
        totals = [cgutils.alloca_once(builder, row.vector) for _ in range(WIDE)]
        last = builder.sub(indices.length, at.type(1))
        steps = (at.type(0), indices.length, at.type(WIDE))
        with cgutils.for_range_slice(builder, *steps, intp=at.type) as (e, _):
            edges = [e]  # the last one again where there are fewer
            for k in range(1, WIDE):
                edge = builder.add(e, at.type(k))
                edges.append(builder.select(builder.icmp_signed("<", edge, last), edge, last))
            starts = [builder.add(_row(builder, indices, edge, stride), column) for edge in edges]
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

    position = types.intp
    signature = types.void(row, position, position, table, position, position, indices, result, position)
    return signature, generate
