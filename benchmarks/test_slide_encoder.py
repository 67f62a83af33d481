"""Slides a second of the sparse slide encoder, forward and backward: ``pytest benchmarks/test_slide_encoder.py``.

Beside it the same encoder by dense convolutions over each slide's bounding grid (T instances drawn from a square of
10 000 patches). ``extra_info`` holds slides a second, the operations of the multiplications that the sparse encoder
needs, and how many it does a second beside those of one large matrix product in this run: the floor.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo import Bag, BagBatch
from mil_zoo.graph.sites import Sites
from mil_zoo.ssl import SparseSlideEncoder
from mil_zoo.ssl.encoder import _grid_size

IN_DIM, OUT_DIM, STEP, SIDE = 256, 512, 256.0, 100
# Instances a slide, slides of a sparse step, of a dense one: a batch of 64 dense grids takes several GB.
CASES = [(5, 64, 2), (256, 4, 2)]


@pytest.fixture(scope="module")
def product_rate() -> float:
    """Multiply-adds a second of a matrix product."""
    a, b, seconds = torch.randn(2048, 512), torch.randn(512, 512), []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return a.shape[0] * b.numel() / min(seconds)


def slides(instances: int, number: int) -> BagBatch:
    rng = np.random.default_rng(0)
    return BagBatch.from_bags(
        [
            Bag(
                features=rng.normal(size=(instances, IN_DIM)).astype(np.float32),
                coords=rng.integers(0, SIDE, (instances, 2)) * STEP,
                patch_size=STEP,
            )
            for _ in range(number)
        ]
    )


class DenseEncoder(nn.Module):
    """The same layers over the whole grid, empty sites kept at zero and out of the batch statistics."""

    def __init__(self, sparse: SparseSlideEncoder) -> None:
        super().__init__()
        self.sparse = sparse

    def forward(self, image: Tensor, active: Tensor) -> Tensor:
        block0, block1 = self.sparse.block0, self.sparse.block1
        out = F.max_pool2d(active, 3, 2)
        h = F.relu(self._norm(F.conv2d(image, _kernel(block0.conv1), stride=2), block0.norm1, out))
        h = self._norm(F.conv2d(h * out, _kernel(block0.conv2), padding=1), block0.norm2, out)
        x = F.conv2d(F.avg_pool2d(image, 3, 2), _kernel(block0.convd))
        x = F.relu(h + self._norm(x, block0.normd, out)) * out
        h = F.relu(self._norm(F.conv2d(x, _kernel(block1.conv1), padding=1), block1.norm1, out))
        h = self._norm(F.conv2d(h * out, _kernel(block1.conv2), padding=1), block1.norm2, out)
        return (F.relu(h + x) * out).sum((2, 3)) / out.sum((2, 3))

    @staticmethod
    def _norm(x: Tensor, layer: nn.Module, active: Tensor) -> Tensor:
        count = active.sum()
        mean = (x * active).sum((0, 2, 3), keepdim=True) / count
        var = ((x - mean).square() * active).sum((0, 2, 3), keepdim=True) / count
        scale, shift = (p[None, :, None, None] for p in (layer.weight, layer.bias))
        return (x - mean) * (var + layer.eps).rsqrt() * scale + shift


def _kernel(weight: Tensor) -> Tensor:
    side = int(len(weight) ** 0.5)
    return weight.unflatten(0, (side, side)).permute(3, 2, 0, 1)


def images(batch: BagBatch) -> tuple[Tensor, Tensor]:
    """``[B, D, w, h]``: mean features of the sites, and ``[B, 1, w, h]``: which are occupied."""
    sites, site_of_instance = Sites.of(batch.coords, batch.offsets, STEP)
    slide, x, y = sites.columns
    width, height = _grid_size(sites.extent).tolist()
    counts = torch.bincount(site_of_instance, minlength=len(sites))
    features = torch.zeros(len(sites), IN_DIM).index_add(0, site_of_instance, batch.features) / counts[:, None]
    image, active = torch.zeros(len(batch), width, height, IN_DIM), torch.zeros(len(batch), width, height, 1)
    image[slide, x, y], active[slide, x, y] = features, 1.0
    return image.permute(0, 3, 1, 2), active.permute(0, 3, 1, 2)


def multiply_adds(batch: BagBatch) -> int:
    """Of the convolutions, forward."""
    sites, _ = Sites.of(batch.coords, batch.offsets, STEP)
    out, strided = sites.strided(_grid_size(sites.extent))
    inner = len(out.neighbours().src)
    return (len(strided.src) + len(out)) * IN_DIM * OUT_DIM + 3 * inner * OUT_DIM**2


@pytest.mark.parametrize("side", ["sparse", "dense"])
@pytest.mark.parametrize(("instances", "sparse", "dense"), CASES)
def test_slide_encoder(benchmark, product_rate, side, instances, sparse, dense):
    number = sparse if side == "sparse" else dense
    benchmark.group = f"slide encoder, slides of {instances} instances on a grid of {SIDE} x {SIDE}"
    torch.manual_seed(0)
    batch = slides(instances, number)
    encoder = SparseSlideEncoder(IN_DIM, OUT_DIM, downsample=STEP)
    over_grid = DenseEncoder(encoder)

    def step():
        encoder.zero_grad()
        embedding = encoder(batch) if side == "sparse" else over_grid(*images(batch))
        embedding.square().sum().backward()

    if side == "dense":
        torch.testing.assert_close(over_grid(*images(batch)), encoder(batch), rtol=1e-3, atol=1e-4)
    benchmark.pedantic(step, rounds=2 if side == "dense" else 5, warmup_rounds=int(side == "sparse"))
    fastest = benchmark.stats.stats.min
    needed = 3 * multiply_adds(batch)  # forward, gradients of inputs and of weights
    benchmark.extra_info.update(
        threads=torch.get_num_threads(),
        slides_per_second=round(number / fastest, 2),
        multiply_adds=needed,
        times_the_floor=round(fastest / (needed / product_rate), 2),
    )
