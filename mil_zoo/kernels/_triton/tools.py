"""What the Triton kernels share: tuning, dropout, and rows of a graph too long for one program.

Every kernel adds in a fixed order and without atomics, computes offsets in int64, stores what it is given (float16,
bfloat16, float32) and computes in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
import triton.testing
from torch import Tensor

from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.long_rows import LONG_ROW

LONG = tl.constexpr(LONG_ROW)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32; and not -inf, for differences of two -inf are NaN
_MOST = 100  # elements of a tile and its sums for each thread; more spill registers (tests/compile_triton.py)


@triton.jit
def _finalise(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def kept_scale(counter, threshold, low, high, kept):
    """What dropout multiplies elements ``counter`` (int64) by: ``dropout.kept_scale``.

    The words of the seed, ``low`` and ``high``, are numbers or pointers to them.
    """
    if low.dtype.is_ptr():
        low = tl.load(low)
        high = tl.load(high)
    word = _finalise(counter.to(tl.uint32) ^ low.to(tl.uint32))
    word = _finalise(word ^ (counter >> 32).to(tl.uint32) ^ high.to(tl.uint32))
    return tl.where(word >= threshold.to(tl.uint32), kept, 0.0)


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, x * slope)


# Integer arguments that are counts, first rows or words of a seed.
CHANGING = ("count", "edges", "first", "num_rows", "num_bags", "num_pieces", "size", "span", "threshold", "low", "high")
CHANGING += ("columns", "width")

INTERPRETED = not isinstance(kept_scale, triton.JITFunction)  # TRITON_INTERPRET=1 was set before triton was imported


class Dropout(NamedTuple):
    """The arguments of ``kept_scale``. The words are int32 with the bits of uint32: one type whatever the seed."""

    threshold: int
    low: int | Tensor
    high: int | Tensor
    kept: float

    @classmethod
    def of(cls, p: float, seed: int | Tensor) -> Dropout:
        """With a seed that is a number, or int64 ``[]`` in the memory of the device: a recorded step reads it there."""
        if isinstance(seed, Tensor):
            low, high = seed.reshape(1).view(torch.int32).split(1)
            return cls(_signed(int(p * 2**32)), low, high, 1 / (1 - p))
        words = int(p * 2**32), seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
        return cls(*map(_signed, words), 1 / (1 - p))


def _signed(word: int) -> int:
    return word - 2**32 * (word >= 2**31)


def tuned(
    key: tuple[str, ...],
    configs: list[dict[str, int]],
    interpreted: dict[str, int],
    restore: tuple[str, ...] = (),
):
    """``triton.jit`` with the fastest of several block sizes, measured once for each value of ``key``.

    Args:
        key: arguments that make a shape class.
        configs: block sizes; ``num_warps`` among them.
        interpreted: block sizes for the interpreter, whose cost is the number of operations and not their size.
        restore: arguments that a launch changes rather than writes, to be put back while block sizes are measured.

    Integer arguments other than constants start no compilation when they change.
    """

    def decorate(function):
        annotations = function.__annotations__
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        runtime = [name for name in names if name not in annotations]
        jitted = triton.jit(function, do_not_specialize=[name for name in runtime if name in CHANGING])
        choices = [_config(**choice) for choice in ([interpreted] if INTERPRETED else configs)]
        options = {"prune_configs_by": _PRUNE, "restore_value": list(restore) or None, "do_bench": _few_milliseconds}
        return Kernel(triton.autotune(choices, list(key), **options)(jitted), names, runtime)

    return decorate


class Kernel:
    """A kernel that is launched by name: ``kernel[grid](argument=value, ...)``.

    Triton looks up block sizes and compiled code anew at each launch, which takes longer than most of these kernels
    run. Here a launch finds its code by what can change it: constants, dtypes, alignment, missing arguments.

    Args:
        tuner: Triton's autotuner of the function.
        names: of the function's arguments.
        runtime: those that are not constants.
    """

    def __init__(self, tuner: Any, names: tuple[str, ...], runtime: list[str]) -> None:
        self.tuner, self.names, self.runtime = tuner, names, runtime
        self.constants = [name for name in names if name not in runtime]
        self.compiled: dict[tuple[Any, ...], tuple[Any, dict[str, Any]]] = {}

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return functools.partial(self.run, grid)

    def run(self, grid: Any, **values: Any) -> None:
        """Launches the kernel on ``grid``: a tuple, or a function of the block sizes that gives one."""
        if INTERPRETED:
            self.tuner[grid](**values)
            return
        key = (
            torch.cuda.current_device(),
            *[values.get(name) for name in self.constants],
            *[_what_compiles(values[name]) for name in self.runtime],
        )
        found = self.compiled.get(key)
        if found is None:
            code = self.tuner[grid](**values)
            self.compiled[key] = code, self.tuner.best_config.kwargs
            return
        code, blocks = found
        grid = grid(values | blocks) if callable(grid) else grid
        code[(*grid, 1, 1)[:3]](*[blocks[name] if name in blocks else values[name] for name in self.names])


def _what_compiles(value: Any) -> Any:
    """What of a runtime argument Triton compiles for."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return -(2**31) <= value < 2**31
    return value if value is None else type(value)


def _few_milliseconds(call: Callable[[], object], quantiles: tuple[float, ...]) -> Any:
    """How a block size is measured; Triton's own would take an eighth of a second for each.

    A block size that a version of Triton cannot compile (3.7.1 fails at 32 rows x 1 edge, others do not) is not taken.
    """
    try:
        return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)
    except RuntimeError as error:
        if "PassManager" not in str(error):
            raise
        return [math.inf] * len(quantiles)


def _config(num_warps: int = 4, num_stages: int = 3, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def _prune(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Those whose tile fits the registers, or the one that needs the fewest; of products, kept elsewhere, all."""
    if "BLOCK_K" in configs[0].kwargs:
        return configs
    width = constants.get("BLOCK_F", 1)

    def elements(config: triton.Config) -> float:
        blocks = config.kwargs
        sums = 2 * blocks["BLOCK_R"] if "BLOCK_E" in blocks else 0
        return width * (math.prod(blocks.values()) + sums) / (32 * config.num_warps)

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
