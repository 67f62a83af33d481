"""Time of the kernels, forward and backward, each backend in one run: ``pytest benchmarks/test_kernels.py``.

``extra_info`` holds the memory floor (every input read once, every output and gradient written once), the bandwidth of
a copy between two large tensors in this run, and how many times the fastest round took what that bandwidth would need
for the floor. Caches can beat the floor of a small problem.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from mil_zoo.graph import build
from mil_zoo.kernels import CSR, graph_attention, segment_attention_pool

STEP, HEADS, WIDTH = 256, 4, 64


@pytest.fixture(scope="module")
def bandwidth() -> float:
    """Bytes a second, read and written, of a copy."""
    source = torch.ones(2**26)
    target, seconds = torch.empty_like(source), []
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def window_graph(side: int) -> CSR:
    """Square of ``side`` x ``side`` patches, row after row."""
    coords = torch.cartesian_prod(torch.arange(side), torch.arange(side)) * STEP
    graph = CSR.from_edges(*build(coords, "window:2", STEP).edges(), len(coords))
    graph.transposed  # noqa: B018  made once for a graph, not at each step
    return graph


def run(benchmark, bandwidth: float, function, inputs: list[Tensor], constants: list[Tensor], rounds: int) -> None:
    """Times ``function(*inputs)`` with its gradients and notes the floor."""
    out = function(*inputs)
    grad = torch.randn_like(out)
    floor = 2 * sum(x.nbytes for x in [*inputs, out]) + sum(x.nbytes for x in constants)  # values and gradients

    def step():
        torch.autograd.grad(function(*inputs), inputs, grad)

    benchmark.pedantic(step, rounds=rounds, warmup_rounds=2)
    ratio = benchmark.stats.stats.min / (floor / bandwidth)
    benchmark.extra_info.update(
        threads=torch.get_num_threads(),
        memory_floor_bytes=floor,
        copy_bytes_per_second=bandwidth,
        times_the_floor=round(ratio, 2),
    )


def attend(benchmark, bandwidth: float, side: int, backend: str, dropout_p: float, rounds: int) -> None:
    graph = window_graph(side)
    n = graph.num_dst
    inputs = [torch.randn(shape, requires_grad=True) for shape in [(n, HEADS, WIDTH), (n, HEADS), (n, HEADS)]]
    run(
        benchmark,
        bandwidth,
        lambda *x: graph_attention(*x, graph, dropout_p=dropout_p, seed=1, backend=backend),
        inputs,
        [graph.indptr, graph.indices],
        rounds,
    )


@pytest.mark.parametrize("backend", ["numba", "dgl", "reference"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.15])
@pytest.mark.benchmark(group="graph_attention, 10 000 patches, window:2, 4 x 64")
def test_graph_attention(benchmark, bandwidth, backend, dropout_p):
    attend(benchmark, bandwidth, 100, backend, dropout_p, rounds=4 if backend == "reference" else 20)


@pytest.mark.benchmark(group="graph_attention, 1 000 000 patches, window:2, 4 x 64")
def test_graph_attention_of_a_million_patches(benchmark, bandwidth):
    attend(benchmark, bandwidth, 1000, "numba", 0.0, rounds=3)


def pool_padded(scores: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """What MIL libraries do: a batch padded to its longest bag, ``[B, L, K]`` and ``[B, L, F]``."""
    attention = scores.masked_fill(mask[:, :, None], -torch.inf).softmax(1)
    return attention.transpose(1, 2) @ values


@pytest.mark.parametrize("side", ["numba", "dgl", "padded"])
@pytest.mark.benchmark(group="segment_attention_pool, 64 bags of 100 to 30 000, 512 features")
def test_segment_attention_pool(benchmark, bandwidth, side):
    sizes = torch.from_numpy(np.geomspace(100, 30_000, 64).astype(np.int64))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    if side == "padded":
        longest = int(sizes.max())
        mask = torch.arange(longest) >= sizes[:, None]
        shapes, constants = [(64, longest, 1), (64, longest, 512)], [mask]

        def function(scores, values):
            return pool_padded(scores, values, mask)
    else:
        shapes, constants = [(int(sizes.sum()), 1), (int(sizes.sum()), 512)], [offsets]

        def function(scores, values):
            return segment_attention_pool(scores, values, offsets, backend=side)[0]

    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    run(benchmark, bandwidth, function, inputs, constants, rounds=4)
