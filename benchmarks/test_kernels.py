"""Time and memory of ops over graphs and sequences, forward and backward: ``pytest benchmarks/test_kernels.py``.

The floor of an op reads every input and writes every output once, and for backward reads values and gradients of the
outputs and writes gradients of the inputs once. Caches can beat the floor of a small problem.
"""

from __future__ import annotations

import pytest
import torch
from gpu.common import window_graph
from gpu.plain import scan_by_doubling
from kernel_steps import fused, random_inputs, run

from mil_zoo.kernels import CSR, graph_attention, graph_dot_attention, graph_softmax_sum, graph_sum, selective_scan

HEADS, WIDTH = 4, 64


def windows(grid: int, device: torch.device) -> CSR:
    """5 x 5 windows on a square of ``grid`` x ``grid`` patches, with its transposed graph."""
    graph = window_graph(grid * grid, device)
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
    size, graph = grid * grid, windows(grid, device)
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
    size, graph = grid * grid, windows(grid, device)
    benchmark.group = f"graph_dot_attention, N = {size}, window:2, {HEADS} x {WIDTH}"
    name = fused("graph_dot_attention", device) if case == "fused" else case
    inputs = random_inputs(device, torch.float32, *[(size, HEADS, WIDTH)] * 3)

    def function(*x):
        return graph_dot_attention(*x, graph, backend=name)

    run(measure, name, function, inputs, [graph.indptr, graph.indices], size, baseline=case != "fused", rounds=4)


@pytest.mark.parametrize("case", ["fused", "torch.sparse", "reference"])
@pytest.mark.parametrize("grid", [100, 316])
def test_graph_sum(benchmark, measure, device, tiny, grid, case):
    """The product that smoothing over a graph repeats; with gradients of the features."""
    grid, width = 8 if tiny else grid, 256
    size, graph = grid * grid, windows(grid, device)
    benchmark.group = f"graph_sum, N = {size}, window:2, {width}"
    name = fused("graph_sum", device) if case == "fused" else case
    ones = torch.ones(graph.num_edges, device=device)
    matrix = torch.sparse_csr_tensor(graph.indptr, graph.indices, ones, (size, size))
    inputs = random_inputs(device, torch.float32, (size, width))

    def function(x):
        return matrix @ x if case == "torch.sparse" else graph_sum(x, graph, backend=name)

    run(measure, name, function, inputs, [graph.indptr, graph.indices], size, baseline=case != "fused", rounds=4)


@pytest.mark.parametrize("case", ["fused", "pyg", "reference"])
def test_graph_softmax_sum(benchmark, measure, device, tiny, case):
    """PatchGCN's aggregation, a softmax over neighbours in each feature, beside PyTorch Geometric's."""
    grid, width = 8 if tiny else 100, 256
    size, graph = grid * grid, windows(grid, device)
    benchmark.group = f"graph_softmax_sum, N = {size}, window:2, {width}"
    name = fused("graph_softmax_sum", device) if case == "fused" else case
    inputs = random_inputs(device, torch.float32, (size, width), (1,))
    if case == "pyg":
        softmax = pytest.importorskip("torch_geometric.nn.aggr").SoftmaxAggregation(learn=True)
        inputs[1], sources = softmax.t, graph.indices.long()

    def function(x, t):
        if case == "pyg":
            return softmax(x[sources], graph.destinations, dim_size=size)
        return graph_softmax_sum(x, t, graph, backend=name)

    run(measure, name, function, inputs, [graph.indptr, graph.indices], size, baseline=case != "fused", rounds=3)


@pytest.mark.parametrize("case", ["fused", "fused, bfloat16", "doubling", "reference"])
@pytest.mark.parametrize("size", [1_000, 10_000, 100_000])
def test_selective_scan(benchmark, measure, device, tiny, size, case):
    """MambaMIL's recurrence on one bag, beside the loop over time and the fastest form in plain PyTorch."""
    if case == "doubling" and device.type == "cpu" and size > 10_000:
        pytest.skip("takes a dozen tensors of 3 GB")
    if case == "reference" and size > 10_000:
        pytest.skip("takes minutes")
    size, channels, states = 20 if tiny else size, 512, 16
    benchmark.group = f"selective_scan, {size} instances, {channels} channels, {states} states"
    name = fused("selective_scan", device) if case.startswith("fused") else case
    dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
    shapes = [(size, channels)] * 2 + [(channels, states)] + [(size, states)] * 2
    shapes += [(channels,), (size, channels), (channels,)]
    u, delta, a, *rest = random_inputs(device, dtype, *shapes)
    inputs = [u, delta, (-a.detach().abs() - 0.1).requires_grad_(), *rest]

    def function(*x):
        return scan_by_doubling(*x) if case == "doubling" else selective_scan(*x, softplus=True, backend=name)

    side = name + case[len(case.partition(",")[0]) :]
    run(measure, side, function, inputs, [], size, baseline="fused" not in case, rounds=3)
