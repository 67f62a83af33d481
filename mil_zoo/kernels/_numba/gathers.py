"""Numbers of listed rows turned so that loops over edges are over neighbours, and the largest, as vector instructions.

Four heads of four edges are loaded at a time and turned in registers, where a loop moves numbers one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mil_zoo.kernels._numba.jit import jit
from mil_zoo.kernels._numba.vectors import BYTES, Array, check_layout, shuffle

SQUARE = 4  # heads and edges that are turned at a time
AHEAD = 2  # rows of a graph between asking for what one reads and writes, and its turn


@jit(inline=True)
def gather(indices, table, result):
    """``result[h, e] = table[indices[e], h]``: heads outside, so that loops over edges are over neighbours.

    What is beyond the edges in ``result`` has no meaning; there is room for a multiple of four of them.
    """
    heads = table.shape[1]
    whole = heads // SQUARE * SQUARE
    for h in range(0, whole, SQUARE):
        for e in range(0, len(indices), SQUARE):
            _turn(indices, table, result, (h, e))
    if whole < heads:
        for e in range(len(indices)):
            row = np.uint64(indices[e])  # Numba asks of no unsigned index whether it counts from the end
            for h in range(whole, heads):
                result[h, e] = table[row, h]


@intrinsic
def _turn(typing, indices, table, result, place):
    """``result[h + k, e + m] = table[indices[e + m], h + k]``, k and m < 4; of fewer edges the last one again."""
    check_layout(indices, table, result)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        indices, table, result = (Array(context, builder, signature.args[i], args[i]) for i in range(3))
        (head, edge), b = cgutils.unpack_tuple(builder, args[3]), builder
        four = ir.VectorType(table.vector.element, SQUARE)
        last = b.sub(indices.shape[0], edge.type(1))
        rows = []
        for m in range(SQUARE):
            here = b.add(edge, edge.type(m))
            index = indices.load(b.select(b.icmp_signed("<", here, last), here, last))
            index = index if index.type == edge.type else b.sext(index, edge.type)
            start = b.add(b.mul(index, table.shape[1]), head)
            rows.append(b.load(table.at(start, four), align=table.align))
        low = [shuffle(b, rows[m], rows[m + 1], [0, 4, 1, 5]) for m in (0, 2)]
        high = [shuffle(b, rows[m], rows[m + 1], [2, 6, 3, 7]) for m in (0, 2)]
        for k in range(SQUARE):
            pair, lanes = (low, high)[k // 2], [[0, 1, 4, 5], [2, 3, 6, 7]][k % 2]
            at = b.add(b.mul(b.add(head, head.type(k)), result.shape[1]), edge)
            result.store_vector(shuffle(b, *pair, lanes), at)
        return context.get_dummy_value()

    return types.void(indices, table, result, types.UniTuple(types.intp, 2)), generate


@intrinsic
def largest(typing, table, row):
    """The largest number of a row of a table, whose rows are whole vectors; where one is NaN, any."""
    check_layout(table)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, b = Array(context, builder, signature.args[0], args[0]), builder
        _, width = table.shape
        start, lanes = b.mul(args[1], width), table.vector.count
        top = cgutils.alloca_once_value(b, table.load_vector(start))
        with cgutils.for_range_slice(b, width.type(lanes), width, width.type(lanes), intp=width.type) as (e, _):
            b.store(_larger(b, b.load(top), table.load_vector(b.add(start, e))), top)
        vector = b.load(top)
        while lanes > 1:
            lanes //= 2
            halves = (shuffle(b, vector, vector, list(range(k, k + lanes))) for k in (0, lanes))
            vector = _larger(b, *halves)
        return b.extract_element(vector, ir.IntType(32)(0))

    return table.dtype(table, types.intp), generate


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@jit(inline=True)
def fetch_last(table, edges, row):
    """Asks for the last source of a row: where sources ascend, the one that no row before it has."""
    if edges.indptr[row + 1] > edges.indptr[row]:
        fetch(table, edges.others[edges.indptr[row + 1] - 1])


@intrinsic
def fetch(typing, table, index):
    """Asks for a row of a table, which is read or written a little later."""
    check_layout(table)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, b, index = Array(context, builder, signature.args[0], args[0]), builder, args[1]
        width, byte = table.shape[1], ir.IntType(8).as_pointer()
        for size in table.shape[2:]:
            width = b.mul(width, size)
        index = index if index.type == width.type else b.sext(index, width.type)
        word, start = ir.IntType(32), b.mul(index, width)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        line = width.type(BYTES // table.align)
        with cgutils.for_range_slice(b, width.type(0), width, line, intp=width.type) as (c, _):
            b.call(prefetch, [b.bitcast(table.at(b.add(start, c), table.number), byte), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(table, index), generate
