"""Time of the Numba ops in bfloat16 beside float32, forward and backward: prints rows of a Markdown table.

    OMP_NUM_THREADS=2 python benchmarks/bf16_ops.py [PART OF A NAME ...]

Both precisions take turns, so that what else the machine does strikes both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from gpu.common import random_inputs, window_graph
from torch import Tensor

from mil_zoo import kernels

CPU, SECONDS, SIZES = torch.device("cpu"), 2.0, (10_000, 100_000)
HEADS, WIDTH, CHANNELS, STATES = 4, 64, 512, 16

Case = tuple[str, Callable[..., Tensor], list[tuple[int, ...]]]


def cases(n: int) -> Iterator[Case]:
    """Each op with the shapes of what it is given: windows of 5 x 5, heads of 64, rows of 256 or 512."""
    graph = window_graph(n, CPU)
    graph.transposed  # noqa: B018  made once for a graph, not at each step
    side = int(n**0.5)
    rows, square, offsets = (n, 4 * WIDTH), side * side, torch.linspace(0, n, 17).long()
    options = {"backend": "numba"}
    attended = [(n, HEADS, WIDTH)] * 3
    yield "graph_dot_attention", lambda *x: kernels.graph_dot_attention(*x, graph, **options), attended
    yield "graph_softmax_sum", lambda *x: kernels.graph_softmax_sum(*x, graph, **options), [rows, (1,)]
    vectors = [(rows[1],)] * 3 + [(1,)]
    yield "residual_norm_prelu", lambda *x: kernels.residual_norm_prelu(*x, **options), [rows, rows, *vectors]
    scanned = [(n, CHANNELS)] * 2 + [(n, STATES)] * 2 + [(CHANNELS,), (n, CHANNELS), (CHANNELS,)]
    rates = -torch.rand(CHANNELS, STATES) - 0.1

    def scan(u, delta, *rest):
        return kernels.selective_scan(u, delta, rates.to(u.dtype), *rest, softplus=True, **options)

    yield "selective_scan", scan, scanned
    gates = [rows, (1, rows[1] // 2)]
    yield "gated_scores", lambda *x: kernels.gated_scores(*x, dropout_p=0.25, seed=1, **options), gates
    yield "seeded_dropout", lambda x: kernels.seeded_dropout(x, 0.25, seed=1, **options), [(n, CHANNELS)]
    linear = [(n, 1024), (256, 1024), (256,)]
    yield "dropout_linear", lambda *x: kernels.dropout_linear(*x, dropout_p=0.15, seed=1, **options)[0], linear
    image = [(square, CHANNELS), (CHANNELS, 1, 7, 7), (CHANNELS,)]
    yield "depthwise_conv", lambda *x: kernels.depthwise_conv(*x, shape=(side, side), **options), image
    for reduce in ("sum", "mean", "max", "logsumexp"):

        def reduced(x, reduce=reduce):
            return kernels.segment_reduce(x, offsets, reduce, **options)

        yield f"segment_reduce {reduce}", reduced, [(n, CHANNELS)]


def step(function: Callable[..., Tensor], shapes: list[tuple[int, ...]], dtype: torch.dtype) -> Callable[[], object]:
    """A call forward and backward, with gradients of all inputs."""
    inputs = random_inputs(CPU, dtype, *shapes)
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def medians(steps: list[Callable[[], object]]) -> list[float]:
    """Milliseconds of each, taken in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for run in steps:
        run()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 5:
        for found, run in zip(times, steps, strict=True):
            start = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def main() -> None:
    """Prints a row an op and size."""
    print("| op | rows | float32, ms | bfloat16, ms | bfloat16 / float32 |\n|---|---:|---:|---:|---:|")
    for n in SIZES:
        for name, function, shapes in cases(n):
            if len(sys.argv) == 1 or any(part in f"{name} {n}," for part in sys.argv[1:]):
                full, half = medians([step(function, shapes, dtype) for dtype in (torch.float32, torch.bfloat16)])
                print(f"| `{name}` | {n} | {full:.2f} | {half:.2f} | {half / full:.2f} |", flush=True)


if __name__ == "__main__":
    main()
