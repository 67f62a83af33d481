"""A training step of each aggregator on the device against the CPU in float64: losses and every gradient."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from gpu.common import Check, window_graph
from mil_zoo import BagBatch, create_aggregator, list_aggregators
from mil_zoo.aggregators.registry import aggregator_options
from mil_zoo.graph import BagGraph
from mil_zoo.kernels import CSR

FIRST = ("srmil", "abmil", "transmil", "clam_sb", "dsmil")
DIM, SIZES = 96, (300, 700)
ALLOWED = 2e-3  # of the largest entry; the pseudo-inverse of TransMIL and deep stacks amplify float32's rounding


def run(check: Check) -> None:
    """Every registered aggregator, those named first first."""
    from kernel_cases import one_config

    names = [*FIRST, *(name for name in list_aggregators() if name not in FIRST)]
    for i, name in check.mine(names[:5] if check.quick else names):
        with one_config(i):
            check.attempt(name, lambda name=name: _compare(check, name))


def _compare(check: Check, name: str) -> None:
    options = {key: 0.0 for key in aggregator_options(name) if key.endswith("_drop") or key == "dropout"}
    if name == "srmil":  # whose dropout is counter-based: the same on every device
        options = {"cls_drop": 0.0}
    torch.manual_seed(0)
    expected_model = create_aggregator(name, in_dim=DIM, num_classes=2, **options).double().train()
    torch.manual_seed(0)
    model = create_aggregator(name, in_dim=DIM, num_classes=2, **options).to(check.device).train()
    model.load_state_dict({key: value.to(torch.float32) for key, value in expected_model.state_dict().items()})
    expected_model.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    batch = _batch(type(model).graph is not None)
    given = _given(model, batch)
    expected = _step(expected_model, _as(batch, torch.float64, torch.device("cpu")), given)
    got = _step(model, _as(batch, torch.float32, check.device), {k: v.to(check.device) for k, v in given.items()})
    errors = {key: _error(got[key], expected[key], expected.values()) for key in expected}
    worst = max(errors, key=errors.__getitem__)
    check.report(
        name,
        largest_error=errors[worst],
        of_tensor=worst,
        error_of_loss=errors["loss"],
        tensors=len(errors),
        allowed=ALLOWED,
        passed=errors[worst] <= ALLOWED,
    )


def _batch(graph: bool) -> BagBatch:
    generator = torch.Generator().manual_seed(1)
    cpu = torch.device("cpu")
    graphs = [window_graph(n, cpu) for n in SIZES] if graph else []
    cells = torch.cat([torch.arange(n) for n in SIZES])
    return BagBatch(
        features=torch.randn(sum(SIZES), DIM, generator=generator, dtype=torch.float64).float(),
        offsets=torch.tensor([0, *SIZES]).cumsum(0),
        labels=torch.tensor([0, 1]),
        targets=torch.tensor([[0], [1]]),
        coords=torch.stack([cells % 26, cells // 26], dim=1).float() * 256,
        patch_sizes=torch.tensor([256.0, 256.0]),
        graph=BagGraph.batch(graphs) if graph else None,
        slide_ids=("a", "b"),
    )


def _given(model: nn.Module, batch: BagBatch) -> dict[str, Tensor]:
    """What a step would draw at random on its device."""
    known, generator = inspect.signature(model.losses).parameters, torch.Generator().manual_seed(2)
    given = {}
    if "mask" in known:
        starts = batch.offsets[:-1].tolist()
        parts = [s + torch.randperm(n, generator=generator)[: n // 2] for s, n in zip(starts, SIZES, strict=True)]
        given["mask"] = torch.cat(parts)
    if "groups" in known:
        given["groups"] = torch.cat([torch.randperm(n, generator=generator) % 4 for n in SIZES])
    return given


def _as(batch: BagBatch, dtype: torch.dtype, device: torch.device) -> BagBatch:
    moved = batch.to(device)
    moved.features = moved.features.to(dtype)
    if moved.graph is not None:  # of its own: what is derived from one device's graph stays there
        csr = moved.graph.csr
        csr = CSR(csr.indptr.to(device), csr.indices.to(device), csr.num_src)
        moved.graph = BagGraph(csr, moved.graph.num_nodes, moved.graph.num_edges)
    return moved


def _step(model: nn.Module, batch: BagBatch, given: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(3)  # of torch's generator on the CPU, which seeds of dropout come from
    losses = model.losses(batch, **given)
    losses["loss"].backward()
    found = {key: value.detach() for key, value in losses.items()}
    missing = torch.zeros(())
    found |= {f"gradient of {k}": missing if p.grad is None else p.grad for k, p in model.named_parameters()}
    return {key: value.double().cpu() for key, value in found.items()}


def _error(got: Tensor, expected: Tensor, everything) -> float:
    """Relative to the largest entry, or to a thousandth of the largest of all where a gradient vanishes."""
    if got.shape != expected.shape:
        return float("inf")
    largest = max(float(x.abs().max()) for x in everything)
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-3 * largest))
