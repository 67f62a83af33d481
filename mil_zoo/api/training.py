"""Training one aggregator from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.registry import AGGREGATORS, create_aggregator
from mil_zoo.api.progress import bar
from mil_zoo.api.tasks import TaskLike, task_for
from mil_zoo.bench.models import ModelPlan, plan_models
from mil_zoo.bench.suite import Suite
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags, targets_for
from mil_zoo.data.judge import judge_shapes, raise_errors
from mil_zoo.data.splits.split import find_leaks, patient_key
from mil_zoo.errors import InputError
from mil_zoo.fitted import Facts, Fitted
from mil_zoo.metrics import inside
from mil_zoo.tasks import Task
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.device import usable_device
from mil_zoo.train.loop import fit as train
from mil_zoo.train.protocols import PROTOCOLS, finished_task


def fit(
    aggregator: str | Aggregator,
    train_bags: Sequence[Bag],
    val_bags: Sequence[Bag],
    *,
    task: TaskLike = None,
    graph: str | None = None,
    seed: int = 0,
    device: str | None = None,
    data: str = "",
    progress: bool = True,
    **training: Any,
) -> Fitted:
    """Trains an aggregator and keeps the epoch that the validation bags choose.

    Args:
        aggregator: a name of ``mil_zoo.list_aggregators()``, trained by its paper's recipe as ``mil-zoo bench`` does,
            or an aggregator of one's own, which is trained in place.
        train_bags: bags to fit, with labels, or targets and a ``task``.
        val_bags: bags to choose the epoch on, of other patients.
        task: what is predicted: a task, its name, or a dict of its name and settings; None for classes by the labels.
            An aggregator of one's own has a task already.
        graph: graph spec ("knn:8") in place of the aggregator's own, for one that has a graph.
        seed: of weights, order of slides, dropout and masks.
        device: where to compute; None for a GPU where there is one.
        data: title of the data, for the model card.
        progress: whether terminals and notebooks show a bar.
        **training: settings of the training in place of the recipe's (``epochs=20``, ``learning_rate=1e-3``; fields of
            ``mil_zoo.train.config.TrainingConfig``) and, of a named aggregator, options (``embed_dim=64``).

    Returns:
        The trained aggregator: ``predict(bags)``, ``score(bags)``, ``history``, ``save(path)``.

    Raises:
        InputError: an unknown name or setting, bags without labels, a slide in both parts or a patient on two sides.

    Example:
        >>> fitted = mil_zoo.fit("abmil", train_bags, val_bags, epochs=20)
        >>> fitted.history[["epoch", "loss", "val_auc"]].tail(1)
        >>> fitted.score(test_bags)["auc"]
    """
    if not isinstance(aggregator, str | Aggregator):
        raise InputError(f"aggregator is a name of mil_zoo.list_aggregators() or an Aggregator, not {aggregator!r:.60}")
    if not isinstance(graph, str | None):
        raise InputError(f'graph is a graph spec such as "knn:8", or None, not {graph!r:.60}')
    if not isinstance(data, str):
        raise InputError(f"data is the title of the data, not {data!r:.60}")
    train_bags, val_bags = as_bags(train_bags), as_bags(val_bags)
    if not len(train_bags) or not len(val_bags):
        raise InputError("fit needs training bags and validation bags, at least one of each")
    _check_parts(train_bags, val_bags)
    check_seed(seed)
    torch.manual_seed(seed)
    if isinstance(aggregator, Aggregator):
        if task is not None:
            raise InputError("an aggregator has its task already: create_aggregator(name, task=...); leave task= out")
        _check_bags(train_bags, val_bags, aggregator.task, aggregator.in_dim)
        plan = _own_plan(aggregator, graph, training)
    else:
        meant = task_for(task, train_bags + val_bags)
        _check_bags(train_bags, val_bags, meant, train_bags.dim)
        plan = _plan(aggregator, meant, graph, training)
        aggregator = create_aggregator(plan.name, train_bags.dim, task=meant.fit(train_bags.targets), **plan.options)
    device = usable_device(device)
    rule = "mean" if aggregator.task.of_patients and _several_slides(train_bags) else None
    select = plan.training.select
    title = next((inside(each.title) for each in aggregator.task.metrics if each.name == select), select)
    with bar(f"training {plan.name}", plan.training.epochs, progress) as advance:
        rows = train(
            aggregator,
            train_bags,
            val_bags,
            plan.training,
            graph=plan.graph,
            seed=seed,
            device=device,
            patient_rule=rule,
            on_epoch=lambda row: advance(f"loss {row['loss']:.3f}  {_reached(row, select, title)}"),
        )
    if aggregator.task.finishes:
        where = (plan.graph, device, plan.training.precision)
        aggregator.task = finished_task(aggregator, train_bags, rule, where)
    history = pd.DataFrame(rows)
    chosen = history[history["selected"] == 1].iloc[0]
    facts = Facts(
        data=data,
        train=tuple(train_bags.slide_ids),
        val=tuple(val_bags.slide_ids),
        training=plan.training.settings(),
        selection=plan.training.selection_rule(aggregator.task),
        val_scores={
            metric.name: None if np.isnan(chosen[f"val_{metric.name}"]) else float(chosen[f"val_{metric.name}"])
            for metric in aggregator.task.metrics
            if f"val_{metric.name}" in chosen
        },
    )
    return Fitted(
        aggregator=aggregator.eval(),
        name=plan.name,
        options=plan.options,
        graph=plan.graph,
        precision=plan.training.precision,
        facts=facts,
        history=history,
        device=device,
    )


def check_seed(seed: Any) -> None:
    """Raises an ``InputError`` where ``seed`` is none."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be a whole number from 0 and below 2^32, not {seed!r:.60}")


def _plan(name: str, task: Task, graph: str | None, settings: dict[str, Any]) -> ModelPlan:
    """A registered aggregator's recipe and options, with settings on top."""
    if name in PROTOCOLS:
        raise InputError(f"{name} is no aggregator that fit trains; compare it with mil_zoo.cross_validate")
    AGGREGATORS.get(name)  # an unknown name is told
    suite = Suite(datasets=[], models=[name], overrides={f"{name}.{key}": value for key, value in settings.items()})
    (plan,) = plan_models(name, suite, graph, task)
    return plan


def _own_plan(aggregator: Aggregator, graph: str | None, settings: dict[str, Any]) -> ModelPlan:
    """The recipe of an aggregator's class, the default one where it is not registered, with settings on top."""
    cls = type(aggregator)
    name = next((name for name in AGGREGATORS.names() if AGGREGATORS.get(name) is cls), "")
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    if option := next((key for key in settings if key not in known), None):
        raise InputError(f"{option} is no setting of the training; an aggregator of your own has its options already")
    if name:
        plan = _plan(name, aggregator.task, graph, settings)
        return dataclasses.replace(plan, options=aggregator.created_with or {})
    config = TrainingConfig(**{"select": aggregator.task.select, "tie": aggregator.task.tie, **settings})
    return ModelPlan(cls.__name__, aggregator.created_with or {}, cls.graph and (graph or cls.graph), config)


def _check_parts(train: Any, val: Any) -> None:
    patients = {slide.slide_id: patient_key(slide) for slide in [*train.slides, *val.slides]}
    leaks = [name for name in find_leaks(train.slide_ids, val.slide_ids, patients) if name]
    if leaks:
        raise InputError(
            f"patients are in both the training and the validation bags ({', '.join(leaks[:5])}; {len(leaks)} in all); "
            "the epoch would be chosen on what was learnt by heart: divide them by patient"
        )


def _check_bags(train: Bags, val: Bags, task: Task, in_dim: int) -> None:
    """Refuses bags of which nothing can be learnt: features of another dimension, targets of another task."""
    raise_errors(judge_shapes(train + val))
    if train.dim != in_dim:
        raise InputError(f"the bags have {train.dim} features a patch and the aggregator takes {in_dim}; make it anew")
    targets = targets_for(train, task)
    targets_for(val, task)
    if task.strata_are_classes and len(np.unique(targets)) < 2:
        raise InputError(f"all {len(train)} training bags have the label {targets[0, 0]:g}; add some of another class")


def _several_slides(bags: Any) -> bool:
    return len({patient_key(slide) for slide in bags.slides}) < len(bags)


def _reached(row: dict[str, Any], select: str, title: str) -> str:
    value = row.get(f"val_{select}")
    return "" if value is None else f"validation {title} {value:.3f}"
