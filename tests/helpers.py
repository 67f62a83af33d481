"""Functions that several test modules share."""

import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mil_zoo import Aggregator, Bag, BagBatch, create_aggregator
from mil_zoo.bench.processes import fresh_interpreters
from mil_zoo.graph import BagGraph
from mil_zoo.kernels import CSR, available_backends

GOLDEN = Path(__file__).parent / "golden"
# Where DGL can be installed these tests fail without it.
needs_dgl = pytest.mark.skipif(sys.version_info >= (3, 13), reason="DGL's wheels stop at Python 3.12")
TOLERANCE = 1e-4  # of golden values: largest difference over largest entry


def in_fresh_interpreter(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of a module in a process that has imported torch and the like, and nothing of this one."""
    with ProcessPoolExecutor(1, fresh_interpreters()) as process:
        return process.submit(function, *arguments).result()


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


class GoldenArray(np.ndarray):
    """An array of golden values that knows its file and its name there, also when it is indexed or transposed."""

    source: tuple[str, str] | None = None

    def __array_finalize__(self, origin: object) -> None:
        self.source = getattr(origin, "source", None)


class Golden:
    """A file of golden values: arrays by name, and the authors' parameters and gradients."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.parameters = {k.removeprefix("param/"): v for k, v in self.arrays.items() if k.startswith("param/")}
        self.gradients = {k.removeprefix("grad/"): v for k, v in self.arrays.items() if k.startswith("grad/")}

    def __getitem__(self, key: str) -> GoldenArray:
        array = self.arrays[key].view(GoldenArray)
        array.source = (self.name, key)
        return array

    def bag(self, **more: object) -> Bag:
        """The golden slide."""
        return Bag(**{"features": self["feat"], "label": int(self["label"]), "slide_id": "golden"} | more)

    def batch(self, graph: str | CSR | None = None, **more: object) -> BagBatch:
        """The golden slide with its coordinates and a graph, by its spec or of its own edges (``golden.edges``)."""
        bag = self.bag(**{"coords": self["coords"], "patch_size": float(self["patch_size"])} | more)
        if not isinstance(graph, CSR):
            return BagBatch.from_bags([bag], graph=graph)
        return replace(BagBatch.from_bags([bag]), graph=BagGraph.batch([graph]))

    @property
    def edges(self) -> CSR:
        """The edges that the golden values were computed with."""
        return CSR.from_edges(*torch.from_numpy(self["edges"]).long(), len(self["feat"]))

    def first_bags(self) -> list[Bag]:
        """Bags of the first instances of the golden slide, as many as ``first_sizes`` says."""
        return [self.bag().subset(torch.arange(int(size))) for size in self["first_sizes"]]

    def create(self, name: str, in_dim: int | None = None, **options: object) -> Aggregator:
        """The aggregator with the golden parameters, in eval mode."""
        aggregator = create_aggregator(name, in_dim=in_dim or self["feat"].shape[1], **options)
        aggregator.load_published_state_dict(self.parameters)
        return aggregator.eval()


COMPARISONS: list[tuple[str, str, str, float]] = []
"""Of every comparison with golden values: their file, what was compared, a detail, and the relative error."""


def assert_close(got: object, expected: object, what: str = "") -> None:
    """Within ``TOLERANCE`` of the largest expected entry."""
    error = relative_error(got, expected)
    if isinstance(expected, GoldenArray) and expected.source is not None:
        file, key = expected.source
        together = "in a batch" in what or "::test_inside_a_batch" in os.environ.get("PYTEST_CURRENT_TEST", "")
        COMPARISONS.append((file, f"{key}, in a batch" if together else key, "", error))
    assert error < TOLERANCE, f"{what} differs by {error:.2g}"


def compared(file: str, what: str, got: object, expected: object) -> None:
    """Keeps, for the page of parity, how near a number of ours comes to a golden one; undefined ones do not count."""
    ours, theirs = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (got, expected))
    scale = np.abs(theirs[~np.isnan(theirs)]).max(initial=0)
    if not np.isnan(theirs).all():
        COMPARISONS.append((file, what, "", float(np.nanmax(np.abs(ours - theirs)) / max(scale, 1e-12))))


def assert_gradients(aggregator: Aggregator, golden: Golden, name: str, **options: object) -> None:
    """Every gradient of ``aggregator``, tensor by tensor, against the golden ones loaded into a twin."""
    twin = create_aggregator(name, in_dim=aggregator.in_dim, **options)
    twin.load_published_state_dict(golden.parameters | golden.gradients)  # buffers have no gradient
    expected = dict(twin.named_parameters())
    for key, parameter in aggregator.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        # A gradient that vanishes (the bias before a softmax) is rounding on both sides.
        if expected[key].abs().max() < 1e-7:
            assert parameter.grad.abs().max() < 1e-6, key
        else:
            error = relative_error(parameter.grad, expected[key])
            COMPARISONS.append((golden.name, "gradients", key, error))
            assert error < TOLERANCE, f"gradient of {key} differs by {error:.2g}"


def parity_table() -> str:
    """``COMPARISONS`` as Markdown: one row for each array of golden values, one for all gradients of a file."""
    compared: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for file, what, detail, error in sorted(COMPARISONS):
        compared.setdefault((file, what), []).append((error, detail))
    rows = []
    for (file, what), errors in compared.items():
        error, detail = max(errors)
        count = f" of {len({name for _, name in errors})} tensors (worst: `{detail}`)" if what == "gradients" else ""
        rows.append(f"| `{file}` | {what}{count} | {error:.1e} |")
    kernels = "numba" if "numba" in available_backends() else "reference"
    versions = f"torch {torch.__version__.split('+')[0]}, {kernels} kernels"
    return f"""# Parity with the authors' code

What each aggregator computes with given weights, against what its authors' own code computes with them, and what losses
and metrics of survival come to, against values computed apart (the files in `tests/golden/`). These are the very
comparisons of the tests: the largest absolute difference over the largest absolute entry. A test fails at
{TOLERANCE:.0e}, of survival and of losses at 1e-9. Gradients are compared tensor by tensor; those that vanish (a bias
before a softmax) are only required to.

Measured by `make parity` in float32, of survival and of losses in float64, on a CPU ({platform.machine()}), {versions}.

| golden values | compared | largest relative error |
|---|---|---:|
{chr(10).join(rows)}
"""
