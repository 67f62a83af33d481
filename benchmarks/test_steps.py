"""Time and memory of training steps and predictions: ``pytest benchmarks/test_steps.py``.

SRMIL beside its authors' order of work (``literal_srmil``: three passes over DGL's message passing), other aggregators
beside torchmil's models on padded batches. A training step is losses, gradients and a fused AdamW step. The floor
counts the multiplications and additions of the matrix products that no reordering here avoids, and one reading of the
features.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from literal_srmil import create_yardstick

from mil_zoo import Bag, BagBatch, create_aggregator
from mil_zoo.aggregators.srmil.fast import SRMIL

DIM, STEP = 1024, 256


def random_bag(n: int, seed: int = 0) -> Bag:
    """n patches that fill a square of the grid, row after row."""
    side, cells = int((n - 1) ** 0.5) + 1, torch.arange(n)
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    coords = torch.stack([cells % side, cells // side], dim=1) * STEP
    return Bag(features=features, coords=coords, patch_size=STEP, label=seed % 2)


def operations(model: SRMIL, n: int, train: bool) -> int:
    """Of the matrix products of SRMIL on n patches."""
    d, h, heads, seen = model.in_dim, model.encoder_to_decoder.in_features, 4, 1 - model.mask_rate
    first, second = 2 * d * (2 * h + 2 * heads), 2 * h * (h + 2 * heads)  # of a patch, forward
    if not train:  # the reformer folded into the first layer
        return n * first + d * first
    reformer = 2 * n * 2 * d * d  # forward, gradient of the weight
    encoder = 3 * n * 2 * first + (1 + 2 * seen) * n * first + 3 * n * second
    decoder = 3 * seen * n * 2 * h * h + (2 + seen) * n * second + 2 * (1 - seen) * n * 2 * h * d
    return int(reformer + encoder + decoder)


def training_step(model, batch):
    """A function that takes one step in training mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-5, fused=True)

    def step():
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def in_precision(step, dtype: torch.dtype, device: torch.device):
    def run():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return step()

    return run


@pytest.mark.parametrize("side", ["literal", "mil_zoo", "mil_zoo, bfloat16"])
@pytest.mark.parametrize("n", [1000, 10_000])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_srmil(benchmark, measure, device, tiny, train, n, side):
    if side == "literal" and device.type == "cuda":
        pytest.skip("DGL's wheels hold no CUDA code")
    benchmark.group = f"srmil {'training step' if train else 'prediction'}, N = {n}, D = {DIM}"
    n = 50 if tiny else n
    torch.manual_seed(0)
    model = (create_yardstick if side == "literal" else SRMIL)(DIM, 2).to(device).train(train)
    batch = BagBatch.from_bags([random_bag(n)], graph="window:2").to(device)
    dtype = torch.bfloat16 if side.endswith("bfloat16") else torch.float32
    step = training_step(model, batch) if train else torch.inference_mode()(lambda: model(batch))
    measure(
        in_precision(step, dtype, device),
        side,
        floor_bytes=batch.features.nbytes,
        floor_operations=operations(model, n, train),
        dtype=dtype,
        size=n,
        baseline=side == "literal",
        rounds=6 if n > 5000 else 20,
    )


@pytest.mark.parametrize("side", ["torchmil, padded", "mil_zoo"])
@pytest.mark.parametrize("name", ["abmil", "dsmil", "transmil"])
def test_training_step_of_eight_bags(benchmark, measure, device, tiny, name, side):
    benchmark.group = f"{name} training step, 8 bags of 100 to 10 000, D = {DIM}"
    sizes = np.geomspace(100, 10_000, 8).astype(int) // (20 if tiny else 1)
    bags = [random_bag(int(n), seed) for seed, n in enumerate(sizes)]
    if side == "mil_zoo":
        model = create_aggregator(name, in_dim=DIM, num_classes=1).to(device).train()
        step = training_step(model, BagBatch.from_bags(bags).to(device))
    else:
        step = _padded_step(name, bags, device)
    floor_bytes = 4 * DIM * int(sizes.sum())
    measure(step, side, floor_bytes=floor_bytes, size=int(sizes.sum()), baseline=side != "mil_zoo", rounds=3)


def _padded_step(name: str, bags: list[Bag], device: torch.device):
    """A step of torchmil's model on a batch padded to its longest bag."""
    models = pytest.importorskip("torchmil.models")
    create = {
        "abmil": lambda: models.ABMIL((DIM,), att_dim=128),
        "dsmil": lambda: models.DSMIL((DIM,), att_dim=128),
        "transmil": lambda: models.TransMIL((DIM,), att_dim=512),
    }
    model = create[name]().to(device).train()
    features = torch.nn.utils.rnn.pad_sequence([bag.features for bag in bags], batch_first=True).to(device)
    mask = (torch.arange(features.shape[1]) < torch.tensor([len(bag) for bag in bags])[:, None]).to(device)
    labels = torch.tensor([float(bag.label) for bag in bags], device=device)
    options = {} if name == "transmil" else {"mask": mask}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        logits = model(features, **options)
        optimizer.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()

    return step
