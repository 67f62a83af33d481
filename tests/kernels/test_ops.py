"""Every backend of every op against the float64 reference, and the reference against gradcheck and hand-made cases."""

import pytest
import torch
from helpers import needs_dgl
from kernel_cases import assert_close, draw, outputs_and_gradients, random_csr

from mil_zoo import InputError
from mil_zoo.kernels import (
    CSR,
    GlobalKey,
    graph_attention,
    graph_dot_attention,
    graph_softmax_sum,
    graph_sum,
    segment_attention_pool,
    segment_reduce,
)
from mil_zoo.kernels.dropout import dropout_scale
from mil_zoo.kernels.ops.segment_attention_pool import one_bag as pool_one_bag
from mil_zoo.kernels.ops.segment_reduce import one_bag as reduce_one_bag

BACKENDS = ["reference", pytest.param("dgl", marks=needs_dgl), "numba"]
REDUCE_BACKENDS = ["reference", "numba"]
# The largest, of more rows than 16 bits count, in one precision: it takes a second where the others take a hundredth.
CASES = [(n, dtype) for n in (1, 63, 1000) for dtype in (torch.float32, torch.float64)] + [(70_000, torch.float32)]


@pytest.fixture(scope="module")
def once():
    """``once(case, make)``: what ``make()`` gives, made for the first of the tests that compare with it."""
    made: dict = {}

    def get(case, make):
        if case not in made:
            made[case] = make()
        return made[case]

    return get


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("with_global", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_graph_attention(n, backend, dtype, with_global, dropout_p, once):
    heads, width, graph = 3, 5, random_csr(n, n)
    bag = (torch.arange(n) >= n // 2).long()

    def inputs(dtype):
        shapes = [(n, heads, width), (n, heads), (n, heads)] + [(2, heads, width), (2, heads)] * with_global
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def run(backend):
        def function(feat, src_score, dst_score, *key):
            key = GlobalKey(*key, bag) if key else None
            return graph_attention(
                feat, src_score, dst_score, graph, dropout_p=dropout_p, seed=11, global_key=key, return_attention=True,
                backend=backend,
            )  # fmt: skip

        return function

    expected = once(
        ("attention", n, with_global, dropout_p), lambda: outputs_and_gradients(run("reference"), inputs(torch.float64))
    )
    assert_close(outputs_and_gradients(run(backend), inputs(dtype)), expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_global_key_equals_a_node_in_the_graph(backend):
    n, heads, width = 40, 2, 3
    graph = random_csr(n, n)
    feat, src_score, dst_score = draw(n, heads, width, seed=0), draw(n, heads, seed=1), draw(n, heads, seed=2)
    key = GlobalKey(draw(1, heads, width, seed=3), draw(1, heads, seed=4), torch.zeros(n, dtype=torch.long))
    inside = CSR.from_edges(
        torch.cat([graph.indices.long(), torch.full((n,), n)]),
        torch.cat([graph.destinations, torch.arange(n)]),
        n + 1,
        n,
    )
    expected = graph_attention(
        torch.cat([feat, key.feat]), torch.cat([src_score, key.score]), dst_score, inside, backend="reference"
    )
    got = graph_attention(feat, src_score, dst_score, graph, global_key=key, backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_sources_are_zero_and_a_missing_global_node_is_ignored(backend):
    graph = CSR(torch.tensor([0, 2, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), 2)
    feat, scores = torch.ones(2, 1, 4), torch.zeros(2, 1)
    out = graph_attention(feat, scores, scores, graph, backend=backend)
    assert out[0].eq(1).all()
    assert out[1].eq(0).all()
    absent = GlobalKey(torch.full((1, 1, 4), 9.0), torch.full((1, 1), -torch.inf), torch.zeros(2, dtype=torch.long))
    out, _, global_attention = graph_attention(
        feat, scores, scores, graph, global_key=absent, return_attention=True, backend=backend
    )
    assert out[0].eq(1).all()
    assert out[1].eq(0).all()
    assert global_attention.eq(0).all()


def test_graph_attention_by_hand():
    # One destination, two sources with scores 1 and -1: leaky_relu gives 1 and -0.2.
    graph = CSR(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), 2)
    feat = torch.tensor([[[1.0]], [[3.0]]], dtype=torch.float64)
    src_score, dst_score = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    first = 1 / (1 + torch.tensor(-1.2, dtype=torch.float64).exp())
    out, attention = graph_attention(feat, src_score, dst_score, graph, return_attention=True, backend="reference")
    torch.testing.assert_close(attention[:, 0], torch.stack([first, 1 - first]))
    torch.testing.assert_close(out[0, 0, 0], first + 3 * (1 - first))


def test_gradcheck_of_the_references():
    graph = random_csr(7, 7, degree=2)
    bag = torch.zeros(7, dtype=torch.long)
    inputs = [draw(7, 2, 3, seed=0), draw(7, 2, seed=1), draw(7, 2, seed=2), draw(1, 2, 3, seed=3), draw(1, 2, seed=4)]

    def attend(feat, src_score, dst_score, key, score):
        return graph_attention(
            feat,
            src_score,
            dst_score,
            graph,
            dropout_p=0.2,
            seed=3,
            global_key=GlobalKey(key, score, bag),
            backend="reference",
        )

    assert torch.autograd.gradcheck(attend, inputs)
    q, k, v = draw(7, 2, 3, seed=5), draw(7, 2, 3, seed=6), draw(7, 2, 4, seed=7)
    assert torch.autograd.gradcheck(lambda *qkv: graph_dot_attention(*qkv, graph, backend="reference"), (q, k, v))
    offsets = torch.tensor([0, 3, 7])

    def pool(scores, values):
        return segment_attention_pool(scores, values, offsets, backend="reference")

    assert torch.autograd.gradcheck(pool, (draw(7, 2, seed=8), draw(7, 3, seed=9)))
    for reduce in ("sum", "mean", "max", "logsumexp"):
        assert torch.autograd.gradcheck(lambda x: segment_reduce(x, offsets, reduce), (draw(7, 3, seed=10),))  # noqa: B023


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_graph_dot_attention(n, backend, dtype, biased, once):
    graph = random_csr(n + 2, n)

    def inputs(dtype):
        shapes = [(n, 2, 6), (n + 2, 2, 6), (n + 2, 2, 3)] + [(graph.num_edges, 2)] * biased
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def run(backend):
        def function(q, k, v, bias=None):
            return graph_dot_attention(
                q, k, v, graph, bias=bias, dropout_p=0.2, seed=5, return_attention=True, backend=backend
            )

        return function

    expected = once(("dot", n, biased), lambda: outputs_and_gradients(run("reference"), inputs(torch.float64)))
    assert_close(outputs_and_gradients(run(backend), inputs(dtype)), expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(1,), (1, 62), (1000, 1, 3), (70_000, 2)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_segment_attention_pool(sizes, backend, dtype, shared, once):
    n, offsets = sum(sizes), torch.tensor([0, *sizes]).cumsum(0)

    def inputs(dtype):
        return [draw(n, 3, seed=0, dtype=dtype), draw(*((n, 5) if shared else (n, 3, 5)), seed=1, dtype=dtype)]

    def run(backend):
        return lambda scores, values: segment_attention_pool(
            scores, values, offsets, dropout_p=0.25, seed=2, backend=backend
        )

    expected = once(("pool", sizes, shared), lambda: outputs_and_gradients(run("reference"), inputs(torch.float64)))
    assert_close(outputs_and_gradients(run(backend), inputs(dtype)), expected, dtype)


def test_segment_attention_pool_equals_a_loop_over_bags():
    scores, values, offsets = draw(10, 2, seed=0), draw(10, 4, seed=1), torch.tensor([0, 3, 4, 10])
    pooled, attention = segment_attention_pool(scores, values, offsets, backend="reference")
    for bag, (start, end) in enumerate([(0, 3), (3, 4), (4, 10)]):
        weights = scores[start:end].softmax(0)
        torch.testing.assert_close(attention[start:end], weights)
        torch.testing.assert_close(pooled[bag], weights.T @ values[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_bag_of_few_numbers_takes_pytorchs_operations(dtype, monkeypatch):
    taken = []
    for module in (pool_one_bag, reduce_one_bag):
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, f=forward: (taken.append(f), f(*a))[1])

    def run(backend, dtype, shared, n=100, width=5):
        values = draw(*((n, width) if shared else (n, 3, width)), seed=1, dtype=dtype)
        scores, offsets = draw(n, 3, seed=0, dtype=dtype), torch.tensor([0, n])

        def outputs(scores, values):
            dropped = scores.index_fill(1, torch.tensor([2]), -torch.inf)  # no instance of the last branch is left
            yield from segment_attention_pool(dropped, values, offsets, backend=backend)
            for reduce in ("sum", "mean", "max", "logsumexp"):
                yield segment_reduce(scores, offsets, reduce, backend=backend)

        return outputs_and_gradients(outputs, [scores, values])

    for shared in (True, False):
        expected = run("reference", torch.float64, shared)
        assert_close(run("numba", dtype, shared), expected, dtype)
        assert not taken
        assert_close(run("auto", dtype, shared), expected, dtype)
        assert len(taken) == 5
        taken.clear()
    nan = torch.tensor([[1.0], [torch.nan], [2.0]], dtype=dtype)
    assert segment_reduce(nan, torch.tensor([0, 3]), "max", return_argmax=True)[1].item() == 1
    assert segment_attention_pool(nan, nan, torch.tensor([0, 3]))[1].isnan().all()
    masked = torch.tensor([[-torch.inf], [0.0], [0.0]], dtype=dtype, requires_grad=True)
    outlier = torch.tensor([[1e20], [1.0], [3.0]], dtype=dtype)  # no attention, and no digit of the others lost to it
    assert segment_attention_pool(masked, outlier, torch.tensor([0, 3]))[0].item() == 2
    taken.clear()
    run("auto", dtype, True, n=50_000)
    assert not taken


def test_gradients_of_one_bag_are_those_of_finite_differences():
    inputs = [draw(5, 2, seed=0, dtype=torch.float64), draw(5, 3, seed=1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(pool_one_bag.forward, inputs)
    assert torch.autograd.gradgradcheck(pool_one_bag.forward, inputs)


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
def test_graph_sum_is_the_product_of_a_sparse_matrix(backend):
    graph = random_csr(9, 7, degree=3)
    x, weight = draw(9, 70, seed=0), draw(graph.num_edges, seed=1).detach()
    for given in (None, weight):
        values = torch.ones_like(weight) if given is None else given
        matrix = torch.zeros(7, 9, dtype=torch.float64)
        matrix.index_put_((graph.destinations, graph.indices.long()), values, accumulate=True)
        torch.testing.assert_close(graph_sum(x, graph, weight=given, backend=backend), matrix @ x)
    assert torch.autograd.gradcheck(lambda x: graph_sum(x, graph, weight=weight, backend=backend), (x,))
    with pytest.raises(InputError, match="gives its weights no gradient"):
        graph_sum(x, graph, weight=weight.requires_grad_(), backend=backend)


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
@pytest.mark.parametrize(("n", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_graph_sum(n, backend, dtype, weighted, once):
    graph = random_csr(n + 2, n)

    def run(dtype, backend):
        weight = draw(graph.num_edges, seed=1, dtype=dtype).detach() if weighted else None
        x = draw(n + 2, 19, seed=0, dtype=dtype)
        return outputs_and_gradients(lambda x: [graph_sum(x, graph, weight=weight, backend=backend)], [x])

    expected = once(("sum", n, weighted), lambda: run(torch.float64, "reference"))
    assert_close(run(dtype, backend), expected, dtype)


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
def test_graph_softmax_sum_is_a_softmax_of_each_row_and_channel(backend):
    graph = random_csr(9, 7, degree=3)
    x, t = draw(9, 21, seed=0), torch.tensor([1.7], dtype=torch.float64, requires_grad=True)
    out = graph_softmax_sum(x, t, graph, backend=backend)
    for row, start, end in zip(out, graph.indptr, graph.indptr[1:], strict=False):
        messages = x[graph.indices[start:end].long()]
        torch.testing.assert_close(row, ((t * messages).softmax(0) * messages).sum(0))
    assert (graph.indptr.diff() == 0).any()
    assert torch.autograd.gradcheck(lambda *xt: graph_softmax_sum(*xt, graph, backend=backend), (x, t))
    far = graph_softmax_sum(1e4 * x.detach(), -t.detach(), graph, backend=backend)
    assert far.isfinite().all()


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
@pytest.mark.parametrize(("n", "dtype"), CASES, ids=str)
def test_graph_softmax_sum(n, backend, dtype, once):
    graph = random_csr(n + 2, n)

    def run(dtype, backend):
        inputs = draw(n + 2, 19, seed=0, dtype=dtype), torch.tensor([0.8], dtype=dtype, requires_grad=True)
        return outputs_and_gradients(lambda *xt: [graph_softmax_sum(*xt, graph, backend=backend)], inputs)

    expected = once(("softmax", n), lambda: run(torch.float64, "reference"))
    assert_close(run(dtype, backend), expected, dtype)


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
def test_segment_reduce_equals_a_loop_over_bags(backend):
    values, offsets = draw(10, 4, seed=0), torch.tensor([0, 3, 4, 10])
    bags = [values[0:3], values[3:4], values[4:10]]
    for reduce, function in {
        "sum": lambda x: x.sum(0),
        "mean": lambda x: x.mean(0),
        "max": lambda x: x.amax(0),
        "logsumexp": lambda x: x.logsumexp(0),
    }.items():
        reduced = segment_reduce(values, offsets, reduce, backend=backend)
        torch.testing.assert_close(reduced, torch.stack([function(x) for x in bags]))
    _, argmax = segment_reduce(values, offsets, "max", return_argmax=True, backend=backend)
    assert argmax[2].equal(4 + values[4:10].argmax(0))


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(1,), (1, 62), (1000, 1, 3), (70_000, 2)], ids=str)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "logsumexp"])
def test_segment_reduce(reduce, sizes, dtype, backend, once):
    offsets = torch.tensor([0, *sizes]).cumsum(0)

    def run(dtype, backend):
        values = draw(sum(sizes), 5, seed=0, dtype=dtype)
        return outputs_and_gradients(lambda x: [segment_reduce(x, offsets, reduce, backend=backend)], [values])

    expected = once(("reduce", reduce, sizes), lambda: run(torch.float64, "reference"))
    assert_close(run(dtype, backend), expected, dtype)


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
def test_the_gradient_of_max_goes_to_the_first_of_equal_instances(backend):
    values = torch.tensor([[1.0], [2.0], [2.0]], requires_grad=True)
    segment_reduce(values, torch.tensor([0, 3]), "max", backend=backend).sum().backward()
    assert values.grad.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("backend", REDUCE_BACKENDS)
def test_reductions_of_infinities_and_nan(backend):
    inf, nan = torch.inf, torch.nan
    values = torch.tensor([[-inf, 1.0], [-inf, nan], [2.0, nan], [1.0, -inf]])
    offsets = torch.tensor([0, 2, 4])
    top, argmax = segment_reduce(values, offsets, "max", return_argmax=True, backend=backend)
    torch.testing.assert_close(top, torch.tensor([[-inf, nan], [2.0, nan]]), equal_nan=True)
    assert argmax.tolist() == [[0, 1], [2, 2]]
    total = segment_reduce(values, offsets, "sum", backend=backend)
    torch.testing.assert_close(total, torch.tensor([[-inf, nan], [3.0, nan]]), equal_nan=True)


@pytest.mark.parametrize("backend", [*REDUCE_BACKENDS, "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("repeats", [1, 400])  # a bag of several pieces
def test_logsumexp_of_infinities_and_nan(repeats, dtype, backend):
    inf, nan = torch.inf, torch.nan
    rows = torch.tensor([[inf, -inf, inf, nan, 0], [1, -inf, nan, -inf, -inf], [inf, -inf, 2, 2, 0]], dtype=dtype)
    values, offsets = rows.repeat(repeats, 1).requires_grad_(), torch.tensor([0, 3 * repeats])
    reduced = segment_reduce(values, offsets, "logsumexp", backend=backend)
    top = torch.tensor(2.0 * repeats).log().item()
    expected = torch.tensor([[inf, -inf, nan, nan, top]], dtype=dtype)
    torch.testing.assert_close(reduced, expected, equal_nan=True)
    (grad,) = torch.autograd.grad(reduced.sum(), values)
    share = 0.5 / repeats
    once = [[nan, nan, nan, nan, share], [0, nan, nan, nan, 0], [nan, nan, nan, nan, share]]
    torch.testing.assert_close(grad[:3], torch.tensor(once, dtype=dtype), rtol=0.01, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend):
    graph = random_csr(3000, 3000)

    def run():
        inputs = [draw(3000, 4, 8, seed=0, dtype=torch.float32)] + [
            draw(3000, 4, seed=i, dtype=torch.float32) for i in (1, 2)
        ]
        return outputs_and_gradients(lambda *x: [graph_attention(*x, graph, backend=backend)], inputs)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_do_not_depend_on_what_memory_held(backend):
    graph = random_csr(200, 200)
    inputs = [draw(200, 2, 3, seed=0), draw(200, 2, seed=1), draw(200, 2, seed=2)]
    torch.utils.deterministic.fill_uninitialized_memory = True  # with deterministic mode: torch.empty holds NaN
    torch.use_deterministic_algorithms(True)
    try:
        out = graph_attention(*inputs, graph, backend=backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()


def test_dropout_scale():
    scale = dropout_scale(200_000, 0.3, seed=4, device=torch.device("cpu"), dtype=torch.float64)
    assert set(scale.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs(float((scale == 0).double().mean()) - 0.3) < 0.005  # 5 standard deviations: 0.0051
    assert not torch.equal(scale, dropout_scale(200_000, 0.3, 5, torch.device("cpu"), torch.float64))
    late = dropout_scale(1000, 0.3, 4, torch.device("cpu"), torch.float64, start=2000)
    assert late.equal(scale[2000:3000])
    beyond_32_bits = dropout_scale(100_000, 0.3, 4, torch.device("cpu"), torch.float64, start=2**33)
    assert abs(float((beyond_32_bits == 0).double().mean()) - 0.3) < 0.0075
    neighbours = (scale[:-1] == 0).double() - 0.3, (scale[1:] == 0).double() - 0.3
    assert abs(float((neighbours[0] * neighbours[1]).mean())) < 0.0025  # uncorrelated


def test_dropout_follows_the_seed_and_torchs_generator():
    graph = random_csr(50, 50)
    inputs = [draw(50, 2, 3, seed=0), draw(50, 2, seed=1), draw(50, 2, seed=2)]
    torch.manual_seed(0)
    first = graph_attention(*inputs, graph, dropout_p=0.5)
    second = graph_attention(*inputs, graph, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(first, graph_attention(*inputs, graph, dropout_p=0.5))
    assert not torch.equal(first, second)
