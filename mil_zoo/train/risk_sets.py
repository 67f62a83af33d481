"""Steps of a loss that is about pairs of patients, where a step cannot hold many bags.

The Cox and the ranking loss compare a patient with those at risk at the time of the event: one bag a step has nobody to
be compared with. ``training.risk_set`` says how a step gets its risk set:

- "batch": the ``bags_per_step`` bags of a step are packed in one pass
- "two_pass": the same loss and gradient at the memory of one bag (gradient caching, Gao et al., arXiv 2101.06983): each
  bag is scored without a graph, the loss of all logits gives the gradient of each, and each bag is passed again, with
  the same random numbers, and its gradient goes backward
- "memory:M": the last M patients' logits are constants beside the step's own; biased, since these logits are of older
  weights

Aggregators ask their task for its loss, several times a step where their paper does (branches, tiers, masked paths), so
the task is what is replaced: each call of a step is one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.tasks import Task

Call = tuple[Tensor, Tensor, Tensor | None]  # logits, targets, weights
WAYS_OUT = (
    "raise training.bags_per_step (--set bags_per_step=16), or keep it and set risk_set=two_pass with more bags, or "
    "risk_set=memory:64"
)


def memory_of(risk_set: str) -> int:
    """M of "memory:M", 0 of the other ways.

    Raises:
        InputError: neither "batch", "two_pass" nor "memory:" and a positive number.
    """
    if risk_set in ("batch", "two_pass"):
        return 0
    name, _, number = risk_set.partition(":")
    if name != "memory" or not number.isdigit() or int(number) < 1:
        raise InputError(f"training.risk_set must be batch, two_pass or memory:M (memory:64), not {risk_set!r}")
    return int(number)


def check_risk_sets(task: Task, bags_per_step: int, risk_set: str) -> None:
    """Raises an ``InputError`` where a step has one patient and the loss is about pairs of them, or names no way."""
    memory = memory_of(risk_set)
    if task.risk_sets and bags_per_step == 1 and not memory:
        raise InputError(f"the task {task.name} compares patients, and one bag a step has none to compare: {WAYS_OUT}")
    if risk_set != "batch" and not task.risk_sets:
        raise InputError(f"the task {task.name} compares no patients; leave risk_set={risk_set} out")


def spread_events(order: NDArray[np.int64], event: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """A random order rearranged so that every ``size`` bags in a row hold their share of those with the event.

    Args:
        order: places of the bags.
        event: ``[n]`` of every bag.
        size: bags of a step.
    """
    steps = -(-len(order) // size)
    dealt: list[list[int]] = [[] for _ in range(steps)]
    room = [size] * (steps - 1) + [len(order) - size * (steps - 1)]
    turn = 0
    for place in [*order[event[order]].tolist(), *order[~event[order]].tolist()]:
        while len(dealt[turn % steps]) >= room[turn % steps]:
            turn += 1
        dealt[turn % steps].append(place)
        turn += 1
    return np.array([place for step in dealt for place in step], dtype=np.int64)


class _Replaced(Task):
    """A task with another loss; all else is asked of the task itself."""

    def __init__(self, task: Task, loss: Callable[..., Tensor]) -> None:
        self._task, self._loss = task, loss

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return self._loss(logits, targets, weights)

    def __getattribute__(self, name: str) -> Any:
        if name in ("_task", "_loss", "loss", "__class__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_task"), name)


def _with_loss(aggregator: Aggregator, loss: Callable[..., Tensor], batch: BagBatch) -> dict[str, Tensor]:
    """The losses of a batch, its task's replaced by another."""
    task = aggregator.task
    aggregator.task = _Replaced(task, loss)
    try:
        return aggregator.losses(batch)
    finally:
        aggregator.task = task


class Memory:
    """The logits of the last patients, constants beside those of a step; one memory for each loss of an aggregator.

    Args:
        size: M.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.clear()

    def clear(self) -> None:
        """Forgets all, as at the start of an epoch."""
        self._kept: dict[int, deque[tuple[Tensor, Tensor]]] = {}

    def state(self) -> list[Any]:
        """What is remembered, of every loss the logits and targets."""
        return [[number, *map(list, zip(*kept, strict=True))] for number, kept in self._kept.items() if kept]

    def restore(self, state: Sequence[Any]) -> None:
        """Remembers what :meth:`state` gave."""
        self._kept = {
            number: deque(zip(logits, targets, strict=True), maxlen=self._size) for number, logits, targets in state
        }

    def targets(self) -> NDArray[np.float64]:
        """The targets ``[m, T]`` that are remembered for the first loss."""
        kept = self._kept.get(0, ())
        return np.array([target.double().cpu().numpy() for _, target in kept])

    def losses(self, aggregator: Aggregator, batch: BagBatch) -> dict[str, Tensor]:
        """``aggregator.losses(batch)`` in which remembered patients take part."""
        number = 0

        def loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
            nonlocal number
            kept = self._kept.setdefault(number, deque(maxlen=self._size))
            number += 1
            old = [*kept]
            kept.extend(zip(logits.detach(), targets, strict=True))
            if not old:
                return task.loss(logits, targets, weights)
            ones = logits.new_ones(len(old))
            return task.loss(
                torch.cat([torch.stack([row for row, _ in old]), logits]),
                torch.cat([torch.stack([target for _, target in old]), targets]),
                None if weights is None else torch.cat([ones, weights]),
            )

        task = aggregator.task
        return _with_loss(aggregator, loss, batch)


def backward_in_two_passes(
    aggregator: Aggregator, batches: Sequence[BagBatch], context: Callable[[], Any]
) -> dict[str, Tensor]:
    """Adds the gradient of the losses of all ``batches`` together to the parameters, one batch in memory at a time.

    Args:
        aggregator: whose losses are sums of the task's and of means over bags.
        batches: of one bag each.
        context: makes the context of a pass (mixed precision).

    Returns:
        the losses of all of them, without graph: the task's of all, other terms as means over bags.
    """
    task, states, calls = aggregator.task, [], []
    for batch in batches:
        states.append(_random_state(batch))
        of_batch: list[Call] = []

        def record(logits: Tensor, targets: Tensor, weights: Tensor | None, to: list[Call] = of_batch) -> Tensor:
            to.append((logits.detach(), targets, weights))
            return logits.sum(1) * 0

        with torch.no_grad(), context():
            _with_loss(aggregator, record, batch)
        calls.append(of_batch)
    values, gradients = [], []
    for same in zip(*calls, strict=True):
        logits = torch.cat([call[0] for call in same]).requires_grad_()
        weights = None if same[0][2] is None else torch.cat([call[2] for call in same])
        value = task.loss(logits, torch.cat([call[1] for call in same]), weights).mean()
        (gradient,) = torch.autograd.grad(value, logits)
        values.append(value.detach())
        gradients.append(gradient.split([len(call[0]) for call in same]))
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        place = 0

        def surrogate(logits: Tensor, targets: Tensor, weights: Tensor | None, of: int = number) -> Tensor:
            """Its value is the loss of all, and its gradient, of the mean over batches, that of the loss of all."""
            nonlocal place
            own = (gradients[place][of] * logits).sum() * len(batches)
            found = values[place] + own - own.detach()
            place += 1
            return found.expand(len(logits))

        _restore(states[number], batch)
        with context():
            losses = _with_loss(aggregator, surrogate, batch)
        (losses["loss"] / len(batches)).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach() / len(batches)
    return totals


def _random_state(batch: BagBatch) -> tuple[Tensor, Tensor | None]:
    device = batch.features.device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[Tensor, Tensor | None], batch: BagBatch) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], batch.features.device)
