"""Wrong arguments are refused with one sentence, and a call runs on the backend that was asked for."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import needs_dgl

from mil_zoo import InputError
from mil_zoo.kernels import (
    CSR,
    GlobalKey,
    available_backends,
    graph_attention,
    graph_dot_attention,
    segment_attention_pool,
    segment_reduce,
)
from mil_zoo.kernels import backends as backends_module

BACKENDS = ["reference", pytest.param("dgl", marks=needs_dgl), "numba", "triton"]


def device_of(backend):
    """Where a backend is tested: Triton on the GPU where there is one, else under its interpreter."""
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


def csr(indptr, indices, num_src, backend):
    return CSR(indptr.to(device_of(backend)), indices.to(device_of(backend)), num_src)


def implementations_of(op):
    # The package's attribute of this name is the function, so the module is taken from sys.modules.
    return sys.modules[f"mil_zoo.kernels.ops.{op}"].IMPLEMENTATIONS


@pytest.fixture
def graph():
    return CSR.from_edges(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 2]), 3)


def arguments(n=3, heads=2, width=4, **kwargs):
    return torch.zeros(n, heads, width, **kwargs), torch.zeros(n, heads, **kwargs), torch.zeros(n, heads, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, s, d: (f.long(), s, d), "feat must be floating point"),
        (lambda f, s, d: (f[0], s, d), "feat must have shape"),
        (lambda f, s, d: (f, s[:2], d), r"src_score must have shape \[3, 2\], not \[2, 2\]"),
        (lambda f, s, d: (f, s, d[:, :1]), "dst_score must have shape"),
        (lambda f, s, d: (f, s.double(), d), "src_score is torch.float64"),
        (lambda f, s, d: (f.to("meta"), s, d), "on cpu, the first argument torch.float32 on meta"),
        (lambda f, s, d: (f[:2], s[:2], d), "the graph has 3 sources"),
    ],
)
def test_graph_attention_refuses_wrong_tensors(graph, change, message):
    with pytest.raises(InputError, match=message):
        graph_attention(*change(*arguments()), graph)


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2]), "must be int32"),
        (torch.tensor([0, 2, 1, 3]).int(), torch.tensor([0, 1, 2]).int(), "must rise"),
        (torch.tensor([0, 1, 2, 4]).int(), torch.tensor([0, 1, 2]).int(), "must rise"),
        (torch.tensor([0, 1, 2, 3]).int(), torch.tensor([0, 1, 3]).int(), r"must lie in 0..2, not 0..3"),
        (torch.tensor([0, 1, 2, 3]).int(), torch.tensor([0, -1, 2]).int(), r"must lie in 0..2"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_malformed_graph_is_an_error_and_no_crash(indptr, indices, message, backend):
    with pytest.raises(InputError, match=message):
        graph_attention(*arguments(device=device_of(backend)), csr(indptr, indices, 3, backend), backend=backend)
    if backend in implementations_of("graph_dot_attention"):
        q = arguments(device=device_of(backend))[0]
        with pytest.raises(InputError, match=message):
            graph_dot_attention(q, q, q, csr(indptr, indices, 3, backend), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_on_several_devices_or_of_several_dtypes_are_an_error(backend):
    device = device_of(backend)
    graph = csr(torch.tensor([0, 1, 2, 3]).int(), torch.tensor([0, 1, 2]).int(), 3, backend)
    feat, src, dst = arguments(device=device)
    offsets = torch.tensor([0, 3], device=device)
    for call, message in [
        (lambda: graph_attention(feat, src.to("meta"), dst, graph, backend=backend), "src_score is .* on meta"),
        (lambda: graph_attention(*arguments(device="meta"), graph, backend=backend), "the graph is on .* on meta"),
        (lambda: graph_attention(feat, src, dst.half(), graph, backend=backend), "dst_score is torch.float16"),
        (lambda: graph_attention(feat.int(), src, dst, graph, backend=backend), "feat must be floating point"),
        (lambda: segment_attention_pool(src, feat.to("meta"), offsets, backend=backend), "values is .* on meta"),
        (lambda: segment_attention_pool(src, feat, offsets.to("meta"), backend=backend), "offsets are on meta"),
        (lambda: segment_attention_pool(src, feat, offsets.float(), backend=backend), "offsets must be integer"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_sources_get_zeros_and_empty_bags_are_an_error(backend):
    device = device_of(backend)
    graph = csr(torch.tensor([0, 0, 2, 2]).int(), torch.tensor([0, 0]).int(), 3, backend)  # a repeated edge
    feat, src, dst = (x.requires_grad_() for x in arguments(device=device))
    out = graph_attention(feat + 1, src, dst, graph, backend=backend)
    out.sum().backward()
    assert out[[0, 2]].eq(0).all()
    assert out[1].eq(1).all()
    assert feat.grad[:, 0, 0].tolist() == [1, 0, 0]
    if backend in implementations_of("graph_dot_attention"):
        assert graph_dot_attention(feat, feat, feat + 1, graph, backend=backend)[:, 0, 0].tolist() == [0, 1, 0]
        if backend != "dgl":  # which takes no empty tensor
            none = feat.new_zeros(3, 2, 0)  # of no columns every logit is 0
            assert graph_dot_attention(none, none, feat + 1, graph, backend=backend)[:, 0, 0].tolist() == [0, 1, 0]
    for op in (segment_attention_pool, segment_reduce):
        if backend in implementations_of(op.__name__):
            values = (src, feat) if op is segment_attention_pool else (src,)
            with pytest.raises(InputError, match="bag 1 is empty"):
                op(*values, torch.tensor([0, 2, 2, 3], device=device), *["sum"] * (len(values) == 1), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unsorted_rows_and_strided_tensors_are_fine(backend):
    sorted_graph = CSR(torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 1, 2], dtype=torch.int32), 3)
    unsorted = CSR(torch.tensor([0, 3], dtype=torch.int32), torch.tensor([2, 0, 1], dtype=torch.int32), 3)
    table = torch.tensor([[0, 2, 0], [3, 0, 0], [9, 1, 0]], dtype=torch.int32)
    feat = torch.randn(4, 2, 3).permute(2, 1, 0)
    score = torch.randn(2, 3).T
    device = device_of(backend)
    inputs = feat.to(device), score.to(device), torch.zeros(1, 2, device=device)
    one, other = (graph_attention(*inputs, g.to(device), backend=backend).cpu() for g in (sorted_graph, unsorted))
    torch.testing.assert_close(one, other)
    columns = table.to(device)
    strided = CSR(columns[:2, 0], columns[:, 1], 3)
    torch.testing.assert_close(one, graph_attention(*inputs, strided, backend=backend).cpu())
    torch.testing.assert_close(
        one, graph_attention(feat.contiguous(), score.contiguous(), torch.zeros(1, 2), sorted_graph)
    )


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_rates_outside_their_range_are_refused(graph, p):
    with pytest.raises(InputError, match="dropout_p"):
        graph_attention(*arguments(), graph, dropout_p=p)


def test_the_global_key_is_checked(graph):
    key = GlobalKey(torch.zeros(1, 2, 4), torch.zeros(1, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match=r"global_key.bag must be \[3\]"):
        graph_attention(*arguments(), graph, global_key=key)
    for bag in (torch.zeros(3), torch.zeros(3, dtype=torch.long, device="meta")):
        with pytest.raises(InputError, match=r"global_key\.bag must be integer on cpu"):
            graph_attention(*arguments(), graph, global_key=GlobalKey(key.feat, key.score, bag))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 0, 5], "bag 0 is empty"),
        ([0, 3, 3, 5], "bag 1 is empty"),
        ([0, 4], "from 0 to 5"),
        ([1, 5], "from 0 to 5"),
        ([0], "integer"),
    ],
)
def test_empty_bags_and_wrong_offsets_are_refused(offsets, message):
    with pytest.raises(InputError, match=message):
        segment_attention_pool(torch.zeros(5, 1), torch.zeros(5, 2), torch.tensor(offsets))
    with pytest.raises(InputError, match=message):
        segment_reduce(torch.zeros(5, 2), torch.tensor(offsets), "sum")


def test_other_ops_check_their_arguments(graph):
    with pytest.raises(InputError, match="values must have shape"):
        segment_attention_pool(torch.zeros(5, 2), torch.zeros(5, 3, 4), torch.tensor([0, 5]))
    with pytest.raises(InputError, match="reduce must be"):
        segment_reduce(torch.zeros(5, 2), torch.tensor([0, 5]), "median")
    with pytest.raises(InputError, match="return_argmax needs"):
        segment_reduce(torch.zeros(5, 2), torch.tensor([0, 5]), "sum", return_argmax=True)
    q = torch.zeros(3, 2, 4)
    with pytest.raises(InputError, match="k must have shape"):
        graph_dot_attention(q, torch.zeros(3, 2, 5), q, graph)
    with pytest.raises(InputError, match="bias must have shape"):
        graph_dot_attention(q, q, q, graph, bias=torch.zeros(1, 2))


@needs_dgl
def test_a_call_runs_on_the_backend_it_asks_for(graph, monkeypatch):
    implementations = implementations_of("graph_attention")
    ran = []
    for name, function in list(implementations.items()):
        monkeypatch.setitem(implementations, name, lambda *a, n=name, f=function, **o: (ran.append(n), f(*a, **o))[1])
    graph_attention(*arguments(), graph, backend="reference")
    graph_attention(*arguments(), graph, backend="dgl")
    graph_attention(*arguments(), graph, backend="numba")
    graph_attention(*arguments(), graph)
    assert ran == ["reference", "dgl", "numba", "numba"]


def test_an_explicit_backend_never_falls_back(graph, monkeypatch):
    with pytest.raises(InputError, match="did you mean 'dgl'"):
        graph_attention(*arguments(), graph, backend="dgll")
    with pytest.raises(InputError, match="segment_reduce has no 'dgl' backend"):
        segment_reduce(torch.zeros(5, 2), torch.tensor([0, 5]), "sum", backend="dgl")
    monkeypatch.setitem(backends_module._CHECKS, "dgl", lambda: "it is away")
    backends_module._reason.cache_clear()
    try:
        assert "dgl" not in available_backends()
        with pytest.raises(InputError, match="'dgl' cannot run here: it is away"):
            graph_attention(*arguments(), graph, backend="dgl")
        graph_attention(*arguments(), graph)  # "auto" may choose another
    finally:
        backends_module._reason.cache_clear()


def test_triton_takes_cpu_tensors_under_its_interpreter_only():
    script = """if True:
        import torch
        from mil_zoo import InputError
        from mil_zoo.kernels import backend_status, segment_reduce
        assert "torch sees no CUDA device" in backend_status()["triton"] or torch.cuda.is_available()
        segment_reduce(torch.zeros(3, 2), torch.tensor([0, 3]), "sum")
        try:
            segment_reduce(torch.zeros(3, 2), torch.tensor([0, 3]), "sum", backend="triton")
        except InputError as error:
            print(error)
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert "CUDA" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_csr_from_edges_transposed_and_concat():
    graph = CSR.from_edges(torch.tensor([2, 0, 1, 2]), torch.tensor([1, 1, 0, 0]), 3, 2)
    assert graph.indptr.tolist() == [0, 2, 4]
    assert graph.indices.tolist() == [1, 2, 0, 2]
    assert graph.destinations.tolist() == [0, 0, 1, 1]
    back = graph.transposed
    assert back.indptr.tolist() == [0, 1, 2, 4]
    assert back.indices.tolist() == [1, 0, 0, 1]
    assert graph.indices[back.edge.long()].tolist() == [0, 1, 2, 2]
    both = CSR.concat([graph, graph])
    assert both.indptr.tolist() == [0, 2, 4, 6, 8]
    assert both.indices.tolist() == [1, 2, 0, 2, 4, 5, 3, 5]
    assert (both.num_src, both.num_dst, both.num_edges) == (6, 4, 8)
    alone = CSR(both.indptr, both.indices, 6).transposed
    assert all(getattr(both.transposed, name).equal(getattr(alone, name)) for name in ("indptr", "indices", "edge"))
