"""Time and memory of the ops, forward and backward, beside their floors and the best public forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu import plain
from gpu.common import Check, measure, random_inputs, window_graph
from mil_zoo.kernels import (
    dense_attention,
    dropout_linear,
    graph_attention,
    graph_dot_attention,
    graph_softmax_sum,
    graph_sum,
    linear,
    residual_norm_prelu,
    seeded_dropout,
    segment_attention_pool,
    segment_reduce,
    selective_scan,
)

FP32, BF16 = torch.float32, torch.bfloat16


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def _bytes(function: Callable[..., Tensor], inputs: list[Tensor], *constants: Tensor) -> int:
    """Read inputs and write outputs once; for backward read the gradient, write those of the inputs."""
    with torch.no_grad():
        out = function(*inputs)
    return 2 * sum(x.nbytes for x in [*inputs, out]) + sum(x.nbytes for x in constants)


def run(check: Check) -> None:
    """The ops, forward and backward."""
    for what, function in cases(check):
        check.attempt(what, function)


def cases(check: Check) -> list[tuple[str, Callable[[], None]]]:
    todo: list[tuple[str, Callable[[], None]]] = []
    for n in (100,) if check.small else (10_000, 1_000_000):
        for case in ("triton", "triton, dropout", "triton, bfloat16", "pyg", "reference"):
            if n > 10_000 and case in ("pyg", "reference"):
                continue  # tensors of all edges: 25 GB each
            todo.append((f"graph_attention N={n}", partial(_graph_attention, check, n, case)))
    for case in ("triton", "reference"):
        todo.append(("graph_dot_attention", partial(_graph_dot_attention, check, case)))
    for case in ("triton", "triton, bfloat16", "padded"):
        todo.append(("segment_attention_pool", partial(_pool, check, case)))
    for case in ("triton", "torch"):
        todo.append(("dropout_linear", partial(_dropout_linear, check, case)))
        todo.append(("seeded_dropout", partial(_seeded_dropout, check, case)))
        todo.append(("residual_norm_prelu", partial(_residual_norm_prelu, check, case)))
        for width, columns in ((1024, 512), (512, 256)):
            todo.append(("linear", partial(_linear, check, case, width, columns)))
    for queries, keys in ((10_240, 256), (256, 10_240), (4096, 4096)):
        for case in ("mil_zoo", "torch"):
            todo.append(("dense_attention", partial(_dense_attention, check, case, queries, keys)))
    for reduce in ("sum", "max", "logsumexp"):
        for case in ("triton", "reference"):
            todo.append((f"segment_reduce {reduce}", partial(_segment_reduce, check, reduce, case)))
    for case in ("triton", "triton, bfloat16", "doubling"):
        todo.append(("selective_scan", partial(_selective_scan, check, case)))
    for case in ("triton", "sparse"):
        todo.append(("graph_sum", partial(_graph_sum, check, case)))
    for case in ("triton", "reference"):
        todo.append(("graph_softmax_sum", partial(_graph_softmax_sum, check, case)))
    return todo


def _graph_attention(check: Check, n: int, case: str) -> None:
    device, graph = check.device, window_graph(n, check.device)
    graph.transposed  # noqa: B018  made once for a graph, not at each step
    p, dtype = 0.15 if "dropout" in case else 0.0, BF16 if "bfloat16" in case else FP32
    function = _pyg(graph, device) if case == "pyg" else partial(_attend, graph, p, case.partition(",")[0])
    inputs = random_inputs(device, dtype, (n, 4, 64), (n, 4), (n, 4))
    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices)
    measure(check, f"graph_attention, N = {n}, window:2, 4 x 64", case, with_gradients(function, inputs), bytes_)
    if case == "triton":
        with torch.no_grad():
            forward = sum(x.nbytes for x in [*inputs, inputs[0], graph.indptr, graph.indices])
            measure(check, f"graph_attention forward, N = {n}", case, lambda: function(*inputs), forward)


def _attend(graph, p: float, backend: str, *inputs: Tensor) -> Tensor:
    return graph_attention(*inputs, graph, dropout_p=p, seed=1, backend=backend)


def _pyg(graph, device: torch.device) -> Callable[..., Tensor]:
    from torch_geometric.nn import GATConv

    gat = GATConv(1, 64, 4, add_self_loops=False, bias=False).to(device)
    edges = torch.stack([graph.indices.long(), graph.destinations])

    def function(feat: Tensor, src_score: Tensor, dst_score: Tensor) -> Tensor:
        alpha = gat.edge_updater(edges, alpha=(src_score, dst_score), edge_attr=None, size=None)
        return gat.propagate(edges, x=(feat, feat), alpha=alpha, size=None)

    return function


def _graph_dot_attention(check: Check, case: str) -> None:
    n = 100 if check.small else 10_000
    graph = window_graph(n, check.device)
    graph.transposed  # noqa: B018
    inputs = random_inputs(check.device, FP32, *[(n, 4, 64)] * 3)

    def function(*x: Tensor) -> Tensor:
        return graph_dot_attention(*x, graph, backend=case)

    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices)
    measure(check, f"graph_dot_attention, N = {n}, window:2, 4 x 64", case, with_gradients(function, inputs), bytes_)


def _bags(check: Check) -> Tensor:
    """64 sizes, 100 to 30 000 instances, evenly on a logarithmic scale."""
    ends = (10, 20) if check.small else (100, 30_000)
    return torch.from_numpy(np.geomspace(*ends, 64).astype(np.int64))


def _pool(check: Check, case: str) -> None:
    sizes, width, device = _bags(check), 512, check.device
    size, longest = int(sizes.sum()), int(sizes.max())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(device)
    packed = 2 * 4 * (size * (1 + width) + 64 * width) + offsets.nbytes
    if case == "padded":
        mask = (torch.arange(longest) < sizes[:, None])[:, :, None].to(device)
        inputs = random_inputs(device, FP32, (64, longest, 1), (64, longest, width))

        def function(scores: Tensor, values: Tensor) -> Tensor:
            return torch.bmm(values.transpose(1, 2), scores.masked_fill(~mask, -torch.inf).softmax(1))
    else:
        dtype = BF16 if "bfloat16" in case else FP32
        inputs = random_inputs(device, dtype, (size, 1), (size, width))
        packed = packed // (2 if dtype == BF16 else 1)

        def function(scores: Tensor, values: Tensor) -> Tensor:
            return segment_attention_pool(scores, values, offsets, backend="triton")[0]

    what = f"segment_attention_pool, 64 bags, {size} instances, 512 features"
    measure(check, what, case, with_gradients(function, inputs), packed)


def _segment_reduce(check: Check, reduce: str, case: str) -> None:
    sizes = _bags(check)[::4]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(check.device)
    inputs = random_inputs(check.device, FP32, (int(sizes.sum()), 512))

    def function(values: Tensor) -> Tensor:
        return segment_reduce(values, offsets, reduce, backend=case)

    what = f"segment_reduce {reduce}, 16 bags, {int(sizes.sum())} instances, 512 features"
    measure(check, what, case, with_gradients(function, inputs), _bytes(function, inputs, offsets))


def _selective_scan(check: Check, case: str) -> None:
    """MambaMIL's recurrence on one bag: gate, direct path, bias and softplus."""
    n, channels, states = (20, 32, 16) if check.quick else (200 if check.small else 10_000, 512, 16)
    dtype = BF16 if "bfloat16" in case else FP32
    shapes = [(n, channels)] * 2 + [(channels, states)] + [(n, states)] * 2 + [(channels,), (n, channels), (channels,)]
    u, delta, A, *rest = random_inputs(check.device, dtype, *shapes)
    inputs = [u, delta, (-A.detach().abs() - 0.1).requires_grad_(), *rest]

    def function(*x: Tensor) -> Tensor:
        return plain.scan_by_doubling(*x) if case == "doubling" else selective_scan(*x, softplus=True, backend="triton")

    bytes_ = _bytes(function, inputs)
    what = f"selective_scan, {n} instances, {channels} channels, {states} states"
    measure(check, what, case, with_gradients(function, inputs), bytes_)


def _graph_sum(check: Check, case: str) -> None:
    n, width = 100 if check.small else 100_000, 256
    graph = window_graph(n, check.device)
    graph.transposed  # noqa: B018
    inputs = random_inputs(check.device, FP32, (n, width))
    ones = torch.ones(graph.num_edges, device=check.device)
    matrix = torch.sparse_csr_tensor(graph.indptr, graph.indices, ones, (n, n))

    def function(x: Tensor) -> Tensor:
        return matrix @ x if case == "sparse" else graph_sum(x, graph, backend="triton")

    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices, graph.indptr, graph.indices)
    measure(check, f"graph_sum, N = {n}, window:2, {width}", case, with_gradients(function, inputs), bytes_)


def _graph_softmax_sum(check: Check, case: str) -> None:
    n, width = 100 if check.small else 10_000, 256
    graph = window_graph(n, check.device)
    graph.transposed  # noqa: B018
    inputs = random_inputs(check.device, FP32, (n, width), (1,))

    def function(x: Tensor, t: Tensor) -> Tensor:
        return graph_softmax_sum(x, t, graph, backend=case)

    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices, graph.indptr, graph.indices)
    measure(check, f"graph_softmax_sum, N = {n}, window:2, {width}", case, with_gradients(function, inputs), bytes_)


def _dropout_linear(check: Check, case: str) -> None:
    """SRMIL's first layer: three copies of the rows, two thirds of two of them the token."""
    n = 100 if check.small else 10_000
    index = torch.arange(n).repeat(3)
    index[: 2 * n][torch.rand(2 * n) < 0.7] = -1
    index = index.to(check.device)
    x, weight, token = random_inputs(check.device, FP32, (n, check.dim), (520, check.dim), (check.dim,))
    drop = nn.Dropout(0.11)

    def function(x: Tensor, weight: Tensor, token: Tensor) -> Tensor:
        if case == "torch":
            rows = torch.where((index < 0)[:, None], token, x.index_select(0, index.clamp(min=0)))
            return drop(rows) @ weight.T
        return dropout_linear(x, weight, index=index, token=token, dropout_p=0.11, seed=1, backend="triton")[0]

    operations = 3 * 2 * 3 * n * check.dim * 520
    step = with_gradients(function, [x, weight, token])
    measure(check, f"dropout_linear, 3 x {n} rows, 1024 to 520", case, step, operations=operations)


def _linear(check: Check, case: str, width: int, columns: int) -> None:
    """In float32; forward alone too, for backward has one product of which both take PyTorch's."""
    n = 100 if check.small else 10_000
    inputs = random_inputs(check.device, FP32, (n, width), (columns, width), (columns,))
    function = F.linear if case == "torch" else partial(linear, backend="triton")
    what, operations = f"linear, {n} x {width} to {columns}", 2 * n * width * columns
    measure(check, what, case, with_gradients(function, inputs), operations=3 * operations)
    with torch.no_grad():
        measure(check, f"{what}, forward", case, lambda: function(*inputs), operations=operations)


def _dense_attention(check: Check, case: str, queries: int, keys: int) -> None:
    if check.small:
        queries, keys = min(queries, 64), min(keys, 64)
    inputs = random_inputs(check.device, FP32, *[(8, n, 64) for n in (queries, keys, keys)])
    function = partial(dense_attention, backend="auto" if case == "mil_zoo" else "reference")
    operations = 6 * 2 * 8 * queries * keys * 64
    what = f"dense_attention, 8 heads, {queries} queries, {keys} keys"
    measure(check, what, case, with_gradients(function, inputs), operations=operations)


def _seeded_dropout(check: Check, case: str) -> None:
    n = 100 if check.small else 100_000
    (x,) = random_inputs(check.device, FP32, (n, 512))
    drop = nn.Dropout(0.25)

    def function(x: Tensor) -> Tensor:
        return drop(x) if case == "torch" else seeded_dropout(x, 0.25, seed=1, backend="triton")

    measure(check, f"seeded_dropout, {n} x 512", case, with_gradients(function, [x]), 4 * x.nbytes)


def _residual_norm_prelu(check: Check, case: str) -> None:
    n = 100 if check.small else 100_000
    shapes = [(n, 256), (n, 256), (256,), (256,), (256,), (1,)]
    inputs = random_inputs(check.device, FP32, *shapes)

    def function(x: Tensor, residual: Tensor, *vectors: Tensor) -> Tensor:
        backend = "reference" if case == "torch" else "triton"
        return residual_norm_prelu(x, residual, *vectors, backend=backend)

    step = with_gradients(function, inputs)
    measure(check, f"residual_norm_prelu, {n} x 256", case, step, 7 * inputs[0].nbytes)
