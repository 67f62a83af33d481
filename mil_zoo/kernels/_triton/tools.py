"""What the Triton kernels share: tuning, dropout, and rows of a graph too long for one program.

Every kernel adds in a fixed order and without atomics, computes offsets in int64, stores what it is given (float16,
bfloat16, float32) and computes in float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mil_zoo.kernels.csr import CSR, LONG_ROW, Rows, Transposed

LONG = tl.constexpr(LONG_ROW)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32; and not -inf, for differences of two -inf are NaN
_MOST = 64  # elements of a tile for each thread; more of them spill registers (tests/compile_triton.py)

# Rows and edges of a tile. A window graph has 25 edges a row, nearest neighbours 5 to 9.
_TILES = [(1, 8, 4), (1, 32, 4), (2, 16, 4), (4, 8, 2), (4, 16, 4), (16, 8, 8)]
ROW_BLOCKS = [{"BLOCK_R": rows, "BLOCK_E": edges, "num_warps": warps} for rows, edges, warps in _TILES]
INTERPRETED_ROW_BLOCKS = {"BLOCK_R": 128, "BLOCK_E": 32}


@triton.jit
def _finalise(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def keep(counter, threshold, low, high, kept):
    """What dropout multiplies elements ``counter`` (int64) by: ``dropout.dropout_scale``."""
    word = _finalise(counter.to(tl.uint32) ^ low.to(tl.uint32))
    word = _finalise(word ^ (counter >> 32).to(tl.uint32) ^ high.to(tl.uint32))
    return tl.where(word >= threshold.to(tl.uint32), kept, 0.0)


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, x * slope)


@triton.jit
def row_block(starts, ends, rows, count, first, BLOCK_R: tl.constexpr):
    """Rows ``first`` onwards of a launch: where each begins and ends, its number, and whether it is there."""
    item = first + tl.arange(0, BLOCK_R)
    here = item < count
    start = tl.load(starts + item, here, 0).to(tl.int64)
    end = tl.load(ends + item, here, 0).to(tl.int64)
    if rows is None:
        row = item
        end = tl.where(end - start > LONG, start, end)  # left to a launch over its pieces
    else:
        row = tl.load(rows + item, here, 0)
    return item, here, row, start, end


INTERPRETED = not isinstance(keep, triton.JITFunction)  # TRITON_INTERPRET=1 was set before triton was imported


class Dropout(NamedTuple):
    """The arguments of ``keep``. The words are int32 with the bits of uint32: one type whatever the seed."""

    threshold: int
    low: int
    high: int
    kept: float

    @classmethod
    def of(cls, p: float, seed: int) -> Dropout:
        words = int(p * 2**32), seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
        return cls(*(word - 2**32 * (word >= 2**31) for word in words), 1 / (1 - p))


def tuned(key: tuple[str, ...], configs: list[dict[str, int]], interpreted: dict[str, int]):
    """``triton.jit`` with the fastest of several block sizes, measured once for each value of ``key``.

    Args:
        key: arguments that make a shape class.
        configs: block sizes; ``num_warps`` among them.
        interpreted: block sizes for the interpreter, whose cost is the number of operations and not their size.

    Integer arguments that change at each call (counts, first rows and the words of the seed) start no compilation.
    """
    changing = ["count", "edges", "first", "num_rows", "size", "span", "threshold", "low", "high"]

    def decorate(function):
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        jitted = triton.jit(function, do_not_specialize=[name for name in changing if name in names])
        choices = [interpreted] if INTERPRETED else configs
        return triton.autotune([_config(**choice) for choice in choices], list(key), prune_configs_by=_PRUNE)(jitted)

    return decorate


def _config(num_warps: int = 4, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps)


def _prune(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Those whose tile fits the registers, or the one that needs the fewest."""
    width = constants.get("BLOCK_F", 1)

    def elements(config: triton.Config) -> float:
        return width * math.prod(config.kwargs.values()) / (32 * config.num_warps)

    return [config for config in configs if elements(config) <= _MOST] or [min(configs, key=elements)]


_PRUNE = {"early_config_prune": _prune}


def block(size: int, largest: int = 2**20) -> int:
    """The block that covers ``size`` columns, at most ``largest``."""
    return min(triton.next_power_of_2(max(size, 1)), largest)


def float32(like: Tensor, *shape: int) -> Tensor:
    """A new float32 tensor on the device of ``like``."""
    return like.new_empty(shape, dtype=torch.float32)


def sum_rows(values: Tensor, graph: CSR) -> Tensor:
    """``[Nd, H]``: the sum of ``values`` ``[E, H]`` over the edges of each destination."""
    return torch.segment_reduce(values, "sum", offsets=graph.indptr.long(), initial=0)


def all_rows(graph: CSR | Transposed) -> Rows:
    """All rows of a graph; kernels leave out the edges of the long ones."""
    indptr = graph.indptr.contiguous()
    return Rows(indptr, indptr[1:], None, len(indptr) - 1)
