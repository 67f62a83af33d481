"""Functions that several test modules share."""

from pathlib import Path

import numpy as np
import torch

from mil_zoo import Aggregator, Bag, BagBatch, create_aggregator

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # of golden values: largest difference over largest entry


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
    got, expected = torch.as_tensor(got).detach().double(), torch.as_tensor(expected).detach().double()
    assert got.shape == expected.shape, f"{list(got.shape)} where {list(expected.shape)} was expected"
    scale = expected.abs().max().clamp(min=1e-12)
    return float((got - expected).abs().max() / scale)


class Golden:
    """A file of golden values: arrays by name, and the authors' parameters and gradients."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.parameters = {k.removeprefix("param/"): v for k, v in self.arrays.items() if k.startswith("param/")}
        self.gradients = {k.removeprefix("grad/"): v for k, v in self.arrays.items() if k.startswith("grad/")}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def bag(self, **more: object) -> Bag:
        """The golden slide."""
        return Bag(features=self["feat"], label=int(self["label"]), slide_id="golden", **more)

    def create(self, name: str, in_dim: int | None = None, **options: object) -> Aggregator:
        """The aggregator with the golden parameters, in eval mode."""
        aggregator = create_aggregator(name, in_dim=in_dim or self["feat"].shape[1], **options)
        aggregator.load_published_state_dict(self.parameters)
        return aggregator.eval()


def assert_close(got: object, expected: object, what: str = "") -> None:
    """Within ``TOLERANCE`` of the largest expected entry."""
    error = relative_error(got, expected)
    assert error < TOLERANCE, f"{what} differs by {error:.2g}"


def assert_gradients(aggregator: Aggregator, golden: Golden, name: str, **options: object) -> None:
    """Every gradient of ``aggregator``, tensor by tensor, against the golden ones loaded into a twin."""
    twin = create_aggregator(name, in_dim=aggregator.in_dim, **options)
    twin.load_published_state_dict(golden.gradients)
    expected = dict(twin.named_parameters())
    for key, parameter in aggregator.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        # A gradient that vanishes (the bias before a softmax) is rounding on both sides.
        if expected[key].abs().max() < 1e-7:
            assert parameter.grad.abs().max() < 1e-6, key
        else:
            assert_close(parameter.grad, expected[key], f"gradient of {key}")
