"""Training of one aggregator."""

from __future__ import annotations

import math
import time
from collections import defaultdict
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
from mil_zoo.kernels.devices import to_device
from mil_zoo.tasks import Task
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.device import batches_on
from mil_zoo.train.optim import learning_rate_factor, make_optimizer
from mil_zoo.train.predict import mixed, predict
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
        InputError: the task has no criterion of the name that ``config`` selects by.
    """
    torch.manual_seed(seed)
    aggregator.to(device)
    where = {"graph": graph, "seed": seed, "device": device}
    aggregator.prepare(_preparation(aggregator, train, config, on_stage or (lambda row: None), **where))
    steps = _Steps.of(aggregator, train, config, **where)
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
            if best is None or rank > best[0]:
                best = rank, {name: value.detach().clone() for name, value in aggregator.state_dict().items()}
                chosen = epoch
    assert best is not None
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
    ) -> _Steps:
        targets, task = as_bags(train).targets, aggregator.task
        weights = torch.from_numpy(task.balanced_weights(targets)) if config.class_weights == "balanced" else None
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
        )

    def epoch(self, epoch: int) -> dict[str, float]:
        """Takes the steps of one epoch; means of the losses over training slides."""
        self.aggregator.train()
        self.aggregator.start_epoch()
        totals: dict[str, float] = defaultdict(float)
        config, order = self.config, epoch_order(self.strata, self.config.sampling, self.draws)
        rows = iter(order)
        # A graph of all instances need not be ready where only some of them will be used.
        reader = read_ahead(self.train, order, None if config.max_instances is not None else self.graph)
        for bags, batch in batches_on(self.device, self._groups(reader), self.graph):
            drawn = list(islice(rows, len(bags)))
            if self.weights is not None:
                batch.weights = to_device(self.weights[drawn], batch.features.device)
            for name, value in self._step(batch, epoch).items():
                totals[name if name == "loss" else f"loss_{name}"] += value.item() * len(bags)
        return {name: total / len(self.train) for name, total in totals.items()}

    def _groups(self, reader: Iterator[Bag]) -> Iterator[list[Bag]]:
        """The bags of each step."""
        limit = self.config.max_instances
        while bags := list(islice(reader, self.config.bags_per_step)):
            yield bags if limit is None else [subsample(bag, limit, self.draws) for bag in bags]

    def _step(self, batch: BagBatch, epoch: int) -> dict[str, Tensor]:
        self.aggregator.progress = Progress(
            self.taken, -(-len(self.train) // self.config.bags_per_step), self.config.epochs
        )
        with mixed(self.config.precision, self.device):
            losses = self.aggregator.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.aggregator.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.aggregator.after_step()
        self.taken += 1
        # Read when all is handed over: before, a GPU would have to be waited for in the midst of the step.
        if not torch.isfinite(losses["loss"]):
            raise Diverged(
                f"the loss became {losses['loss'].item()} in epoch {epoch} at slide {batch.slide_ids[0]!r}; "
                "lower training.learning_rate"
            )
        return losses

    def scores(self, bags: Sequence[Bag], epoch: int, after_epoch: AfterEpoch | None = None) -> dict[str, float]:
        """The task's metrics and its loss of whole bags, "loss"."""
        logits, predictions = [], []
        evaluated = predict(self.aggregator, bags, self.graph, self.device, self.config.precision)
        for bag, output, prediction in evaluated:
            if not prediction.isfinite().all():
                raise Diverged(
                    f"the prediction of slide {bag.slide_id!r} is not a number in epoch {epoch}; "
                    "lower training.learning_rate"
                )
            logits.append(self.aggregator.task_logits(output.logits))
            predictions.append(prediction)
            if after_epoch is not None:
                after_epoch(epoch, bag, output, prediction)
        task, targets = self.aggregator.task, as_bags(bags).targets
        loss = task.evaluation_loss(torch.cat(logits), targets)
        return task.score(targets, torch.stack(predictions).double().numpy()) | {"loss": loss}


def _ranking(criterion: str, task: Task) -> Callable[[dict[str, Any]], float]:
    """What ranks the row of an epoch: the higher the better, NaN last."""
    if criterion == "last":
        return lambda row: float(row["epoch"])
    sign = 1 if task.higher_is_better(criterion) else -1

    def rank(row: dict[str, Any]) -> float:
        value = float(row[f"val_{criterion}"])
        return float("-inf") if np.isnan(value) else sign * value

    return rank
