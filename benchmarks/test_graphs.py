"""Time and memory to build patch graphs, self-loops and symmetrisation included: ``pytest benchmarks/test_graphs.py``.

The floor reads the coordinates once and writes the CSR once.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil_zoo.graph import build_csr

STEP = 256


def tissue(num_patches: int) -> torch.Tensor:
    """int64 ``[num_patches, 2]``: a square of the patch grid in random order."""
    side = int(np.ceil(num_patches**0.5))
    y, x = np.divmod(np.arange(num_patches), side)
    return torch.from_numpy(np.random.default_rng(0).permutation(np.stack([x, y], axis=1) * STEP))


def run(measure, function, side: str, coords: torch.Tensor, **options) -> None:
    graph = function()
    edges = graph.num_edges  # a method of a DGLGraph
    floor = coords.nbytes + 4 * (len(coords) + 1 + (edges() if callable(edges) else edges))
    measure(function, side, floor_bytes=floor, size=len(coords), **options)


@pytest.mark.parametrize("side", ["mil_zoo", "dgl"])
@pytest.mark.parametrize("num_patches", [1_000, 10_000, 100_000, 1_000_000])
def test_window(benchmark, measure, tiny, num_patches, side):
    if side == "dgl" and num_patches > 10_000:
        pytest.skip("an N x N matrix: 40 GB and more")
    coords = tissue(100 if tiny else num_patches)
    benchmark.group = f"window:2, N = {len(coords)}"
    if side == "mil_zoo":
        run(measure, lambda: build_csr(coords, "window:2", STEP), side, coords, rounds=3)
    else:  # DGL's radius graph is symmetric; its self-loops are wanted too. Its N x N matrix takes float.
        dgl = pytest.importorskip("mil_zoo._dgl").dgl
        points = coords.float()
        run(
            measure, lambda: dgl.radius_graph(points, 2.84 * STEP, self_loop=True), side, coords, baseline=True,
            rounds=3,
        )  # fmt: skip


@pytest.mark.parametrize("num_patches", [10_000, 100_000])
def test_knn(benchmark, measure, tiny, num_patches):
    coords = tissue(100 if tiny else num_patches)
    benchmark.group = f"knn:8, N = {len(coords)}"
    run(measure, lambda: build_csr(coords, "knn:8"), "mil_zoo", coords, rounds=3)
