"""bfloat16 in the numba kernels: rows are read as they are, float32 is computed, and results are rounded once."""

import pytest
import torch
from kernel_cases import draw, random_csr

from mil_zoo.kernels import (
    depthwise_conv,
    dropout_linear,
    gated_scores,
    graph_dot_attention,
    graph_softmax_sum,
    graph_sum,
    onednn,
    residual_norm_prelu,
    seeded_dropout,
    segment_attention_pool,
    segment_reduce,
    selective_scan,
)

N, GRAPH, OFFSETS = 700, random_csr(700, 700), torch.tensor([0, 3, 700])
DROPPED = {"dropout_p": 0.2, "seed": 1}


def attend(q, k, v, bias):
    return graph_dot_attention(q, k, v, GRAPH, bias=bias, return_attention=True, **DROPPED, backend="numba")


def scan(u, delta, a, *others):
    return selective_scan(u, delta, -a.abs(), *others, True, OFFSETS, return_last_state=True, backend="numba")


# The op, the shapes of its inputs, and whether backward reads the first of them.
OPS = {
    "graph_sum": (lambda x: graph_sum(x, GRAPH, backend="numba"), [(N, 70)], False),
    "graph_dot_attention": (
        attend,
        [(N, 2, 70), (N, 2, 70), (N, 2, 16), (GRAPH.num_edges, 2)],
        True,
    ),
    "graph_softmax_sum": (lambda *x: graph_softmax_sum(*x, GRAPH, backend="numba"), [(N, 37), (1,)], True),
    "segment_attention_pool": (
        lambda *x: segment_attention_pool(*x, OFFSETS, **DROPPED, backend="numba"),
        [(N, 2), (N, 2, 70)],
        False,
    ),
    "segment_attention_pool, shared": (
        lambda *x: segment_attention_pool(*x, OFFSETS, **DROPPED, backend="numba"),
        [(N, 2), (N, 70)],
        False,
    ),
    "residual_norm_prelu": (
        lambda *x: residual_norm_prelu(*x, backend="numba"),
        [(N, 37), (N, 37), (37,), (37,), (37,), (1,)],
        True,
    ),
    "selective_scan": (scan, [(N, 9), (N, 9), (9, 4), (N, 4), (N, 4), (9,), (N, 9), (9,)], True),
    "gated_scores": (lambda *x: gated_scores(*x, **DROPPED, backend="numba"), [(N, 74), (3, 37)], True),
    "seeded_dropout": (lambda x: seeded_dropout(x, **DROPPED, backend="numba"), [(N, 37)], False),
    "segment_reduce sum": (lambda x: segment_reduce(x, OFFSETS, "sum", backend="numba"), [(N, 37)], False),
    "segment_reduce mean": (lambda x: segment_reduce(x, OFFSETS, "mean", backend="numba"), [(N, 37)], False),
    "segment_reduce max": (lambda x: segment_reduce(x, OFFSETS, "max", backend="numba"), [(N, 37)], False),
    "segment_reduce logsumexp": (lambda x: segment_reduce(x, OFFSETS, "logsumexp", backend="numba"), [(N, 37)], True),
}


def results(function, shapes, dtype):
    """Outputs and gradients in ``dtype`` of the same numbers; where the first input and what is saved lie in memory."""
    inputs = [draw(*shape, seed=i).detach().bfloat16().to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.data_ptr()), x)[1], lambda x: x):
        outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    flowing = [output for output in outputs if output.requires_grad]
    grads = [draw(*x.shape, seed=100 + i).detach().bfloat16().to(dtype) for i, x in enumerate(flowing)]
    return [*outputs, *torch.autograd.grad(flowing, inputs, grads)], inputs[0].data_ptr(), saved


@pytest.mark.parametrize("op", OPS)
def test_results_are_those_of_float32_rounded(op):
    function, shapes, is_saved = OPS[op]
    (got, place, saved), (expected, *_) = (results(function, shapes, x) for x in (torch.bfloat16, torch.float32))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert a.equal(b.bfloat16())
    assert (place in saved) == is_saved  # itself, and not a copy


@pytest.mark.parametrize("multiplies", [True, False])
def test_products_of_bfloat16(multiplies, monkeypatch):
    """They are PyTorch's, whose sums have an order of their own."""
    monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: multiplies)
    index, token = torch.arange(N).repeat(2).index_fill(0, torch.arange(0, N, 3), -1), draw(21, seed=9).detach()
    for function, shapes in [
        (lambda *x: depthwise_conv(*x, shape=(35, 20), backend="numba"), [(N, 19), (19, 1, 7, 3), (19,)]),
        (lambda *x: dropout_linear(*x, sizes=(7, 5), **DROPPED, backend="numba"), [(N, 21), (12, 21), (12,)]),
        (
            lambda *x: dropout_linear(*x, index=index, token=token.to(x[0].dtype), **DROPPED, backend="numba"),
            [(N, 21), (12, 21), (12,)],
        ),
    ]:
        (got, place, saved), (expected, *_) = (results(function, shapes, x) for x in (torch.bfloat16, torch.float64))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == torch.bfloat16
            assert (a.double() - b).abs().max() < 0.01 * b.abs().max()
        assert place in saved
