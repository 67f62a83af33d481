"""The steps of a training: which bags, in which order, and what the optimiser does with their losses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, Progress
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.bags import as_bags
from mil_zoo.data.prefetch import read_ahead
from mil_zoo.data.splits.split import patient_key
from mil_zoo.kernels.devices import to_device
from mil_zoo.tasks import Task
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.device import batches_on, room_on
from mil_zoo.train.optim import make_optimizer
from mil_zoo.train.predict import mixed, predict
from mil_zoo.train.replay import Replays
from mil_zoo.train.risk_sets import Memory, backward_in_two_passes, memory_of, spread_events
from mil_zoo.train.sampling import draw_instances, epoch_order, subsample

AfterEpoch = Callable[[int, Bag, AggregatorOutput, Tensor], None]


class Diverged(RuntimeError):
    """Training produced a loss or a prediction that is not a number."""


@dataclass
class Steps:
    """What one training run takes its steps with.

    Attributes:
        aggregator: on ``device``.
        train: the training bags.
        strata: ``[n]`` of the training bags.
        weights: ``[n]`` of their losses, or None for one each.
        draws: of the order of slides and of instance subsampling.
        patient_rule: "mean" or "max" where patients of several bags are scored.
        memory: the patients that the loss remembers; None for none.
        kept: batches of one training bag that stay on a GPU from one epoch to the next; None where none does.
        replays: hands steps over as CUDA graphs; None where they are handed over one kernel at a time.
        taken: steps so far.
        seen: training bags of the present epoch that steps were taken with; 0 between two epochs.
        totals: sums of the losses of the present epoch.
        drawn_from: where ``draws`` stood at the start of the present epoch.
    """

    aggregator: Aggregator
    train: Sequence[Bag]
    config: TrainingConfig
    graph: str | None
    device: str
    optimizer: torch.optim.Optimizer
    strata: NDArray[np.int64]
    weights: Tensor | None
    draws: np.random.Generator
    patient_rule: str | None = None
    memory: Memory | None = None
    replays: Replays | None = None
    kept: dict[int, BagBatch] | None = None
    taken: int = 0
    seen: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    drawn_from: Any = None

    @classmethod
    def of(
        cls,
        aggregator: Aggregator,
        train: Sequence[Bag],
        config: TrainingConfig,
        *,
        graph: str | None,
        seed: int,
        device: str,
        patient_rule: str | None = None,
    ) -> Steps:
        targets, task = as_bags(train).targets, aggregator.task
        weights = torch.from_numpy(task.balanced_weights(targets)) if config.class_weights == "balanced" else None
        if task.of_patients and patient_rule in ("mean", "max"):
            shares = torch.from_numpy(_share_of_patient(train))
            weights = shares if weights is None else weights * shares
        remembered = memory_of(config.risk_set)
        steps = cls(
            aggregator=aggregator,
            train=train,
            config=config,
            graph=graph,
            device=device,
            optimizer=make_optimizer(aggregator.parameters(), config),
            strata=task.strata(targets),
            weights=weights,
            draws=np.random.default_rng(seed),
            patient_rule=patient_rule,
            memory=Memory(remembered) if remembered else None,
        )
        if config.risk_set == "batch" and Replays.serve(aggregator, device):
            steps.replays = Replays(aggregator, steps._forward_and_backward)
        if torch.device(device).type == "cuda" and config.bags_per_step == 1 and config.max_instances is None:
            steps.kept = {}
        return steps

    def state(self) -> dict[str, Any]:
        """Where the steps stand: weights and the optimiser's state are kept beside it."""
        memory = None if self.memory is None else self.memory.state()
        drawn_from = self.drawn_from if self.seen else self.draws.bit_generator.state
        place = {"taken": self.taken, "seen": self.seen, "totals": self.totals, "drawn_from": drawn_from}
        return place | {"memory": memory}

    def restore(self, state: dict[str, Any]) -> None:
        """Stands where :meth:`state` was taken."""
        self.taken, self.seen, self.totals = state["taken"], state["seen"], state["totals"]
        self.draws.bit_generator.state = state["drawn_from"]
        if self.memory is not None:
            self.memory.restore(state["memory"])

    def epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Takes the steps of one epoch, or those that are left of it; means of the losses over training slides."""
        self.aggregator.train()
        config, task = self.config, self.aggregator.task
        self.drawn_from = self.draws.bit_generator.state
        order = epoch_order(self.strata, self.config.sampling, self.draws)
        if task.risk_sets:
            order = spread_events(order, as_bags(self.train).targets[:, -1] == 1, config.bags_per_step)
        if not self.seen:
            self.totals = {}
            self.aggregator.start_epoch()
            if self.memory is not None:
                self.memory.clear()
        elif config.max_instances is not None:  # what was drawn for the steps that are taken is drawn again
            sizes = as_bags(self.train).sizes
            for i in order[: self.seen]:
                draw_instances(sizes[i], config.max_instances, self.draws)
        order = order[self.seen :]
        rows = iter(order)
        step: list[BagBatch] = []
        seen = done = 0
        for batch in self._batches(order):
            drawn = list(islice(rows, len(batch)))
            if self.weights is not None:
                batch.weights = to_device(self.weights[drawn], batch.features.device)
            step.append(batch)
            seen += len(batch)
            if config.risk_set == "two_pass" and len(step) < config.bags_per_step and seen < len(order):
                continue
            if self._informative(step):
                taken = sum(map(len, step))
                for name, value in self._step(step, epoch).items():
                    name = name if name == "loss" else f"loss_{name}"
                    self.totals[name] = self.totals.get(name, 0.0) + value * taken
            step = []
            self.seen += seen - done
            done = seen
            if seen < len(order):
                after_step()
        self.seen = 0
        return {name: total / len(self.train) for name, total in self.totals.items()}

    def _batches(self, order: NDArray[np.int64]) -> Iterator[BagBatch]:
        """The batches of an epoch, on the device."""
        if self.kept is None:
            # A graph of all instances need not be ready where only some of them will be used.
            reader = read_ahead(self.train, order, None if self.config.max_instances is not None else self.graph)
            for _, batch in batches_on(self.device, self._groups(reader), self.graph):
                yield batch
            return
        known = [i in self.kept for i in order.tolist()]
        reader = read_ahead(self.train, order[~np.array(known, dtype=bool)], self.graph)
        read = batches_on(self.device, ([bag] for bag in reader), self.graph)
        for i, is_known in zip(order.tolist(), known, strict=True):
            batch = self.kept[i] if is_known else next(read)[1]
            if not is_known and room_on(self.device):
                self.kept[i] = batch
            yield batch

    def _groups(self, reader: Iterator[Bag]) -> Iterator[list[Bag]]:
        """The bags of each pass."""
        limit = self.config.max_instances
        together = 1 if self.config.risk_set == "two_pass" else self.config.bags_per_step
        while bags := list(islice(reader, together)):
            yield bags if limit is None else [subsample(bag, limit, self.draws) for bag in bags]

    def _informative(self, step: list[BagBatch]) -> bool:
        """Whether a step teaches anything; only of a loss that compares patients is it asked."""
        if not self.aggregator.task.risk_sets:
            return True
        targets = np.concatenate([batch.targets.double().cpu().numpy() for batch in step if batch.targets is not None])
        if self.memory is not None and len(known := self.memory.targets()):
            targets = np.concatenate([known, targets])
        return self.aggregator.task.informative(targets)

    def _forward_and_backward(self, batch: BagBatch) -> dict[str, Tensor]:
        with mixed(self.config.precision, self.device):
            losses = (
                self.aggregator.losses(batch) if self.memory is None else self.memory.losses(self.aggregator, batch)
            )
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}

    def _step(self, step: list[BagBatch], epoch: int) -> dict[str, float]:
        self.aggregator.progress = Progress(
            self.taken, -(-len(self.train) // self.config.bags_per_step), self.config.epochs
        )
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.risk_set == "two_pass":
            losses = backward_in_two_passes(self.aggregator, step, lambda: mixed(self.config.precision, self.device))
        else:
            losses = (self.replays or self._forward_and_backward)(*step)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.aggregator.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.aggregator.after_step()
        self.taken += 1
        # Read when all is handed over, and at once: before, a GPU would have to be waited for in the midst of the step.
        values = torch.stack([value.detach().double() for value in losses.values()]).tolist()
        numbers = dict(zip(losses, values, strict=True))
        if not math.isfinite(numbers["loss"]):
            raise Diverged(
                f"the loss became {numbers['loss']} in epoch {epoch} at slide {step[0].slide_ids[0]!r}; "
                "lower training.learning_rate"
            )
        return numbers

    def scores(self, bags: Sequence[Bag], epoch: int, after_epoch: AfterEpoch | None = None) -> dict[str, float]:
        """The task's metrics and its loss of whole bags, "loss"."""
        logits, predictions = [], []
        evaluated = predict(self.aggregator, bags, self.graph, self.device, self.config.precision)
        for bag, output, prediction in evaluated:
            if not (prediction.isfinite().all() or output.logits.isfinite().all()):  # some numbers may be unknown
                raise Diverged(
                    f"the prediction of slide {bag.slide_id!r} is not a number in epoch {epoch}; "
                    "lower training.learning_rate"
                )
            logits.append(self.aggregator.task_logits(output.logits))
            predictions.append(prediction)
            if after_epoch is not None:
                after_epoch(epoch, bag, output, prediction)
        task, targets = self.aggregator.task, as_bags(bags).targets
        together = torch.cat(logits)
        if task.of_patients and self.patient_rule in ("mean", "max"):
            together, targets = of_patients(task, together, bags, self.patient_rule)
            return task.score(targets, task.predict(together).numpy()) | {
                "loss": task.evaluation_loss(together, targets)
            }
        loss = task.evaluation_loss(together, targets)
        return task.score(targets, torch.stack(predictions).double().numpy()) | {"loss": loss}


def of_patients(task: Task, logits: Tensor, bags: Sequence[Bag], rule: str) -> tuple[Tensor, NDArray[np.float64]]:
    """The logits ``[P, width]`` and targets ``[P, T]`` of patients, in the order of their first slides."""
    places: dict[str, list[int]] = {}
    for place, slide in enumerate(as_bags(bags).slides):
        places.setdefault(patient_key(slide), []).append(place)
    values = logits.double().numpy()
    combined = np.stack([task.patient_logits(values[rows], rule) for rows in places.values()])
    return torch.from_numpy(combined), as_bags(bags).targets[[rows[0] for rows in places.values()]]


def _share_of_patient(bags: Sequence[Bag]) -> NDArray[np.float32]:
    """One over the slides of its patient, ``[n]``."""
    patients = [patient_key(slide) for slide in as_bags(bags).slides]
    count = Counter(patients)
    return np.array([1 / count[patient] for patient in patients], dtype=np.float32)
