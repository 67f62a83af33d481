"""Training of one aggregator."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, Preparation
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.tasks import Task
from mil_zoo.train.checkpoint import Checkpoint
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.optim import learning_rate_factor
from mil_zoo.train.predict import predict
from mil_zoo.train.risk_sets import check_risk_sets
from mil_zoo.train.steps import AfterEpoch, Steps


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
    checkpoint: Checkpoint | None = None,
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
        checkpoint: where a training that is killed finds what it needs to continue as if nothing had happened; None
            for none. A stage before the training is done again where it was not at its end.

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
    checkpoint = checkpoint or Checkpoint(None)
    state = checkpoint.load(device)
    where: dict[str, Any] = {"graph": graph, "seed": seed, "device": device}
    if state is None:
        aggregator.prepare(_preparation(aggregator, train, config, on_stage or (lambda row: None), **where))
    steps = Steps.of(aggregator, train, config, **where, patient_rule=patient_rule)
    schedule = _schedule(steps.optimizer, config)
    task = aggregator.task
    ranks = [_ranking(criterion, task) for criterion in (config.select, config.tie)]
    rows: list[dict[str, Any]] = []
    best: tuple[list[float], dict[str, Tensor]] | None = None
    chosen, spent, finished = 0, 0.0, False  # spent: seconds of the epoch that a checkpoint broke off
    if state is not None:
        rows, chosen, spent, finished = (state[name] for name in ("rows", "chosen", "spent", "finished"))
        aggregator.load_state_dict(state["weights"])
        best = None if state["best"] is None else (state["best"]["rank"], state["best"]["weights"])
        if not finished:
            steps.optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            steps.restore(state["steps"])

    def save(spent: float, finished: bool = False) -> None:
        kept: dict[str, Any] = {"rows": rows, "chosen": chosen, "spent": spent, "finished": finished}
        kept["best"] = None if best is None else {"rank": best[0], "weights": best[1]}
        kept["weights"] = aggregator.state_dict()
        if not finished:
            kept |= {"optimizer": steps.optimizer.state_dict(), "schedule": schedule.state_dict()}
            kept["steps"] = steps.state()
        checkpoint.save(kept, device)

    for epoch in range(len(rows) + 1, config.epochs + 1):
        if finished:
            break
        start = time.perf_counter() - spent

        def after_step(start: float = start) -> None:
            if checkpoint.due(within_epoch=True):
                save(time.perf_counter() - start)

        row: dict[str, Any] = {"epoch": epoch, "learning_rate": steps.optimizer.param_groups[0]["lr"]}
        row |= steps.epoch(epoch, after_step)
        schedule.step()
        row["seconds"], spent = time.perf_counter() - start, 0.0
        validation = {f"val_{name}": value for name, value in steps.scores(val, epoch).items()}
        values = [ranks[0](each) for each in [*rows, row | validation]]
        finished = epoch == config.epochs or (
            config.out_of_patience(values, epoch) and epoch > config.select_after * config.epochs
        )
        scores = steps.scores(train, epoch, after_epoch) if config.records(epoch, finished) else {}
        row |= {f"train_{metric.name}": scores.get(metric.name, math.nan) for metric in task.metrics[:1]}
        row |= validation
        rows.append(row)
        if on_epoch is not None:
            on_epoch(row)
        if epoch > config.select_after * config.epochs:
            rank = [rank(row) for rank in ranks]
            blind = all(np.isneginf(rank))  # where no epoch has a score the last one is kept
            if best is None or rank > best[0] or (blind and rank == best[0]):
                best = rank, {name: value.detach().clone() for name, value in aggregator.state_dict().items()}
                chosen = epoch
        if checkpoint.due(within_epoch=False, finished=finished):
            save(0.0, finished)
    assert best is not None
    if all(np.isneginf(best[0])):
        warnings.warn(
            f"validation {config.select} and {config.tie} are undefined in every epoch; the last one is kept",
            stacklevel=2,
        )
    if before_choice is not None and chosen != len(rows):
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
        steps = Steps.of(other.to(where["device"]), train, config, **where)
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


def _ranking(criterion: str, task: Task) -> Callable[[dict[str, Any]], float]:
    """What ranks the row of an epoch: the higher the better, NaN last."""
    if criterion == "last":
        return lambda row: float(row["epoch"])
    sign = 1 if task.higher_is_better(criterion) else -1

    def rank(row: dict[str, Any]) -> float:
        value = float(row[f"val_{criterion}"])
        return float("-inf") if np.isnan(value) else sign * value

    return rank
