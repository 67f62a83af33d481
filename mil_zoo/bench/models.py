"""One aggregator of a benchmark as it is trained: its recipe with the suite's budget and overrides on top."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mil_zoo.aggregators.options import check_options
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.bench.grid import points
from mil_zoo.bench.search import check_budget
from mil_zoo.bench.space import Dimension, declared_space
from mil_zoo.bench.suite import Suite
from mil_zoo.config import from_mapping, read_shipped, shipped_names
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.tasks import Classification, Task
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.protocols import PROTOCOLS, model_options, training_settings
from mil_zoo.train.risk_sets import check_risk_sets

BAGS_AT_RISK = 16  # bags of a step where the loss compares patients and the recipe takes one
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class ModelPlan:
    """One aggregator, or one variant of it, of a benchmark with its options and training.

    Attributes:
        name: registry key.
        options: constructor options, defaults included as far as a YAML file can hold them.
        graph: graph spec, or None.
        training: optimiser, schedule, budget, selection rule.
        grid: the variant's name, "" without a grid.
        features: which set of features it reads; None for the dataset's only one.
        space: what it is tuned over; empty where it is not.
        lacks: what it needs and the dataset has not, as a sentence; its trials then fail before any is trained.
        replaced: what the recipe has of the settings, option or graph, that the suite or the command line changed.
    """

    name: str
    options: dict[str, Any]
    graph: str | None
    training: TrainingConfig
    grid: str = ""
    features: str | None = None
    space: tuple[Dimension, ...] = ()
    lacks: str = ""
    replaced: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """``<aggregator>[@grid]``."""
        return f"{self.name}@{self.grid}" if self.grid else self.name

    @property
    def recipe(self) -> dict[str, Any]:
        """What it has of its space as it is."""
        fields = vars(self.training) | self.options
        return {dimension.name: fields.get(dimension.name) for dimension in self.space}

    @property
    def training_settings(self) -> dict[str, Any]:
        """The training settings that it reads, and what chooses its checkpoint, as plain values."""
        told = {"select", *training_settings(self.name)}
        return {name: value for name, value in self.training.settings().items() if name in told}

    def selection_rule(self, task: Task) -> str:
        """What chooses its checkpoint, in words, for tables."""
        if "epochs" not in training_settings(self.name):
            return "nothing is chosen on validation slides"
        return self.training.selection_rule(task)

    def configured(self, settings: Mapping[str, Any]) -> ModelPlan:
        """The model with other options and training settings; an ``InputError`` where a value is refused."""
        own = {key: value for key, value in settings.items() if key in self.options}
        training = {key: value for key, value in settings.items() if key not in own}
        changed = from_mapping(TrainingConfig, vars(self.training) | training, f"training of {self.name}")
        return dataclasses.replace(self, options=self.options | own, training=changed)

    def reading(self, features: str) -> ModelPlan:
        """The model reading one of several sets of features, as a variant of it."""
        grid = ",".join(filter(None, [f"features={quote(features, safe='+')}", self.grid]))
        return dataclasses.replace(self, grid=grid, features=features)


def plan_models(name: str, suite: Suite, graph: str | None = None, task: Task | None = None) -> list[ModelPlan]:
    """An aggregator as shipped with the suite's budget and overrides on top, once a point of its grids.

    Args:
        name: registry key; its constructor's defaults come first, then what its shipped YAML sets.
        suite: budget and overrides.
        graph: the dataset's graph spec; None for the aggregator's own.
        task: what is predicted; None for classification. A recipe whose criterion it lacks selects by the task's own.
    """
    known = settable(name)
    task = task or Classification(2)
    return [_plan_model(name, suite, graph, task, *point) for point in points(suite.grid, name, known)]


def _plan_model(name: str, suite: Suite, graph: str | None, task: Task, grid: str, point: dict[str, Any]) -> ModelPlan:
    shipped = read_shipped("aggregators", name) if name in shipped_names("aggregators") else {}
    known, fields = model_options(name), training_settings(name)
    # A run keeps every option that it trained with, so that a default that changes later changes no old run.
    options = {option: default for option, default in known.items() if isinstance(default, _PLAIN)}
    options |= shipped.get("options", {})
    training = _with_criteria(shipped.get("training", {}), task)
    own_graph = _own_graph(name)
    graph = own_graph and (graph or own_graph)
    if task.risk_sets and training.get("bags_per_step", 1) == 1:
        training["bags_per_step"] = BAGS_AT_RISK
    recipe = _settings(name, options, graph, training)
    if suite.epochs is not None and "epochs" in fields:
        training["epochs"] = suite.epochs
    settings = [("--set", *item) for item in suite.overrides.items()]
    settings += [("--grid", f"{name}.{option}", value) for option, value in point.items()]
    for flag, key, value in settings:
        of, _, option = key.rpartition(".")
        if of not in ("", name):
            continue
        if option == "graph" and (own_graph or of == name):  # named, it gets one that it does not need
            graph = value
        elif option in known:
            options[option] = value
        elif option in fields:
            training[option] = value
        elif of == name:
            raise InputError(f"{flag} {key}: {name} has no option {option!r}{did_you_mean(option, [*known, *fields])}")
    config = from_mapping(TrainingConfig, training, f"training of {name}")
    config.check_criteria(task)
    check_risk_sets(task, config.bags_per_step, config.risk_set)
    now = _settings(name, options, graph, training)
    told = {key for key in recipe if recipe[key] != now.get(key)} - {"record", *point}
    replaced = {key: value for key, value in recipe.items() if key in told}
    model = ModelPlan(name, options, graph, config, grid, replaced=replaced)
    if suite.tune is None:
        return model
    model = dataclasses.replace(model, space=declared_space(name, suite.search, settable(name) - {"graph"}))
    check_budget(suite.tune, model.space, name, model.recipe)
    _check_space(model, task)
    return model


def _settings(name: str, options: Mapping[str, Any], graph: str | None, training: Mapping[str, Any]) -> dict[str, Any]:
    """Options, graph and training settings, defaults included, by their names."""
    config = from_mapping(TrainingConfig, dict(training), f"training of {name}")
    return {**options, "graph": graph, **dataclasses.asdict(config), "betas": list(config.betas)}


def _check_space(model: ModelPlan, task: Task) -> None:
    """Refuses a space with a value that the model does not take: it would have fewer configurations than the others."""
    make = PROTOCOLS.get(model.name) if model.name in PROTOCOLS else AGGREGATORS.get(model.name)
    for dimension in model.space:
        for value in dimension.examples:
            try:
                configured = model.configured({dimension.name: value})
                check_options(make, model.name, configured.options)
                configured.training.check_criteria(task)
            except InputError as error:
                whole = dimension.range is not None and "whole number" in str(error)
                remedy = "; a range of whole numbers has whole: true" * whole
                raise InputError(f"search {dimension.name}: {error}{remedy}") from None


def _with_criteria(training: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A recipe that selects by a criterion the task has: its own, else the task's."""
    own = {"select": task.select, "tie": task.tie}
    lacking = {key for key in own if training.get(key, "last") not in [*task.criteria, "last"]}
    if "select" in lacking:  # a tie belongs to what it decides between
        lacking = set(own)
    return own | {key: value for key, value in training.items() if key not in lacking}


def settable(name: str) -> set[str]:
    """What can be set of a model: its options, the training settings that it reads, and its graph where it has one."""
    return training_settings(name).union(model_options(name), ["graph"] if _own_graph(name) else [])


def _own_graph(name: str) -> str | None:
    return None if name in PROTOCOLS else AGGREGATORS.get(name).graph
