"""Training of one aggregator."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, AggregatorOutput, Preparation, Progress
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.bags import as_bags
from mil_zoo.data.prefetch import read_ahead
from mil_zoo.data.splits.split import patient_key
from mil_zoo.kernels.devices import to_device
from mil_zoo.tasks import Task
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.device import batches_on
from mil_zoo.train.optim import learning_rate_factor, make_optimizer
from mil_zoo.train.predict import mixed, predict
from mil_zoo.train.risk_sets import Memory, backward_in_two_passes, check_risk_sets, memory_of, spread_events
from mil_zoo.train.sampling import epoch_order, subsample

AfterEpoch = Callable[[int, Bag, AggregatorOutput, Tensor], None]


class Diverged(RuntimeError):
    """Training produced a loss or a prediction that is not a number."""


def fit(
    aggregator: Aggregator,
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: TrainingConfig,
    *,
    graph: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    patient_rule: str | None = None,
    after_epoch: AfterEpoch | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    before_choice: Callable[[], None] | None = None,
    on_stage: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains an aggregator and leaves in it the weights of the epoch that the validation slides choose.

    Args:
        aggregator: freshly created, with the task that says what is predicted; moved to ``device``.
        train: bags to fit, with targets.
        val: bags to choose the checkpoint on, with targets.
        config: optimiser, schedule, budget and selection rule.
        graph: graph spec, or None.
        seed: of the order of slides, dropout, masks and instance subsampling. Same seed, same weights on a CPU.
        device: where the computation runs.
        patient_rule: "mean" or "max" where patients are scored whose slides are several bags: each slide then weighs
            one over the slides of its patient.
        after_epoch: called at the end of each epoch (numbered from 1) that ``config.record`` names, with every training
            bag and its eval-mode output and prediction.
        on_epoch: called with each row of the result as it comes.
        before_choice: called at the end with the last epoch's weights still there, where another epoch is chosen.
        on_stage: called with what a stage before the training did, where the aggregator has one: "stage" ("trained" or
            "read"), "aggregator", "slides" (all that it saw), and of a training "epochs" and the last one's "loss".

    Returns:
        one row an epoch: "epoch", "loss" and each "loss_<term>" (means over training slides), "learning_rate",
        "train_<metric>" of the task's first metric (NaN in epochs that are not recorded), "val_<metric>" and "val_loss"
        (the task's, for classification the cross-entropy), "seconds", and "selected" (1 for the chosen epoch).

    Raises:
        Diverged: a loss or a prediction is not finite.
        InputError: the task has no criterion of the name that ``config`` selects by, or compares patients and a step
            has one.
    """
    check_risk_sets(aggregator.task, config.bags_per_step, config.risk_set)
    torch.manual_seed(seed)
    aggregator.to(device)
    where: dict[str, Any] = {"graph": graph, "seed": seed, "device": device}
    aggregator.prepare(_preparation(aggregator, train, config, on_stage or (lambda row: None), **where))
    steps = _Steps.of(aggregator, train, config, **where, patient_rule=patient_rule)
    schedule = _schedule(steps.optimizer, config)
    task = aggregator.task
    ranks = [_ranking(criterion, task) for criterion in (config.select, config.tie)]
    rows: list[dict[str, Any]] = []
    best: tuple[list[float], dict[str, Tensor]] | None = None
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": steps.optimizer.param_groups[0]["lr"]}
        row |= steps.epoch(epoch)
        schedule.step()
        row["seconds"] = time.perf_counter() - start
        scores = steps.scores(train, epoch, after_epoch) if config.records(epoch) else {}
        row |= {f"train_{metric.name}": scores.get(metric.name, math.nan) for metric in task.metrics[:1]}
        row |= {f"val_{name}": value for name, value in steps.scores(val, epoch).items()}
        rows.append(row)
        if on_epoch is not None:
            on_epoch(row)
        if epoch > config.select_after * config.epochs:
            rank = [rank(row) for rank in ranks]
            blind = all(np.isneginf(rank))  # where no epoch has a score the last one is kept
            if best is None or rank > best[0] or (blind and rank == best[0]):
                best = rank, {name: value.detach().clone() for name, value in aggregator.state_dict().items()}
                chosen = epoch
    assert best is not None
    if all(np.isneginf(best[0])):
        warnings.warn(
            f"validation {config.select} and {config.tie} are undefined in every epoch; the last one is kept",
            stacklevel=2,
        )
    if before_choice is not None and chosen != config.epochs:
        before_choice()
    aggregator.load_state_dict(best[1])
    for row in rows:
        row["selected"] = int(row["epoch"] == chosen)
    return rows


def _preparation(
    aggregator: Aggregator,
    train: Sequence[Bag],
    config: TrainingConfig,
    on_stage: Callable[[dict[str, Any]], None],
    **where: Any,
) -> Preparation:
    """What ``aggregator`` may learn from before its training; each use of the bags is told to ``on_stage``."""

    def told(stage: str, other: Aggregator, **more: Any) -> None:
        slides = [slide.slide_id for slide in as_bags(train).slides]
        on_stage({"stage": stage, "aggregator": type(other).__name__, "slides": slides} | more)

    def train_other(other: Aggregator) -> None:
        other.set_task(aggregator.task)
        steps = _Steps.of(other.to(where["device"]), train, config, **where)
        schedule = _schedule(steps.optimizer, config)
        for epoch in range(1, config.epochs + 1):
            row = steps.epoch(epoch)
            schedule.step()
        told("trained", other, epochs=config.epochs, loss=row["loss"])

    def outputs(other: Aggregator) -> Iterator[AggregatorOutput]:
        told("read", other)
        for _, output, _ in predict(other, train, where["graph"], where["device"], config.precision):
            yield output

    return Preparation(train_other, outputs, where["seed"])


def _schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, config))


@dataclass
class _Steps:
    """What one training run takes its steps with.

    Attributes:
        aggregator: on ``device``.
        train: the training bags.
        strata: ``[n]`` of the training bags.
        weights: ``[n]`` of their losses, or None for one each.
        draws: of the order of slides and of instance subsampling.
        patient_rule: "mean" or "max" where patients of several bags are scored.
        memory: the patients that the loss remembers; None for none.
        taken: steps so far.
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
    taken: int = 0

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
    ) -> _Steps:
        targets, task = as_bags(train).targets, aggregator.task
        weights = torch.from_numpy(task.balanced_weights(targets)) if config.class_weights == "balanced" else None
        if task.of_patients and patient_rule in ("mean", "max"):
            shares = torch.from_numpy(_share_of_patient(train))
            weights = shares if weights is None else weights * shares
        remembered = memory_of(config.risk_set)
        return cls(
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

    def epoch(self, epoch: int) -> dict[str, float]:
        """Takes the steps of one epoch; means of the losses over training slides."""
        self.aggregator.train()
        self.aggregator.start_epoch()
        totals: dict[str, float] = defaultdict(float)
        config, task = self.config, self.aggregator.task
        order = epoch_order(self.strata, self.config.sampling, self.draws)
        if task.risk_sets:
            order = spread_events(order, as_bags(self.train).targets[:, -1] == 1, config.bags_per_step)
        if self.memory is not None:
            self.memory.clear()
        rows = iter(order)
        # A graph of all instances need not be ready where only some of them will be used.
        reader = read_ahead(self.train, order, None if config.max_instances is not None else self.graph)
        step: list[BagBatch] = []
        seen = 0
        for bags, batch in batches_on(self.device, self._groups(reader), self.graph):
            drawn = list(islice(rows, len(bags)))
            if self.weights is not None:
                batch.weights = to_device(self.weights[drawn], batch.features.device)
            step.append(batch)
            seen += len(bags)
            if config.risk_set == "two_pass" and len(step) < config.bags_per_step and seen < len(order):
                continue
            if self._informative(step):
                taken = sum(map(len, step))
                for name, value in self._step(step, epoch).items():
                    totals[name if name == "loss" else f"loss_{name}"] += value.item() * taken
            step = []
        return {name: total / len(self.train) for name, total in totals.items()}

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

    def _step(self, step: list[BagBatch], epoch: int) -> dict[str, Tensor]:
        def context() -> torch.autocast:
            return mixed(self.config.precision, self.device)

        self.aggregator.progress = Progress(
            self.taken, -(-len(self.train) // self.config.bags_per_step), self.config.epochs
        )
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.risk_set == "two_pass":
            losses = backward_in_two_passes(self.aggregator, step, context)
        else:
            (batch,) = step
            with context():
                losses = (
                    self.aggregator.losses(batch) if self.memory is None else self.memory.losses(self.aggregator, batch)
                )
            losses["loss"].backward()
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.aggregator.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.aggregator.after_step()
        self.taken += 1
        # Read when all is handed over: before, a GPU would have to be waited for in the midst of the step.
        if not torch.isfinite(losses["loss"]):
            raise Diverged(
                f"the loss became {losses['loss'].item()} in epoch {epoch} at slide {step[0].slide_ids[0]!r}; "
                "lower training.learning_rate"
            )
        return losses

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


def _ranking(criterion: str, task: Task) -> Callable[[dict[str, Any]], float]:
    """What ranks the row of an epoch: the higher the better, NaN last."""
    if criterion == "last":
        return lambda row: float(row["epoch"])
    sign = 1 if task.higher_is_better(criterion) else -1

    def rank(row: dict[str, Any]) -> float:
        value = float(row[f"val_{criterion}"])
        return float("-inf") if np.isnan(value) else sign * value

    return rank
