"""How long a plan will take on this machine: measured on a few of its slides before anything is run."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.registry import create_aggregator
from mil_zoo.bench.models import ModelPlan
from mil_zoo.bench.parts import split_bags
from mil_zoo.bench.plan import Plan
from mil_zoo.bench.trial import trial_threads
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.tasks import Task
from mil_zoo.train.device import default_device
from mil_zoo.train.loop import fit
from mil_zoo.train.protocols import PROTOCOLS

SAMPLE = 4  # slides


@dataclass(frozen=True)
class Forecast:
    """What the trials of one model will take.

    Attributes:
        label: ``aggregator[@grid]``.
        trials: how many are still to run.
        epochs: budget of each.
        seconds: of one trial; NaN for a model that is no supervised aggregator, or one that failed when measured.
        recording: share of it that scores training slides for figure 3, see ``TrainingConfig.record``.
        reason: why there is no number.
        failed: whether the model failed when it was measured, as its trials would.
    """

    label: str
    trials: int
    epochs: int
    seconds: float
    recording: float = 0.0
    reason: str = ""
    failed: bool = False


def forecast(plan: Plan, done: Collection[str] = ()) -> list[Forecast]:
    """Measures one short epoch of every model on ``SAMPLE`` training slides of evenly spread sizes.

    A trial is taken to cost, every epoch, a training step of each training slide and an evaluation of each validation
    slide, and in the epochs that are recorded an evaluation of each training slide, all as long as those of the sample;
    reading slides is in it, scoring test slides is not.

    Args:
        plan: what would be run.
        done: ids of trials that a run directory holds already.
    """
    bags, _ = split_bags(plan.dataset, plan.splits[0], project=plan.suite.project)
    sizes = bags["train"].sizes
    spread = np.linspace(0, len(sizes) - 1, min(SAMPLE + 2, len(sizes))).round().astype(int)
    chosen = np.argsort(sizes, kind="stable")[spread[1:-1] if len(spread) > 2 else spread]
    sample = [bags["train"][int(i)] for i in chosen]
    task = plan.dataset.task.fit(as_bags(bags["train"]).targets)
    estimates = []
    for model in plan.models:
        left = sum(trial.model is model and trial.id not in done for trial in plan.trials)
        found = Forecast(model.label, left, model.training.epochs, float("nan"))
        if model.name in PROTOCOLS:
            found = dataclasses.replace(found, reason="not a supervised aggregator: its steps differ")
        elif left:
            try:
                step, evaluation = _measure(plan, model, task, sample)
                n_train, n_val = len(bags["train"]), len(bags["val"])
                epochs = model.training.epochs
                recorded = model.training.times_recorded * n_train * evaluation
                seconds = epochs * (n_train * step + n_val * evaluation) + recorded
                seconds, recorded = seconds * plan.suite.trainings, recorded * plan.suite.trainings
                found = dataclasses.replace(found, seconds=seconds, recording=recorded / seconds)
            except Exception as error:  # the trials would fail so too, and each say why
                found = dataclasses.replace(found, reason=f"{type(error).__name__}: {error}", failed=True)
        estimates.append(found)
    return estimates


def _measure(plan: Plan, model: ModelPlan, task: Task, sample: list[Bag]) -> tuple[float, float]:
    """Seconds of a training step and of an evaluation of one slide, after one of each that is not counted.

    A stage before the training is left out, for a few slides may be too few for it; it trains another aggregator on the
    same slides, so that a step counts twice.
    """
    device = default_device()
    aggregator = create_aggregator(model.name, sample[0].features.shape[1], task=task, **model.options)
    stages = 1 if type(aggregator).prepare is Aggregator.prepare else 2
    aggregator.prepare = lambda preparation: None  # type: ignore[method-assign]
    training = dataclasses.replace(model.training, epochs=1, select_after=0.0, record=1)
    with trial_threads(plan.suite.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few slides may hold nothing to rank; the trials warn for themselves
        fit(aggregator, sample[:1], sample[:1], training, graph=model.graph, device=device)
        start = time.perf_counter()
        (row,) = fit(aggregator, sample, sample, training, graph=model.graph, device=device)
        whole = time.perf_counter() - start
    return stages * row["seconds"] / len(sample), (whole - row["seconds"]) / (2 * len(sample))
