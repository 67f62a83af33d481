"""Time and memory of attention over graphs, forward and backward: ``pytest benchmarks/test_kernels.py``.

The floor of an op reads every input and writes every output once, and for backward reads values and gradients of the
outputs and writes gradients of the inputs once. Caches can beat the floor of a small problem.
"""

from __future__ import annotations

import pytest
import torch
from kernel_steps import fused, random_inputs, run

from mil_zoo.kernels import CSR, graph_attention, graph_dot_attention

HEADS, WIDTH = 4, 64


def window_graph(side: int, device: torch.device) -> CSR:
    """5 x 5 windows on a square of ``side`` x ``side`` patches, row after row."""
    step, y, x = torch.arange(-2, 3), torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    row = (y[:, None, None] + step[None, :, None]).expand(-1, 5, 5).reshape(-1, 25)
    column = (x[:, None, None] + step[None, None, :]).expand(-1, 5, 5).reshape(-1, 25)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), inside.sum(1).cumsum(0)])
    graph = CSR(indptr.int(), (row * side + column)[inside].int(), side * side).to(device)
    graph.transposed  # noqa: B018  made once for a graph, not at each step
    return graph


def pyg_attention(graph: CSR):
    """The sparse part of PyTorch Geometric's layer: what follows its linear maps."""
    gat = pytest.importorskip("torch_geometric.nn").GATConv(1, WIDTH, HEADS, add_self_loops=False, bias=False)
    edges = torch.stack([graph.indices.long(), graph.destinations])

    def function(feat, src_score, dst_score):
        alpha = gat.edge_updater(edges, alpha=(src_score, dst_score), edge_attr=None, size=None)
        return gat.propagate(edges, x=(feat, feat), alpha=alpha, size=None)

    return function


@pytest.mark.parametrize(
    "case", ["fused", "fused, dropout", "fused, bfloat16", "dgl", "dgl, dropout", "pyg", "reference"]
)
@pytest.mark.parametrize("grid", [32, 100, 316, 1000])
def test_graph_attention(benchmark, measure, device, tiny, grid, case):
    others = case.startswith(("dgl", "pyg", "reference"))
    if case.startswith("dgl") and device.type == "cuda":
        pytest.skip("DGL's wheels hold no CUDA code")
    if (others and device.type == "cpu" and grid > 100) or (device.type == "cpu" and grid > 316 and case != "fused"):
        pytest.skip("takes minutes and many GB on a CPU")
    if others and grid > 316:
        pytest.skip("tensors of all edges and features: 25 GB each")
    grid = 8 if tiny else grid
    size, graph = grid * grid, window_graph(grid, device)
    benchmark.group = f"graph_attention, N = {size}, window:2, {HEADS} x {WIDTH}"
    name = fused("graph_attention", device) if case.startswith("fused") else case.partition(",")[0]
    if name == "pyg":
        function = pyg_attention(graph)
    else:
        p = 0.15 if "dropout" in case else 0.0

        def function(*x):
            return graph_attention(*x, graph, dropout_p=p, seed=1, backend=name)

    dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
    inputs = random_inputs(device, dtype, (size, HEADS, WIDTH), (size, HEADS), (size, HEADS))
    side = name + case[len(case.partition(",")[0]) :]
    few = size > 50_000 or name in ("pyg", "reference")
    run(measure, side, function, inputs, [graph.indptr, graph.indices], size, baseline=others, rounds=2 if few else 10)


@pytest.mark.parametrize("case", ["fused", "dgl", "reference"])
def test_graph_dot_attention(benchmark, measure, device, tiny, case):
    if case == "dgl" and device.type == "cuda":
        pytest.skip("DGL's wheels hold no CUDA code")
    grid = 8 if tiny else 100
    size, graph = grid * grid, window_graph(grid, device)
    benchmark.group = f"graph_dot_attention, N = {size}, window:2, {HEADS} x {WIDTH}"
    name = fused("graph_dot_attention", device) if case == "fused" else case
    inputs = random_inputs(device, torch.float32, *[(size, HEADS, WIDTH)] * 3)

    def function(*x):
        return graph_dot_attention(*x, graph, backend=name)

    run(measure, name, function, inputs, [graph.indptr, graph.indices], size, baseline=case != "fused", rounds=4)
