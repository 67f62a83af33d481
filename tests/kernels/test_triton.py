"""The Triton kernels against the float64 reference: on the GPU where there is one, else under Triton's interpreter."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import assert_close, draw, one_config, outputs_and_gradients, random_csr

from mil_zoo import InputError
from mil_zoo.kernels import (
    CSR,
    GlobalKey,
    backend_status,
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
)
from mil_zoo.kernels._triton import tools as triton_tools
from mil_zoo.kernels._triton.tools import Dropout, Kernel, kept_scale
from mil_zoo.kernels.dropout import dropout_scale

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
of_a_grid = pytest.mark.skipif(DEVICE.type == "cpu", reason="only a grid on a GPU has a limit, of 65 535 programs")
MANY = 1000 if DEVICE.type == "cuda" else 200  # the interpreter runs the programs of a grid one after the other
REDUCTIONS = ["sum", "mean", "max", "logsumexp"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory holds NaN before it is written: with deterministic mode torch.empty fills it."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def one_block_size(request):
    """Compiling every block size of every kernel takes minutes on a GPU: each test takes one, not all the same."""
    with one_config(len(request.node.name)):
        yield


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that ran, in order."""
    names, run = [], Kernel.run

    def recorded(self, grid, **values):
        names.append(self.tuner.base_fn.__name__)
        return run(self, grid, **values)

    monkeypatch.setattr(Kernel, "run", recorded)
    return names


def on_device(tensors):
    return [tensor.detach().to(DEVICE).requires_grad_() for tensor in tensors]


def compare(function, make_inputs, dtype=torch.float32):
    """Outputs and gradients of ``function(backend, *inputs)`` by Triton against the float64 reference."""
    expected = outputs_and_gradients(lambda *x: function("reference", *x), make_inputs(torch.float64))
    got = outputs_and_gradients(lambda *x: function("triton", *x), on_device(make_inputs(dtype)))
    assert_close([tensor.cpu() for tensor in got], expected, dtype)


def attend(graph, bag=None, **options):
    def function(backend, feat, src_score, dst_score, *key):
        key = GlobalKey(*key, bag.to(feat.device)) if key else None
        return graph_attention(
            feat, src_score, dst_score, graph.to(feat.device), global_key=key, backend=backend, **options
        )

    return function


def attention_inputs(n, heads, width, with_global, bags=2):
    shapes = [(n, heads, width), (n, heads), (n, heads)] + [(bags, heads, width), (bags, heads)] * with_global
    return lambda dtype: [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def test_it_is_triton_that_runs(launches):
    assert backend_status()["triton"] is None
    assert (DEVICE.type == "cpu") == triton_tools.INTERPRETED
    x = on_device(attention_inputs(5, 2, 3, False)(torch.float32))
    graph = random_csr(5, 5)
    attend(graph)("triton", *x).sum().backward()
    assert launches == ["forward", "backward_dst", "backward_src"]
    attend(graph)("reference", *x)
    assert len(launches) == 3
    attend(graph)("auto", *x)
    assert len(launches) == 3 + (DEVICE.type == "cuda")  # on a CPU "auto" is numba


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (63, 37), (2, 700, 64), (64,)])
def test_linear(shape, biased):
    def make_inputs(dtype):
        shapes = [shape, (19, shape[-1])] + [(19,)] * biased
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    compare(lambda backend, *x: [linear(*x, backend=backend)], make_inputs)


def test_linear_of_values_that_are_not_finite():
    x = torch.tensor([[1.0, math.inf], [-math.inf, 1.0], [math.nan, 0.0]], device=DEVICE)
    got, expected = (linear(x, torch.eye(2, device=DEVICE) + 1, backend=b) for b in ("triton", "reference"))
    assert torch.equal(got.nan_to_num(5.0), expected.nan_to_num(5.0))


@pytest.mark.parametrize(("n", "heads", "width"), [(1, 3, 5), (63, 1, 1), (MANY, 3, 5)])
@pytest.mark.parametrize(("with_global", "dropout_p"), [(False, 0.0), (True, 0.3)])
def test_graph_attention(n, heads, width, with_global, dropout_p):
    bag = torch.arange(n) // max(1, n // 2) % 2  # not sorted where n is odd
    options = {"dropout_p": dropout_p, "seed": 2**61 + 11, "return_attention": with_global}
    function = attend(random_csr(n, n), bag, **options)
    compare(lambda *x: as_list(function(*x)), attention_inputs(n, heads, width, with_global))


def as_list(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else outputs


@pytest.mark.parametrize("with_global", [False, True])
def test_rows_in_pieces(with_global, launches):
    n, degree = 150, 2 * triton_tools.LONG.value + 77
    others, hub = torch.arange(degree) % n, torch.ones(degree, dtype=torch.long)
    src = torch.cat([others, 3 * hub, torch.tensor([1, 1, 2])])
    dst = torch.cat([2 * hub, others, torch.tensor([0, 0, 0])])  # a hub on each side, repeats
    keep = dst != 7  # which is left without sources
    graph = CSR.from_edges(src[keep], dst[keep], n)
    function = attend(graph, torch.zeros(n, dtype=torch.long), dropout_p=0.2, seed=1, return_attention=with_global)
    compare(lambda *x: as_list(function(*x)), attention_inputs(n, 2, 3, with_global, bags=1))
    assert launches.count("forward") == launches.count("backward_dst") == launches.count("backward_src") == 2


@pytest.mark.parametrize(("n", "biased"), [(1, True), (63, False), (MANY, True)])
def test_graph_dot_attention(n, biased):
    graph = random_csr(n + 2, n)

    def inputs(dtype):
        shapes = [(n, 2, 6), (n + 2, 2, 6), (n + 2, 2, 3)] + [(graph.num_edges, 2)] * biased
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def function(backend, q, k, v, bias=None):
        return as_list(
            graph_dot_attention(
                q, k, v, graph.to(q.device), bias=bias, dropout_p=0.2 * biased, seed=5, return_attention=biased,
                backend=backend,
            )
        )  # fmt: skip

    compare(function, inputs)


def test_graph_dot_attention_of_rows_in_pieces():
    n, degree = 60, triton_tools.LONG.value + 5
    others, hub = torch.arange(degree) % n, torch.zeros(degree, dtype=torch.long)
    graph = CSR.from_edges(torch.cat([others, hub]), torch.cat([hub, others]), n)
    compare(
        lambda backend, *x: [graph_dot_attention(*x, graph.to(x[0].device), backend=backend)],
        lambda dtype: [draw(n, 1, width, seed=i, dtype=dtype) for i, width in enumerate((2, 2, 3))],
    )


@pytest.mark.parametrize("sizes", [(1,), (1, 62), (1000, 1, 3), (70_000, 2)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_segment_attention_pool(sizes, shared):
    n, offsets = sum(sizes), torch.tensor([0, *sizes]).cumsum(0)

    def function(backend, scores, values):
        return segment_attention_pool(
            scores, values, offsets.to(scores.device), dropout_p=0.25 * shared, seed=2, backend=backend
        )

    def inputs(dtype):
        return [draw(n, 3, seed=0, dtype=dtype), draw(*((n, 5) if shared else (n, 3, 5)), seed=1, dtype=dtype)]

    compare(function, inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "width"), [(1, 5), (63, 1), (MANY, 300), (2 * triton_tools.LONG.value + 77, 3)])
def test_graph_sum(n, width, weighted, launches):
    graph = random_csr(n + 2, n)  # of the last size the hub is in pieces

    def function(backend, x):
        weight = draw(graph.num_edges, seed=1).detach().to(x) if weighted else None
        return [graph_sum(x, graph.to(x.device), weight=weight, backend=backend)]

    compare(function, lambda dtype: [draw(n + 2, width, seed=0, dtype=dtype)])
    assert launches.count("_neighbour_sum") == 2 + (n > triton_tools.LONG.value)


@pytest.mark.parametrize(("n", "width"), [(1, 5), (63, 1), (MANY, 100), (2 * triton_tools.LONG.value + 77, 3)])
def test_graph_softmax_sum(n, width, launches):
    graph = random_csr(n + 2, n)  # of the last size the hub is in pieces

    def function(backend, x, t):
        return [graph_softmax_sum(x, t, graph.to(x.device), backend=backend)]

    compare(function, lambda dtype: [draw(n + 2, width, seed=0, dtype=dtype), draw(1, seed=1, dtype=dtype)])
    assert (launches.count("_forward"), launches.count("_backward")) == (1 + (n > triton_tools.LONG.value), 1)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segment_reduce(reduce):
    sizes = (1, 62, 70_000, 3)
    offsets = torch.tensor([0, *sizes]).cumsum(0)

    def function(backend, values):
        return [segment_reduce(values, offsets.to(values.device), reduce, backend=backend)]

    compare(function, lambda dtype: [draw(sum(sizes), 5, seed=0, dtype=dtype)])


def test_argmax_is_the_first_of_equal_instances():
    values = torch.tensor([[1.0, 5], [2, 5], [2, -torch.inf], [-torch.inf] * 2], device=DEVICE, requires_grad=True)
    offsets = torch.tensor([0, 3, 4], device=DEVICE)
    top, argmax = segment_reduce(values, offsets, "max", return_argmax=True, backend="triton")
    assert argmax.tolist() == [[1, 0], [3, 3]]
    top.sum().backward()
    assert values.grad.tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]


def test_logsumexp_of_infinities():
    inf = torch.inf
    rows = torch.tensor([[inf, -inf, 0], [1, -inf, -inf], [inf, -inf, 0]], device=DEVICE)
    values, offsets = rows.repeat(400, 1).requires_grad_(), torch.tensor([0, 1200], device=DEVICE)
    reduced = segment_reduce(values, offsets, "logsumexp", backend="triton")
    torch.testing.assert_close(reduced.cpu(), torch.tensor([[inf, -inf, torch.tensor(800.0).log()]]))
    reduced.sum().backward()
    assert values.grad[1].nan_to_num(nan=7).tolist() == [0, 7, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_stored_and_float32_computed(dtype):
    """Against float32 from the same rounded inputs: results are rounded, and backward starts from rounded outputs.

    Backward takes each row's product of output and gradient, here of 8 or 9 terms, so that 4 roundings bound the error.
    """
    n, offsets = 100, torch.tensor([0, 30, 100], device=DEVICE)
    graph, bag = random_csr(n, n).to(DEVICE), (torch.arange(n, device=DEVICE) > 40).long()
    attention = attention_inputs(n, 2, 8, True)

    def reduced(reduce, x):
        return [segment_reduce(x, offsets, reduce, backend="triton")]

    def one(dtype):
        return [draw(n, 9, seed=0, dtype=dtype)]

    cases = [
        (lambda *x: attend(graph, bag, dropout_p=0.2, seed=1, return_attention=True)("triton", *x), attention),
        (
            lambda *x: graph_dot_attention(*x, graph, return_attention=True, backend="triton"),
            lambda dtype: [draw(n, 2, 8, seed=i, dtype=dtype) for i in range(3)],
        ),
        (
            lambda *x: segment_attention_pool(*x, offsets, backend="triton"),
            lambda dtype: [draw(n, 2, seed=0, dtype=dtype), draw(n, 9, seed=1, dtype=dtype)],
        ),
        *((partial(reduced, reduce), one) for reduce in REDUCTIONS),
    ]
    step = torch.finfo(dtype).eps
    for function, make_inputs in cases:
        half = on_device(make_inputs(dtype))
        same = on_device(x.float() for x in half)
        outputs, expected = function(*half), function(*same)
        weights = [draw(*output.shape, seed=100 + i, dtype=dtype).to(DEVICE) for i, output in enumerate(outputs)]
        torch.autograd.backward(outputs, weights)
        torch.autograd.backward(expected, [weight.float() for weight in weights])
        for a, b in zip([*outputs, *(x.grad for x in half)], [*expected, *(x.grad for x in same)], strict=True):
            assert a.dtype == dtype
            assert (a.float() - b).abs().max() <= 4 * step * b.abs().max().clamp(min=1)


def test_the_same_elements_are_dropped_as_in_the_other_backends():
    n, graph = 64, random_csr(64, 64, degree=2)
    feat = torch.eye(n).view(n, 1, n)  # so that an output is the weights that dropout left
    scores = draw(n, 1, seed=1, dtype=torch.float32).detach()
    results = []
    for backend in ("triton", "numba", "reference"):
        device = DEVICE if backend == "triton" else torch.device("cpu")
        inputs = [tensor.to(device) for tensor in (feat, scores, scores)]
        results.append(graph_attention(*inputs, graph.to(device), dropout_p=0.5, seed=2**40 + 3, backend=backend).cpu())
    assert ((results[0] == 0) == (results[1] == 0)).all()
    assert ((results[0] == 0) == (results[2] == 0)).all()
    assert 0 < int((results[0][5] == 0).sum()) < n  # the hub, whose sources are all of them


@triton.jit
def _scales(counter, threshold, low, high, kept, out, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(out + n, kept_scale(tl.load(counter + n), threshold, low, high, kept))


@pytest.mark.parametrize("first", [0, 2**31 - 100, 2**32 - 100, 2**33 + 17])
def test_dropout_in_kernels_is_that_of_tensors(first):
    seed, out = 2**61 + 12345, torch.empty(256, device=DEVICE)
    counter = torch.arange(first, first + 256, device=DEVICE)
    _scales[1,](counter, *Dropout.of(0.3, seed), out, BLOCK=256)
    expected = dropout_scale(256, 0.3, seed, DEVICE, torch.float32, start=first)
    assert ((out == 0) == (expected == 0)).all()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)  # a GPU divides by multiplying


def test_a_seed_in_the_memory_of_the_device_is_the_number_itself():
    seed, n = 2**61 + 2**31 + 12345, 40
    there = torch.tensor(seed, device=DEVICE)
    x, scores = (draw(n, width, seed=width, dtype=torch.float32).detach().to(DEVICE) for width in (6, 2))
    graph = random_csr(n, n).to(DEVICE)
    graph.transposed  # noqa: B018  made on the CPU
    offsets = torch.tensor([0, 15, n], device=DEVICE)
    feat = x.view(n, 2, 3)
    ops = {
        "seeded_dropout": lambda x, s: seeded_dropout(x, 0.4, seed=s, backend="triton"),
        "dropout_linear": lambda x, s: dropout_linear(x, x[:5], dropout_p=0.4, seed=s, backend="triton")[0],
        "segment_attention_pool": lambda x, s: segment_attention_pool(
            scores, x, offsets, dropout_p=0.4, seed=s, backend="triton"
        )[0],
        "graph_attention": lambda x, s: graph_attention(
            x.view(n, 2, 3), scores, scores, graph, dropout_p=0.4, seed=s, backend="triton"
        ),
        "graph_dot_attention": lambda x, s: graph_dot_attention(
            x.view(n, 2, 3), feat, feat, graph, dropout_p=0.4, seed=s, backend="triton"
        ),
    }
    for name, op in ops.items():
        results = []
        for s in (seed, there, seed + 1):
            given = x.clone().requires_grad_()
            out = op(given, s)
            (gradient,) = torch.autograd.grad(out.square().sum(), given)
            results.append((out, gradient))
        assert all(map(torch.equal, results[0], results[1])), name
        assert not torch.equal(results[0][0], results[2][0]), name


@pytest.mark.skipif(DEVICE.type == "cuda", reason="needs memory that is reserved and never touched")
def test_offsets_beyond_32_bits():
    rows, width = 2**24 + 2, 128
    torch.utils.deterministic.fill_uninitialized_memory = False
    feat = torch.empty(rows, 1, width, dtype=torch.bfloat16)  # 4 GiB of addresses
    feat[0], feat[-1] = 1.0, 3.0
    scores = torch.zeros(rows, 1, dtype=torch.bfloat16)
    graph = CSR(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, rows - 1], dtype=torch.int32), rows)
    assert graph_attention(feat, scores, scores[:1], graph, backend="triton").eq(2).all()


def test_double_precision_is_refused():
    with pytest.raises(InputError, match=r"takes float16, bfloat16 and float32, not torch\.float64"):
        attend(random_csr(9, 9))("triton", *on_device(attention_inputs(9, 1, 2, False)(torch.float64)))


@of_a_grid
def test_more_rows_than_a_grid_axis_has():
    n = 66_000
    graph = CSR.from_edges(torch.tensor([0, 5, n - 1, 7]), torch.tensor([n - 1, 2, 65_536, n - 1]), n)
    compare(lambda *x: [attend(graph)(*x)], attention_inputs(n, 1, 2, False))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="what does not hold stops a GPU: a device-side assertion")
def test_bags_of_the_global_key_are_checked():
    n = 6
    x = on_device(attention_inputs(n, 1, 2, True)(torch.float32))
    for wrong in (-1, 2):
        bag = torch.tensor([0, 0, 1, 1, 1, wrong])
        with pytest.raises(InputError, match=r"global_key.bag must lie in 0\.\.1"):
            attend(random_csr(n, n), bag)("triton", *x)


def test_infinite_scores_and_nan_do_what_they_do_in_the_reference():
    n, graph = 70, random_csr(70, 70)
    feat, src, dst = (x.detach() for x in attention_inputs(n, 2, 3, False)(torch.float32))
    src[::3] = -torch.inf  # a source that nobody sees
    src[10], dst[50], feat[20] = torch.nan, -torch.inf, torch.nan
    function = attend(graph, return_attention=True)
    got, expected = function("triton", *(x.to(DEVICE) for x in (feat, src, dst))), function("reference", feat, src, dst)
    torch.testing.assert_close([x.cpu() for x in got], list(expected), equal_nan=True)
    scores, offsets, values = torch.randn(30, 1), torch.tensor([0, 10, 20, 30]), torch.ones(30, 2)
    scores[:10], scores[10], scores[25] = -torch.inf, -torch.inf, torch.nan
    got = segment_attention_pool(*(x.to(DEVICE) for x in (scores, values, offsets)), backend="triton")
    expected = segment_attention_pool(scores, values, offsets, backend="reference")
    torch.testing.assert_close([x.cpu() for x in got], list(expected), equal_nan=True)


def test_every_kernel_compiles_for_sm_90():
    """Without a GPU: a process of its own, for here the kernels belong to the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).parent.parent / "compile_triton.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert all(row["spilled_bytes"] <= 16 for row in compiled if "spilled_bytes" in row), "registers are spilled"
    defined = {
        f"{file.parent.name}/{name}"
        for file in Path(triton_tools.__file__).parents[1].rglob("*.py")
        if file.stem in ("triton_gpu", "triton_kernels") or file.parent.name == "_triton"
        for name in re.findall(r"^@tuned\(.*\)\ndef (\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(defined) == 32
    for case in ("bf16, all options", "fp32, no option"):
        assert {row["kernel"] for row in compiled if row["case"] == case} == defined


def packed_index(n):
    """Three copies of n rows, about two thirds of the first two the token."""
    index = torch.arange(n).repeat(3)
    index[: 2 * n][torch.rand(2 * n, generator=torch.Generator().manual_seed(n)) < 0.67] = -1
    return index


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(("n", "packed"), [(1, True), (63, True), (1500, True), (700, False)])
def test_dropout_linear(n, packed, dropout_p, launches):
    dim, index = 21, packed_index(n) if packed else None

    def inputs(dtype):
        shapes = [(n, dim), (12, dim), (12,)] + [(dim,)] * packed
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def function(backend, x, weight, bias, token=None):
        here = None if index is None else index.to(x.device)
        options = {"sizes": (7, 1, 4), "index": here, "token": token, "dropout_p": dropout_p, "seed": 2**40 + 3}
        return dropout_linear(x, weight, bias, **options, backend=backend)

    compare(function, inputs)
    packs = [] if not packed and dropout_p == 0 else ["_pack"]
    assert launches == packs * 2 + ["_unpack_token"] * packed + ["_unpack_rows"]


def test_dropout_linear_works_block_by_block(monkeypatch):
    module = importlib.import_module("mil_zoo.kernels.ops.dropout_linear.triton_gpu")
    monkeypatch.setattr(module, "BLOCK", 64)
    index = packed_index(70)
    compare(
        lambda backend, x, weight, token: dropout_linear(
            x, weight, index=index.to(x.device), token=token, dropout_p=0.4, seed=1, backend=backend
        ),
        lambda dtype: [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(70, 300), (4, 300), (300,)])],
    )
    compare(
        lambda backend, x, weight: dropout_linear(x, weight, dropout_p=0.4, seed=1, backend=backend),
        lambda dtype: [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(130, 5), (4, 5)])],
    )


def test_outputs_without_a_gradient_and_features_that_need_none():
    x, weight, token = on_device(draw(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(9, 5), (6, 5), (5,)]))
    index = packed_index(9).to(DEVICE)
    first, _ = dropout_linear(x.detach(), weight, sizes=(2, 4), index=index, token=token, backend="triton")
    first.sum().backward()
    assert x.grad is None
    assert weight.grad[2:].eq(0).all()
    assert weight.grad[:2].ne(0).all()
    assert token.grad.ne(0).all()


@pytest.mark.parametrize(
    ("n", "width", "with_residual"),
    [(n, width, given) for n, width in [(1, 37), (63, 1), (1500, 37)] for given in (True, False)]
    + [pytest.param(66_000, 4, True, marks=of_a_grid)],
)
def test_residual_norm_prelu(n, width, with_residual, launches):
    def inputs(dtype):
        shapes = [(n, width), (width,), (width,), (width,), (1,)] + [(n, width)] * with_residual
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def function(backend, x, *vectors):
        return [residual_norm_prelu(x, (vectors[4:] or (None,))[0], *vectors[:4], backend=backend)]

    compare(function, inputs)
    assert launches == ["_forward", "_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_seeded_dropout(dtype, launches):
    x = draw(700, 9, seed=0, dtype=dtype).detach().to(DEVICE).requires_grad_()
    out = seeded_dropout(x, 0.3, seed=2**40 + 5, backend="triton")
    out.backward(torch.ones_like(out))
    scale = dropout_scale(6300, 0.3, 2**40 + 5, DEVICE, torch.float32).view_as(x)
    assert ((out == 0) == (scale == 0)).all()
    torch.testing.assert_close(out, (x.float() * scale).to(dtype))
    torch.testing.assert_close(x.grad, scale.to(dtype))
    assert launches == ["_scale", "_scale"]


def test_a_block_size_that_triton_cannot_compile_is_not_taken(monkeypatch):
    def fails(sentence):
        def bench(call, **more):
            raise RuntimeError(sentence)

        return bench

    monkeypatch.setattr(triton.testing, "do_bench", fails("PassManager::run failed"))
    assert triton_tools._few_milliseconds(lambda: None, (0.5, 0.2, 0.8)) == [math.inf] * 3
    monkeypatch.setattr(triton.testing, "do_bench", fails("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory"):
        triton_tools._few_milliseconds(lambda: None, (0.5, 0.2, 0.8))


class FakeTuner:
    """What ``Kernel`` asks of Triton's autotuner; launches of compiled code are noted."""

    def __init__(self):
        self.calls, self.launches = 0, []
        self.best_config = triton.Config({"BLOCK_N": 8})

    def __getitem__(self, grid):
        if isinstance(grid, tuple) and len(grid) == 3 and self.calls:
            return lambda *args: self.launches.append((grid, args))

        def tune(**values):
            self.calls += 1
            return self

        return tune


def test_a_kernel_is_compiled_once_for_what_it_compiles_for(monkeypatch):
    monkeypatch.setattr(triton_tools, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    tuner, x = FakeTuner(), torch.zeros(64)
    kernel = Kernel(tuner, ("x", "y", "count", "slope", "F", "BLOCK_N"), ["x", "y", "count", "slope"])

    def launch(**changed):
        values = {"x": x, "y": None, "count": 5, "slope": 0.5, "F": 3} | changed
        kernel[lambda meta: (meta["count"] * meta["BLOCK_N"], meta["F"])](**values)

    launch()
    launch(count=7, slope=0.25, x=x[4:])  # 16 bytes further: aligned as before
    assert tuner.calls == 1
    ((grid, args),) = tuner.launches
    assert grid == (56, 3, 1)
    assert args[0].data_ptr() == x[4:].data_ptr()
    assert args[1:] == (None, 7, 0.25, 3, 8)
    for changed in ({"x": x[1:]}, {"x": x.half()}, {"y": x}, {"F": 4}, {"count": 2**31}):
        before = tuner.calls
        launch(**changed)
        assert tuner.calls == before + 1, changed


@pytest.mark.parametrize("sizes", [(1,), (3000,), (1, 1024, 1025, 1), (5, 0, 2100, 0), (2,) * 1500], ids=len)
def test_pieces(sizes):
    segments = importlib.import_module("mil_zoo.kernels._triton.segments")
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    pieces = segments.Pieces.of(offsets.to(DEVICE), sum(sizes), empty=True, piece=1024)
    counts = torch.tensor([-(-size // 1024) for size in sizes])
    assert pieces.first.tolist() == [0, *counts.cumsum(0).tolist()]
    used = int(counts.sum())
    starts = [start + 1024 * i for start, n in zip(offsets.tolist(), counts.tolist(), strict=False) for i in range(n)]
    assert pieces.starts[:used].tolist() == starts
    assert pieces.starts[used:].eq(sum(sizes)).all()
    assert pieces.segment[:used].tolist() == [b for b, n in enumerate(counts.tolist()) for _ in range(n)]
    assert 0 <= int(pieces.segment.min()) <= int(pieces.segment.max()) < len(sizes)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="what does not hold stops a GPU: a device-side assertion")
def test_pieces_of_wrong_offsets_are_refused_and_stay_inside(monkeypatch):
    segments = importlib.import_module("mil_zoo.kernels._triton.segments")
    for offsets in ([0, 9, 3, 5], [-7, 2, 5], [0, 5, 800], [0, 0, 5]):
        with pytest.raises(InputError, match="offsets must rise from 0 to 5, and no bag may be empty"):
            segments.Pieces.of(torch.tensor(offsets), 5)
    monkeypatch.setattr(segments.devices, "require", lambda holds, message: None)
    for offsets in ([0, 9, 3, 5], [-7, 2, 5], [0, 5, 800]):
        pieces = segments.Pieces.of(torch.tensor(offsets), 5)
        assert 0 <= int(pieces.starts.min()) <= int(pieces.starts.max()) <= 5
