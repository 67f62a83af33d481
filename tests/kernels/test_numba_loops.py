"""The loops that the numba kernels share, against NumPy and torch: sums, products, gathers, bfloat16, exp."""

import numpy as np
import pytest
import torch

from mil_zoo.kernels._numba.gathers import gather
from mil_zoo.kernels._numba.jit import array
from mil_zoo.kernels._numba.loops import exponentials
from mil_zoo.kernels._numba.storage import widen, write_row
from mil_zoo.kernels._numba.vectors import add_weighted, add_weighted_twice, dots


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 15, 16, 64, 69, 130])
@pytest.mark.parametrize(("heads", "in_table"), [(1, 1), (4, 4), (3, 1)])
@pytest.mark.parametrize("count", [0, 1, 4, 31])
def test_sums_over_listed_rows(dtype, width, heads, in_table, count):
    generator = np.random.default_rng(0)
    table, row = generator.normal(size=(50, in_table, width)), generator.normal(size=(heads, width))
    weight, indices = generator.normal(size=(heads, 32)), generator.integers(0, 50, count).astype(np.int32)
    rows = np.broadcast_to(table, (50, heads, width))[indices]
    out, result = row.astype(dtype), np.full((heads, 32), np.nan, dtype)
    add_weighted(out, weight.astype(dtype), table.astype(dtype), indices)
    dots(row.astype(dtype), table.astype(dtype), indices, result)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(out, row + np.einsum("he,ehf->hf", weight[:, :count], rows), **tolerance)
    np.testing.assert_allclose(result[:, :count], np.einsum("hf,ehf->he", row, rows), **tolerance)
    assert np.isnan(result[:, count:]).all()  # nothing is written beyond


@pytest.mark.parametrize("width", [15, 64, 212])
@pytest.mark.parametrize("heads", [1, 3])
def test_two_sums_over_listed_rows_of_bfloat16(width, heads):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, heads, width, generator=generator).bfloat16()
    weight, indices = torch.randn(2, heads, 32, generator=generator), torch.randint(50, (31,), generator=generator)
    sums, result = np.ones((2, heads, width), np.float32), np.zeros((heads, 32), np.float32)
    rows, bits, numbers = table.double()[indices], array(table), indices.int().numpy()
    add_weighted_twice(sums, weight.numpy(), bits, numbers)
    expected = 1 + torch.einsum("khe,ehf->khf", weight[:, :, :31].double(), rows)
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-5)
    once = np.ones((heads, width), np.float32)
    add_weighted(once, weight[1].numpy(), bits, numbers)
    assert np.array_equal(once, sums[1])
    dots(once, bits, numbers, result)
    expected = torch.einsum("hf,ehf->he", torch.from_numpy(once).double(), rows)
    np.testing.assert_allclose(result[:, :31], expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_as_torch_rounds():
    x = torch.cat([torch.randn(1000) * torch.logspace(-44, 38, 1000), torch.tensor([torch.inf, -torch.inf, 3.4e38, 0])])
    bits, back = np.empty(len(x), np.uint16), np.empty((1, len(x)), np.float32)
    write_row(x.numpy(), np.float32(1), bits)
    assert np.array_equal(bits, array(x.bfloat16()))
    widen(bits[None], back)
    assert np.array_equal(back[0], x.bfloat16().float())
    write_row(np.full(1, np.nan, np.float32), np.float32(1), bits[:1])
    assert torch.from_numpy(bits[:1].view(np.int16)).view(torch.bfloat16).isnan().all()


@pytest.mark.parametrize("heads", [1, 4, 6])
@pytest.mark.parametrize("count", [0, 3, 25, 32])
def test_gathered_numbers_are_turned(heads, count):
    generator = np.random.default_rng(0)
    table, indices = generator.normal(size=(50, heads)), generator.integers(0, 50, count)
    result = np.empty((heads, 32))
    gather(indices, table, result)
    assert np.array_equal(result[:, :count], table[indices].T)


def test_exp():
    x = np.linspace(-87, 1, 1_000_001, dtype=np.float32)
    got, expected = x.copy(), np.exp(x.astype(np.float64))
    exponentials(got)
    assert np.abs(got / expected - 1).max() < 1.5e-7
    special = np.array([0, -np.inf, -1000, np.nan], dtype=np.float32)
    exponentials(special)
    np.testing.assert_array_equal(special, [1, 0, 0, np.nan])
