"""Fixtures that several test folders share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mil_zoo import Bag, BagBatch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data in MIL_ZOO_REAL_DATA: unset, the test is skipped; set but missing, it fails."""
    variable = os.environ.get("MIL_ZOO_REAL_DATA")
    if not variable:
        pytest.skip("MIL_ZOO_REAL_DATA is not set")
    folder = Path(variable)
    assert folder.is_dir(), f"MIL_ZOO_REAL_DATA is {variable}, which is not a folder"
    return folder


def make_bag(n: int, dim: int, label: int = 0, seed: int = 0, name: str = "") -> Bag:
    """A random bag on a patch grid with about a fifth of the sites empty."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(1.25 * n)))
    sites = rng.choice(side * side, n, replace=False)
    return Bag(
        features=torch.from_numpy(rng.normal(size=(n, dim)).astype(np.float32)),
        coords=np.stack([sites % side, sites // side], axis=1) * 256.0,
        patch_size=256.0,
        label=label,
        instance_labels=rng.integers(0, 2, n) if label else np.zeros(n),
        slide_id=name or f"slide_{seed}",
    )


def make_batch(sizes: list[int], dim: int, graph: str | None, labels: list[int] | None = None) -> BagBatch:
    """Random bags of the given sizes, packed."""
    labels = labels or [i % 2 for i in range(len(sizes))]
    bags = [make_bag(n, dim, label, seed=i) for i, (n, label) in enumerate(zip(sizes, labels, strict=True))]
    return BagBatch.from_bags(bags, graph=graph)


def relative_error(got: object, expected: object) -> float:
    """Largest absolute difference over the largest absolute expected entry."""
    got, expected = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    assert got.shape == expected.shape, f"{list(got.shape)} where {list(expected.shape)} was expected"
    scale = expected.abs().max().clamp(min=1e-12)
    return float((got - expected).abs().max() / scale)
