"""Time to build patch graphs, self-loops and symmetrisation included: ``pytest benchmarks/test_graphs.py``.

``extra_info`` holds N, E and the memory floor: the bytes of reading the coordinates once and writing the CSR once.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil_zoo._dgl import DGLGraph, dgl
from mil_zoo.graph import build

STEP = 256


def tissue(num_patches: int) -> torch.Tensor:
    """int64 ``[num_patches, 2]``: a square of the patch grid in random order."""
    side = int(np.ceil(num_patches**0.5))
    y, x = np.divmod(np.arange(num_patches), side)
    return torch.from_numpy(np.random.default_rng(0).permutation(np.stack([x, y], axis=1) * STEP))


def note(benchmark, coords: torch.Tensor, graph: DGLGraph) -> None:
    nodes, edges = graph.num_nodes(), graph.num_edges()
    floor = coords.nbytes + 4 * (nodes + 1 + edges)
    benchmark.extra_info.update(num_nodes=nodes, num_edges=edges, memory_floor_bytes=floor)


@pytest.mark.parametrize("side", ["mil_zoo", "dgl"])
@pytest.mark.benchmark(group="window:2, 10 000 patches")
def test_window_against_dgl(benchmark, side):
    coords = tissue(10_000)
    if side == "mil_zoo":
        graph = benchmark(build, coords, "window:2", STEP)
    else:  # DGL's radius graph is symmetric; its self-loops are wanted too. Its N x N matrix takes float.
        graph = benchmark.pedantic(
            dgl.radius_graph, (coords.float(), 2.84 * STEP), {"self_loop": True}, rounds=3, warmup_rounds=1
        )
    assert graph.num_edges() == 10_000 + 2 * (2 * 99 * 100 + 2 * 98 * 100 + 2 * 99**2 + 2 * 98**2 + 4 * 99 * 98)
    note(benchmark, coords, graph)


@pytest.mark.benchmark(group="window:2, 1 000 000 patches")
def test_window_of_a_million_patches(benchmark):
    coords = tissue(1_000_000)
    graph = benchmark.pedantic(build, (coords, "window:2", STEP), rounds=3, warmup_rounds=1)
    note(benchmark, coords, graph)


@pytest.mark.benchmark(group="knn:8, 100 000 patches")
def test_knn_of_a_hundred_thousand_patches(benchmark):
    coords = tissue(100_000)
    graph = benchmark.pedantic(build, (coords, "knn:8"), rounds=3, warmup_rounds=1)
    note(benchmark, coords, graph)
