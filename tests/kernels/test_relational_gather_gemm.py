"""The relational graph convolution against a loop over edges."""

import pytest
import torch

from mil_zoo import InputError
from mil_zoo.kernels import RelationalEdges, relational_gather_gemm


def random_edges(counts=(5, 0, 7), num_src=6, num_dst=4) -> RelationalEdges:
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(num_src, (sum(counts),), generator=generator)
    dst = torch.randint(num_dst - 1, (sum(counts),), generator=generator)  # the last one has no edge
    return RelationalEdges(src, dst, counts, num_src, num_dst)


def random_inputs(edges, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(edges.num_src, 3, generator=generator, dtype=dtype)
    return x, torch.randn(len(edges.counts), 3, 2, generator=generator, dtype=dtype)


def test_it_is_the_sum_over_edges():
    edges = random_edges()
    x, weight = random_inputs(edges)
    expected = torch.zeros(edges.num_dst, 2, dtype=torch.float64)
    relation = torch.repeat_interleave(torch.arange(3), torch.tensor(edges.counts))
    for r, j, i in zip(relation, edges.src, edges.dst, strict=True):
        expected[i] += x[j] @ weight[r]
    torch.testing.assert_close(relational_gather_gemm(x, weight, edges), expected)
    assert (expected[-1] == 0).all()


def test_gradients():
    edges = random_edges()
    x, weight = (tensor.requires_grad_() for tensor in random_inputs(edges))
    assert torch.autograd.gradcheck(lambda *inputs: relational_gather_gemm(*inputs, edges), (x, weight))


def test_autocast_takes_products_in_its_dtype_and_sums_in_float32():
    edges = RelationalEdges(torch.zeros(2000, dtype=torch.int64), torch.zeros(2000, dtype=torch.int64), (2000,), 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = relational_gather_gemm(torch.ones(1, 1), torch.ones(1, 1, 1), edges)
    assert out.dtype == torch.bfloat16
    assert out.item() == 2000  # a sum in bfloat16 stands still at 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (5, 0, 6)}, "11 edges need as many"),
        ({"src": torch.full((12,), 6)}, "sources must be int64 in 0..5"),
        ({"dst": torch.full((12,), -1)}, "destinations must be int64 in 0..3"),
        ({"dst": torch.zeros(12, dtype=torch.int32)}, "destinations must be int64"),
        ({"num_src": 7}, "x must have shape"),
        ({"counts": (5, 7)}, "weight must have shape"),
    ],
)
def test_wrong_edges_are_an_error(change, message):
    edges = random_edges()
    x, weight = random_inputs(edges)
    with pytest.raises(InputError, match=message):
        relational_gather_gemm(x, weight, RelationalEdges(**(vars(edges) | change)))


def test_wrong_tensors_are_an_error():
    edges = random_edges()
    x, weight = random_inputs(edges)
    with pytest.raises(InputError, match=r"weight is torch\.float32"):
        relational_gather_gemm(x, weight.float(), edges)
    with pytest.raises(InputError, match="no 'numba' backend"):
        relational_gather_gemm(x, weight, edges, backend="numba")
