"""The ops that make up a layer against the float64 reference."""

import importlib
from functools import partial

import pytest
import torch

from mil_zoo import InputError
from mil_zoo.kernels import (
    backend_status,
    bmm,
    dense_attention,
    depthwise_conv,
    dropout_linear,
    gated_scores,
    linear,
    matrix_units,
    onednn,
    residual_norm_prelu,
    seeded_dropout,
)
from mil_zoo.kernels.dropout import dropout_scale
from mil_zoo.kernels.ops.dense_attention import by_products

BACKENDS = ["reference", "numba"]
DTYPES = [torch.float32, torch.float64]


def draw(*shape, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def outputs_and_gradients(function, inputs):
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [draw(*out.shape, seed=100 + i, dtype=out.dtype).detach() for i, out in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, grads)]


def assert_close(got, expected, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        error = (a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1)
        assert error < tolerance, f"tensor {i} differs by {error:.2g}"


def packed_index(n):
    """Three copies of n rows, about two thirds of the first two the token."""
    index = torch.arange(n).repeat(3)
    index[: 2 * n][torch.rand(2 * n, generator=torch.Generator().manual_seed(n)) < 0.67] = -1
    return index


needs_onednn = pytest.mark.skipif(backend_status()["onednn"] is not None, reason=str(backend_status()["onednn"]))


@needs_onednn
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 5), (63, 37), (2, 700, 64), (64,)])
def test_linear(shape, biased):
    def inputs(dtype, **options):
        shapes = [shape, (19, shape[-1])] + [(19,)] * biased
        return [draw(*shape, seed=i, dtype=dtype, **options) for i, shape in enumerate(shapes)]

    expected = outputs_and_gradients(lambda *v: linear(*v, backend="reference"), inputs(torch.float64))
    got = outputs_and_gradients(lambda *v: linear(*v, backend="onednn"), inputs(torch.float32))
    assert [t.shape for t in got] == [t.shape for t in expected]
    assert_close(got, expected, torch.float32) if 0 not in shape else None
    x, weight, *bias = (v.detach() for v in inputs(torch.float32))
    turned = x.t().contiguous().t() if x.ndim == 2 else x, weight.t().contiguous().t()  # other strides
    assert torch.allclose(linear(*turned, *bias, backend="onednn"), got[0], atol=1e-4)
    gaps = torch.cat([x, x], -1)[..., : shape[-1]], torch.cat([weight, weight], 1)[:, : shape[-1]]
    gaps = *gaps, *(torch.stack([b, b], 1)[:, 0] for b in bias)
    assert torch.allclose(linear(*gaps, backend="onednn"), got[0], atol=1e-4)
    out = linear(x, weight.requires_grad_(), *bias, backend="onednn").relu_()  # changed in place, as by nn.ReLU
    assert (out >= 0).all()


@needs_onednn
def test_a_long_gradient_of_weights_is_summed_by_parts(monkeypatch):
    monkeypatch.setattr(onednn, "LONG", 50)
    monkeypatch.setattr(onednn, "PART", 40)
    monkeypatch.setattr(onednn, "COPIED", 0)  # so long ones are not copied
    by_parts, taken = onednn._by_parts, []
    monkeypatch.setattr(onednn, "_by_parts", lambda a, b: (taken.append(a.shape), by_parts(a, b))[1])

    def run(backend, dtype):
        inputs = [draw(130, 7, seed=0, dtype=dtype), draw(5, 7, seed=1, dtype=dtype)]
        return outputs_and_gradients(lambda *v: linear(*v, backend=backend), inputs)

    assert_close(run("onednn", torch.float32), run("reference", torch.float64), torch.float32)
    assert taken == [(5, 130)]


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 40, 7, 9), (2, 300, 5, 1)])
def test_bmm(shape):
    heads, m, k, n = shape

    def inputs(dtype):
        return [draw(heads, m, k, seed=0, dtype=dtype), draw(heads, k, n, seed=1, dtype=dtype)]

    expected = outputs_and_gradients(lambda *v: bmm(*v, backend="reference"), inputs(torch.float64))
    assert_close(
        outputs_and_gradients(lambda *v: bmm(*v, backend="onednn"), inputs(torch.float32)), expected, torch.float32
    )


@pytest.mark.parametrize("by", [pytest.param("onednn", marks=needs_onednn), "products of a GPU"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 8, 8), (3, 70, 1500, 8, 1), (2, 1500, 900, 4, 4)])
def test_dense_attention(shape, biased, by, monkeypatch):
    heads, queries, keys, width, value = shape

    def run(function, dtype):
        sizes = [(heads, queries, width), (heads, keys, width), (heads, keys, value)]
        bias = draw(1, keys, seed=9, dtype=dtype).detach() if biased else None
        inputs = [draw(*size, seed=i, dtype=dtype) for i, size in enumerate(sizes)]
        return outputs_and_gradients(lambda *v: function(*v, bias), inputs)

    monkeypatch.setattr(by_products, "_GPU", by_products._GPU._replace(pairs=2**17))  # so that there are several blocks
    function = partial(dense_attention, backend="onednn") if by == "onednn" else by_products.on_a_gpu
    got, expected = run(function, torch.float32), run(partial(dense_attention, backend="reference"), torch.float64)
    assert_close(got, expected, torch.float32)
    q, k, v = (draw(1, 5, 3, seed=i, dtype=torch.float64).detach() for i in range(3))
    plain = (q @ k.transpose(1, 2) / 3**0.5).softmax(-1) @ v
    assert_close([dense_attention(q, k, v)], [plain], torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel"), [((1, 1), (3, 3)), ((7, 5), (7, 3)), ((40, 1), (33, 1)), ((30, 41), (5, 7))]
)
def test_depthwise_conv(shape, kernel, dtype, backend):
    def inputs(dtype):
        return [
            draw(shape[0] * shape[1], 19, seed=0, dtype=dtype),
            draw(19, 1, *kernel, seed=1, dtype=dtype),
            draw(19, seed=2, dtype=dtype),
        ]

    def plain(x, weight, bias):  # every tap sees the image moved by its place
        image = torch.nn.functional.pad(x.view(*shape, -1), (0, 0, *2 * [kernel[1] // 2], *2 * [kernel[0] // 2]))
        windows = image.unfold(0, kernel[0], 1).unfold(1, kernel[1], 1)  # [height, width, C, a, b]
        return ((windows * weight[:, 0]).sum((3, 4)) + bias).view(len(x), -1)

    got = outputs_and_gradients(lambda *v: depthwise_conv(*v, shape=shape, backend=backend), inputs(dtype))
    assert_close(got, outputs_and_gradients(plain, inputs(torch.float64)), dtype)
    x, weight, _ = (v.detach() for v in inputs(dtype))
    gaps = torch.cat([x, x], 1)[:, : x.shape[1]]  # a part of wider rows
    assert_close([depthwise_conv(gaps, weight, shape=shape, backend=backend)], [plain(x, weight, 0)], dtype)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_depthwise_conv_under_autocast_is_that_of_its_precision(backend):
    x, weight = draw(6, 4, seed=0, dtype=torch.float32), draw(4, 1, 3, 3, seed=1, dtype=torch.float32)
    expected = depthwise_conv(x.bfloat16(), weight.bfloat16(), shape=(2, 3), backend=backend)
    for given in (x, x.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            out = depthwise_conv(given, weight, shape=(2, 3), backend=backend)
        assert out.dtype == torch.bfloat16
        assert out.equal(expected)
        assert all(t.dtype == torch.float32 for t in torch.autograd.grad(out.sum(), (x, weight)))


def test_depthwise_conv_takes_its_own_gradients():
    x, weight = draw(6, 4, seed=0, dtype=torch.float32), draw(4, 1, 3, 3, seed=1, dtype=torch.float32)
    assert "DepthwiseConv" in type(depthwise_conv(x, weight, shape=(2, 3)).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert "DepthwiseConv" in type(depthwise_conv(x, weight, shape=(2, 3)).grad_fn).__name__
    for options, message in [
        ({"weight": torch.ones(4, 1, 2, 3)}, "kernels must be odd, not 2 x 3"),
        ({"shape": (2, 2)}, r"x must have shape \[4, \*\]"),
        ({"x": x[:0], "shape": (0, 3)}, r"x must hold a pixel and a channel, not \[0, 4\]"),
        ({"bias": torch.ones(3)}, r"bias must have shape \[4\]"),
    ]:
        with pytest.raises(InputError, match=message):
            depthwise_conv(**{"x": x, "weight": weight, "shape": (2, 3)} | options)


@needs_onednn
def test_products_have_a_second_gradient():
    x, weight = draw(40, 8, seed=0, dtype=torch.float32), draw(6, 8, seed=1, dtype=torch.float32)

    def penalty(function, *inputs):
        (slope,) = torch.autograd.grad(function(*inputs).pow(3).sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(slope.pow(2).sum(), inputs[1])

    for op, inputs in [(linear, (x, weight)), (bmm, (x[None], weight.t()[None]))]:
        got, expected = (penalty(lambda *v, op=op, b=b: op(*v, backend=b), *inputs) for b in ("onednn", "reference"))
        assert_close(got, expected, torch.float32)


@needs_onednn
def test_linear_takes_onednn_where_it_pays(monkeypatch):
    x, weight = draw(64, 256, seed=0, dtype=torch.float32), draw(256, 256, seed=1, dtype=torch.float32)
    for faster in (True, False):
        monkeypatch.setattr(onednn, "is_faster", lambda faster=faster: faster)
        for fits, tensors in [
            (True, (x, weight)),
            (False, (x[:1], weight)),
            (False, (x.double(), weight.double())),
            (False, (x.bfloat16(), weight.bfloat16())),
        ]:
            is_taken = "_Linear" in type(linear(*tensors).grad_fn).__name__
            assert is_taken == (fits and faster)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16


def test_matrix_units_are_left_to_those_who_ask_for_tensorfloat32():
    found = []
    for precision in ("highest", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        found.append(matrix_units.allows_tensorfloat32())
    assert found == [False, True, False]
    assert not matrix_units.pays(torch.ones(2**14, 1024), 512)  # not on a GPU


@needs_onednn
def test_linear_refuses_what_onednn_does_not_take():
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"takes float32 products, not torch\.float64"):
        linear(x, x, backend="onednn")
    with torch.autocast("cpu"), pytest.raises(InputError, match=r"takes float32 products, not torch\.bfloat16"):
        linear(x.float(), x.float(), backend="onednn")
    with pytest.raises(InputError, match=r"weight must have shape \[\*, 3\]"):
        linear(x.float(), torch.ones(3, 2), backend="onednn")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(("n", "packed"), [(1, True), (63, True), (1500, True), (3000, False)])
def test_dropout_linear(n, packed, dropout_p, dtype, backend):
    dim, index = 21, packed_index(n) if packed else None

    def inputs(dtype):
        shapes = [(n, dim), (12, dim), (12,)] + [(dim,)] * packed
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def run(backend):
        def function(x, weight, bias, token=None):
            options = {"sizes": (7, 1, 4), "index": index, "token": token, "dropout_p": dropout_p, "seed": 3}
            return dropout_linear(x, weight, bias, **options, backend=backend)

        return function

    expected = outputs_and_gradients(run("reference"), inputs(torch.float64))
    assert_close(outputs_and_gradients(run(backend), inputs(dtype)), expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_without_a_gradient_and_features_that_need_none(backend):
    x, weight, token = (draw(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate([(9, 5), (6, 5), (5,)]))
    first, _ = dropout_linear(x.detach(), weight, sizes=(2, 4), index=packed_index(9), token=token, backend=backend)
    first.sum().backward()
    assert weight.grad[2:].eq(0).all()
    assert weight.grad[:2].ne(0).all()
    assert token.grad.ne(0).all()


def test_rows_out_of_order_without_dropout():
    x, index = torch.randn(6, 3), torch.tensor([0, 2, 1, 3, 4, 5])
    (out,) = dropout_linear(x, torch.eye(3), index=index)
    assert out.equal(x[index])


def test_every_copy_of_a_row_is_dropped_out_on_its_own():
    x, weight = torch.ones(1, 400), torch.eye(400)
    (out,) = dropout_linear(x, weight, index=torch.zeros(2, dtype=torch.int64), dropout_p=0.5, seed=1)
    both = (out != 0).all(0).float().mean()
    assert 0.15 < both < 0.35  # a quarter; 5 standard deviations: 0.11
    assert out.flatten().equal(dropout_scale(800, 0.5, 1, out.device, out.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 63, 1500])
@pytest.mark.parametrize("with_residual", [True, False])
def test_residual_norm_prelu(n, with_residual, dtype, backend):
    def inputs(dtype):
        shapes = [(n, 37), (37,), (37,), (37,), (1,)] + [(n, 37)] * with_residual
        return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def run(backend):
        return lambda x, *vectors: residual_norm_prelu(x, (vectors[4:] or (None,))[0], *vectors[:4], backend=backend)

    expected = outputs_and_gradients(run("reference"), inputs(torch.float64))
    assert_close(outputs_and_gradients(run(backend), inputs(dtype)), expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_seeded_dropout(dtype, backend):
    x = draw(700, 9, seed=0, dtype=dtype)
    out, grad = outputs_and_gradients(lambda x: seeded_dropout(x, 0.3, seed=5, backend=backend), [x])
    scale = dropout_scale(6300, 0.3, 5, x.device, dtype).view_as(x)
    assert out.equal(x * scale)
    assert grad.equal(draw(700, 9, seed=100, dtype=dtype) * scale)
    assert seeded_dropout(x, 0.0, backend=backend) is x
    torch.manual_seed(0)
    first = seeded_dropout(x, 0.3, backend=backend)
    assert not first.equal(seeded_dropout(x, 0.3, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(("n", "width", "heads"), [(1, 3, 1), (63, 37, 2), (2500, 5, 3)])
def test_gated_scores(n, width, heads, dropout_p, dtype, backend):
    def inputs(dtype):  # beyond where tanh is 1 in float32, and near 0
        x = draw(n, 2 * width, seed=0, dtype=torch.float64).detach() * torch.logspace(-4, 1, 2 * width)
        return [x.to(dtype).requires_grad_(), draw(heads, width, seed=1, dtype=dtype)]

    def run(backend):
        return lambda x, weight: gated_scores(x, weight, dropout_p=dropout_p, seed=3, backend=backend)

    expected = outputs_and_gradients(run("reference"), inputs(torch.float64))
    assert_close(outputs_and_gradients(run(backend), inputs(dtype)), expected, dtype)
    if dropout_p == 0:
        x, weight = (tensor.detach() for tensor in inputs(torch.float64))
        plain = (x[:, :width].tanh() * x[:, width:].sigmoid()) @ weight.T
        assert_close(expected[:1], [plain], torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gated_scores_of_nan_and_infinity(backend):
    x = torch.tensor([[torch.nan, 0.0], [0.0, torch.nan], [torch.inf, torch.inf], [-torch.inf, 0.0], [1.0, -torch.inf]])
    scores = gated_scores(x, torch.ones(1, 1), backend=backend)[:, 0]
    assert scores[:2].isnan().all()
    assert scores[2:].tolist() == [1, -0.5, 0]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_change_a_bit(threads, monkeypatch):
    numba_threads = importlib.import_module("mil_zoo.kernels._numba.threads")
    monkeypatch.setattr(numba_threads, "GRAIN", 1)  # or so little work would get one thread
    x, vectors = draw(1500, 33, seed=0, dtype=torch.float32), [draw(33, seed=i, dtype=torch.float32) for i in (1, 2, 3)]
    slope, before = draw(1, seed=4, dtype=torch.float32), torch.get_num_threads()

    # Products by ones and zeros are exact; the token's gradient is a matrix product over rows, which is not ours.
    options = {"index": packed_index(1500), "token": torch.ones(33), "dropout_p": 0.2, "seed": 1, "backend": "numba"}

    def run():
        normed = outputs_and_gradients(
            lambda x, *v: residual_norm_prelu(x, x * 2, *v, backend="numba"), [x, *vectors, slope]
        )
        dropped = outputs_and_gradients(lambda x: seeded_dropout(x, 0.2, seed=1, backend="numba"), [x])
        gates = [draw(1500, 32, seed=5, dtype=torch.float32), draw(2, 16, seed=6, dtype=torch.float32)]
        dropped += outputs_and_gradients(lambda *v: gated_scores(*v, dropout_p=0.2, seed=1, backend="numba"), gates)
        image = [draw(1500, 32, seed=7, dtype=torch.float32), draw(32, 1, 7, 7, seed=8, dtype=torch.float32)]
        convolved = outputs_and_gradients(lambda *v: depthwise_conv(*v, shape=(50, 30), backend="numba"), image)
        dropped.append(convolved[-1])  # of the kernels: the rest is PyTorch's
        return normed + dropped + outputs_and_gradients(lambda x: dropout_linear(x, torch.eye(33), **options), [x])

    expected = run()
    torch.set_num_threads(threads)
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_bad_arguments_are_named():
    x, weight, token = torch.ones(4, 3), torch.ones(5, 3), torch.ones(3)
    for options, message in [
        ({"sizes": (2, 2)}, "add up to the 5 rows"),
        ({"index": torch.tensor([0, -1])}, r"index must lie in 0..3, not -1..0"),
        ({"index": torch.tensor([0, 4]), "token": token}, r"index must lie in -1..3, not 0..4"),
        ({"index": torch.tensor([0.0])}, "index must be integer"),
        ({"dropout_p": 1.0}, "dropout_p"),
        ({"token": torch.ones(2)}, r"token must have shape \[3\]"),
        ({"backend": "dgl"}, "no 'dgl' backend"),
    ]:
        with pytest.raises(InputError, match=message):
            dropout_linear(x, weight, **options)
    with pytest.raises(InputError, match=r"residual must have shape \[4, 3\]"):
        residual_norm_prelu(x, torch.ones(3, 3), token, token, token, torch.ones(1))
    with pytest.raises(InputError, match="first argument"):
        residual_norm_prelu(x, x.double(), token, token, token, torch.ones(1))


@needs_onednn
@pytest.mark.parametrize("op", ["linear", "dropout_linear"])
def test_onednn_meets_few_shapes_of_bags_and_the_numbers_are_those_of_their_own_shape(op, monkeypatch):
    def gradients(n):
        x, weight, bias = (
            draw(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(n, 64), (96, 64), (96,)])
        )
        if op == "linear":
            return outputs_and_gradients(partial(linear, backend="onednn"), [x, weight, bias])
        options = {"index": packed_index(n), "token": torch.ones(64), "dropout_p": 0.3, "seed": 1, "sizes": (64, 32)}
        return outputs_and_gradients(lambda *v: dropout_linear(*v, **options), [x, weight, bias])

    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    monkeypatch.setattr(onednn, "LEAST", 0)
    sizes, shapes, plain = list(range(70, 512, 7)), set(), onednn.product
    monkeypatch.setattr(
        onednn, "product", lambda a, b, bias=None: (shapes.add((a.shape, b.shape)), plain(a, b, bias))[1]
    )
    few = [gradients(n) for n in sizes]
    found = len(shapes)
    shapes.clear()
    monkeypatch.setattr(onednn, "room", lambda rows: rows)
    assert all(a.equal(b) for n, got in zip(sizes, few, strict=True) for a, b in zip(got, gradients(n), strict=True))
    assert found < len(shapes) / 2


@needs_onednn
def test_what_onednn_does_not_take_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    x, weight = torch.randn(128, 256), torch.randn(64, 256)
    for bias in (torch.tensor(1.0), torch.ones(1), torch.ones(1, 64)):
        assert torch.equal(linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    for shape, with_bias in [((), {}), ((), {"bias": torch.ones(64, dtype=torch.float64)}), ((3,), {})]:
        with pytest.raises(RuntimeError):
            linear(x, torch.randn(64, 255 if not with_bias else 256, *shape), **with_bias)
    with pytest.raises(RuntimeError):
        bmm(torch.randn(2, 256, 256), torch.randn(3, 256, 256))
    q, k = torch.randn(2, 300, 64), torch.randn(2, 300, 64)
    with pytest.raises(RuntimeError):
        dense_attention(q, torch.randn(3, 300, 64), torch.randn(3, 300, 64))
    logits = q @ k.transpose(1, 2) / 8
    seen = torch.rand(1, 300) > 0.5
    plain = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ k
    assert torch.allclose(dense_attention(q, k, k, seen), plain, atol=1e-5)
    masked = torch.zeros(300, 300)
    masked[5] = -torch.inf
    assert dense_attention(q, k, k, masked)[:, 5].equal(torch.zeros(2, 64))
    free = torch.zeros(1, 300, requires_grad=True)
    dense_attention(q, k, k, free).sum().backward()
    assert free.grad is not None


@needs_onednn
def test_nothing_is_a_product_too():
    assert linear(torch.ones(0, 3, 16), torch.ones(64, 16), backend="onednn").shape == (0, 3, 64)
    none = torch.ones(1, 0, 4)
    assert dense_attention(torch.ones(1, 2, 4), none, none, backend="onednn").equal(torch.zeros(1, 2, 4))
    for heads, width in [(2, 0), (0, 3), (0, 0)]:  # of no columns every logit is 0

        def inputs(heads=heads, width=width):
            return [draw(heads, *size, seed=1, dtype=torch.float32) for size in ((3, width), (4, width), (4, 5))]

        for function in (partial(dense_attention, backend="onednn"), lambda *x: by_products.on_a_gpu(*x, None)):
            got = outputs_and_gradients(function, inputs())
            for a, b in zip(
                got, outputs_and_gradients(partial(dense_attention, backend="reference"), inputs()), strict=True
            ):
                torch.testing.assert_close(a, b)
