"""Prediction with one aggregator: whole bags, in eval mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import Bag
from mil_zoo.data.prefetch import read_ahead
from mil_zoo.train.device import batches_on

# Packing copies, which takes longer than the call that it saves where bags have thousands of instances.
PACK = 4096  # instances scored together
ALONE = 1024  # instances of a bag that is not packed


def mixed(precision: str, device: str) -> torch.autocast:
    """The context in which matrix products are taken in ``precision``, "float32" or "bfloat16"."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def predict(
    aggregator: Aggregator,
    bags: Iterable[Bag],
    graph: str | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Iterator[tuple[Bag, AggregatorOutput, Tensor]]:
    """Scores whole bags in eval mode and without gradients. The aggregator's mode is restored.

    Bags of fewer than ``ALONE`` instances that follow each other are packed, up to ``PACK`` together; a larger one is
    scored alone and not copied. A bag gives the same answer either way.

    Args:
        aggregator: on ``device``.
        bags: with a target or not; read as they are needed.
        graph: graph spec, or None.
        device: where the computation runs.
        precision: of matrix products, "float32" or "bfloat16".

    Yields:
        each bag, its own output (tensors on the CPU), and its prediction ``[P]``, of classification the class
        probabilities ``[C]``.
    """
    was_training = aggregator.training
    aggregator.eval()
    try:
        reader = read_ahead(bags, graph=graph) if isinstance(bags, Sequence) else bags
        for packed, batch in batches_on(device, _packs(reader), graph):
            with torch.inference_mode(), mixed(precision, device):
                output = aggregator(batch)
                predictions = aggregator.predict(output.logits).cpu()
            yield from zip(packed, _split(output, packed), predictions, strict=True)
    finally:
        aggregator.train(was_training)


def _packs(bags: Iterable[Bag]) -> Iterator[list[Bag]]:
    pack: list[Bag] = []
    together = 0  # instances of the pack
    for bag in bags:
        size = len(bag)
        if pack and (size >= ALONE or together + size > PACK):
            yield pack
            pack, together = [], 0
        pack.append(bag)
        together += size
        if size >= ALONE:
            yield pack
            pack, together = [], 0
    if pack:
        yield pack


def _split(output: AggregatorOutput, bags: Sequence[Bag]) -> list[AggregatorOutput]:
    """The output of each bag of a batch, on the CPU."""
    sizes = [len(bag) for bag in bags]
    parts: dict[str, Any] = {
        name: [None] * len(bags)
        if value is None
        else _full(value.cpu()).split(1 if name in ("logits", "embedding") else sizes)
        for name, value in vars(output).items()
    }
    return [AggregatorOutput(**{name: values[i] for name, values in parts.items()}) for i in range(len(bags))]


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype.itemsize < 4 else value
