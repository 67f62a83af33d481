"""Time and memory of dense products on a CPU, forward and backward, by oneDNN and by PyTorch's choice: ``pytest
benchmarks/test_products.py``.

The floor counts the multiplications and additions of the products forward and backward, without what backward computes
again.
"""

from __future__ import annotations

import pytest
import torch
from kernel_steps import random_inputs, run

from mil_zoo.kernels import bmm, dense_attention, linear

SIDES = pytest.mark.parametrize("side", ["reference", "onednn"])


@SIDES
@pytest.mark.parametrize("size", [100, 1000, 10_000])
def test_linear(benchmark, measure, device, tiny, size, side):
    """The layer that most aggregators begin with."""
    size, dim, width = 20 if tiny else size, 1024, 512
    benchmark.group = f"linear, N = {size}, {dim} to {width}"
    inputs = random_inputs(device, torch.float32, (size, dim), (width, dim), (width,))
    _run(measure, linear, side, inputs, size, 6 * size * dim * width, rounds=10)


@SIDES
@pytest.mark.parametrize("size", [128, 256, 512])
def test_bmm(benchmark, measure, device, tiny, size, side):
    """What the pseudo-inverse of Nystrom attention is made of."""
    size = 8 if tiny else size
    benchmark.group = f"bmm, 8 pairs of {size} x {size}"
    inputs = random_inputs(device, torch.float32, (8, size, size), (8, size, size))
    _run(measure, bmm, side, inputs, size, 8 * 6 * size**3, rounds=10)


@SIDES
@pytest.mark.parametrize(("queries", "keys"), [(1000, 1000), (10_000, 256), (256, 10_000), (5000, 5000)])
def test_dense_attention(benchmark, measure, device, tiny, queries, keys, side):
    """Between all pairs, and from and to landmarks."""
    queries, keys, heads, width = 20 if tiny else queries, 20 if tiny else keys, 8, 64
    benchmark.group = f"dense_attention, {queries} queries, {keys} keys, {heads} x {width}"
    inputs = random_inputs(device, torch.float32, *[(heads, n, width) for n in (queries, keys, keys)])
    _run(measure, dense_attention, side, inputs, queries, heads * 12 * queries * keys * width, rounds=4)


def _run(measure, op, side, inputs, size, operations, rounds):
    options = {"floor_operations": operations, "baseline": side == "reference", "rounds": rounds}
    run(measure, side, lambda *x: op(*x, backend=side), inputs, [], size, **options)
