"""Time and memory of pooling and reductions over packed bags: ``pytest benchmarks/test_segments.py``.

The floor is as in ``test_kernels``. A batch padded to its longest bag has the floor of packed bags.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_steps import fused, random_inputs, run
from torch import Tensor

from mil_zoo.kernels import segment_attention_pool, segment_reduce


def bags(tiny: bool) -> Tensor:
    """64 sizes, 100 to 30 000 instances, evenly on a logarithmic scale."""
    return torch.from_numpy(np.geomspace(10 if tiny else 100, 20 if tiny else 30_000, 64).astype(np.int64))


@pytest.mark.parametrize("case", ["fused", "fused, bfloat16", "dgl", "torchmil, padded"])
def test_segment_attention_pool(benchmark, measure, device, tiny, case):
    if case == "dgl" and device.type == "cuda":
        pytest.skip("DGL's wheels hold no CUDA code")
    sizes, width = bags(tiny), 512
    size = int(sizes.sum())
    benchmark.group = f"segment_attention_pool, 64 bags, {size} instances, {width} features"
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(device)
    if "padded" in case:
        masked_softmax = pytest.importorskip("torchmil.nn").masked_softmax
        longest = int(sizes.max())
        mask = (torch.arange(longest) < sizes[:, None])[:, :, None].to(device)
        inputs = random_inputs(device, torch.float32, (64, longest, 1), (64, longest, width))

        def function(scores, values):  # as torchmil.nn.AttentionPool does with its scores
            return torch.bmm(values.transpose(1, 2), masked_softmax(scores, mask))

        packed = 2 * 4 * (size * (1 + width) + 64 * width) + offsets.nbytes  # the floor is that of packed bags
        with torch.no_grad():
            grad = torch.randn_like(function(*inputs))
        step = lambda: torch.autograd.grad(function(*inputs), inputs, grad)  # noqa: E731
        measure(step, case, floor_bytes=packed, size=size, baseline=True, rounds=3)
        return
    dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
    inputs = random_inputs(device, dtype, (size, 1), (size, width))
    name = fused("segment_attention_pool", device) if case.startswith("fused") else case

    def function(scores, values):
        return segment_attention_pool(scores, values, offsets, backend=name)[0]

    side = name + case[len(case.partition(",")[0]) :]
    run(measure, side, function, inputs, [offsets], size, baseline=case == "dgl", rounds=4)


@pytest.mark.parametrize("case", ["fused", "reference"])
@pytest.mark.parametrize("reduce", ["mean", "max", "logsumexp"])
def test_segment_reduce(benchmark, measure, device, tiny, reduce, case):
    sizes, width = bags(tiny)[::4], 512
    size = int(sizes.sum())
    benchmark.group = f"segment_reduce {reduce}, 16 bags, {size} instances, {width} features"
    name = fused("segment_reduce", device) if case == "fused" else case
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(device)
    inputs = random_inputs(device, torch.float32, (size, width))

    def function(values):
        return segment_reduce(values, offsets, reduce, backend=name)

    run(measure, name, function, inputs, [offsets], size, baseline=case == "reference", rounds=4)
