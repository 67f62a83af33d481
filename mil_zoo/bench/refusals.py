"""What keeps models from the data at hand, and settings from having an effect: found before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.options import check_options
from mil_zoo.aggregators.registry import AGGREGATORS, create_aggregator
from mil_zoo.bench.models import ModelPlan, settable
from mil_zoo.bench.suite import Suite
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError
from mil_zoo.graph.base import parse_spec
from mil_zoo.registry import plugin_of
from mil_zoo.tasks import Classification
from mil_zoo.train.protocols import PROTOCOLS, check_protocol

_LOG = logging.getLogger("mil_zoo")


def made_without_weights(model: ModelPlan, dataset: Dataset, in_dim: int) -> tuple[Aggregator | None, str]:
    """The aggregator of a model on torch's "meta" device, and why its constructor refuses these options and features.

    There is none of a protocol, nor of a plugin's in classification: what that does wrong costs its own trials.

    Raises:
        InputError: it does not do the task, or an option has no value that it takes.
    """
    if model.name in PROTOCOLS:
        check_options(PROTOCOLS.get(model.name), model.name, model.options)
        if not isinstance(dataset.task, Classification):
            check_protocol(model.name, dataset.task)
        return None, ""
    cls = AGGREGATORS.get(model.name)
    check_options(cls, model.name, model.options)
    if not isinstance(dataset.task, Classification):
        return create_aggregator(model.name, in_dim, task=dataset.task, **model.options), ""
    if plugin_of(cls) is not None:
        return None, ""
    try:
        with torch.device("meta"):
            return create_aggregator(model.name, in_dim, task=dataset.task, **model.options), ""
    except InputError as error:  # a grid may hold one such point, and the features may have an odd dimension
        return None, str(error)


def takes_graph(model: ModelPlan, made: Aggregator | None) -> bool:
    """Whether a graph is of use to the model; of a plugin's, which may take any, that is not known and true."""
    if model.name in PROTOCOLS:
        return False
    cls = AGGREGATORS.get(model.name)
    return cls.graph is not None or plugin_of(cls) is not None or (made is not None and made.needs_graph)


def lacking(model: ModelPlan, made: Aggregator | None, dataset: Dataset) -> str:
    """What the model needs and the dataset has not, as a sentence; "" where nothing is known to be lacking.

    Raises:
        InputError: its graph spec is none.
    """
    if model.name in PROTOCOLS:
        return ""
    cls, name, bags = AGGREGATORS.get(model.name), model.name, dataset.bags
    needs_coords = cls.needs_coords if made is None else made.needs_coords
    needs_graph = cls.graph is not None if made is None else made.needs_graph
    leave = f"or leave {name} out"
    if needs_graph and model.graph is None:
        return f"{model.label} needs a graph and has none; set one (--set {name}.graph=knn:8), {leave}"
    spec = model.graph if needs_graph else None
    over_coords = spec is not None and parse_spec(spec)[0].over == "coords"
    remedy = f"take a graph over features (--set {name}.graph=feature_knn:8), {leave}"
    if needs_coords and not needs_graph:
        remedy = f"{cls.without_coords}, {leave}"
    try:
        if needs_coords or over_coords:
            untold = [number for number, slide in enumerate(bags.slides) if slide.coords() is None]
            smallest = min(untold, key=lambda number: bags.slides[number].shape()[0], default=None)
            if smallest is not None and bags[smallest].coords is None:  # a layout may tell of them with features alone
                slides = f"{len(untold)} of {len(bags)} slides of {dataset.card.title}"
                example = bags.slides[smallest].slide_id
                return (
                    f"{model.label} needs the coordinates of patches, and {slides} have none ({example!r} for "
                    f"instance); {remedy}"
                )
        if spec is not None:
            bags[int(np.argmin(bags.sizes))].graph(spec)
    except InputError as error:
        return f"{model.label} cannot be trained on {dataset.card.title}: {error}; {remedy}"
    return ""


def check_labelled(models: Sequence[ModelPlan], splits: Sequence[Split]) -> None:
    """Raises an ``InputError`` where more labelled slides are asked for than a training part holds."""
    fewest = min(len(split.train) for split in splits)
    for model in models:
        if max(1, fewest) < model.training.labelled:
            raise InputError(
                f"labelled={model.training.labelled:g} of {model.label}: a training part holds {fewest} slides; ask "
                f"for at most {fewest}, or for a share in (0, 1]"
            )


def check_effects(suite: Suite, models: Sequence[ModelPlan], with_graphs: Mapping[str, bool]) -> None:
    """Warns of a setting that changes nothing for any of the models, and refuses such a grid, of as many same trials.

    A setting of None asks for nothing, and is not told of; nor are those that the user did not make.

    Args:
        suite: whose ``overrides``, ``epochs`` and ``grid`` are looked at; where configurations are tuned, at graphs
            alone.
        models: as they are trained.
        with_graphs: whether a graph is of use, by the models' labels.

    Raises:
        InputError: a grid changes nothing.
    """
    made = {key: value for key, value in suite.overrides.items() if key not in suite.of_suite}
    epochs = {} if suite.epochs is None or "epochs" in suite.of_suite else {"epochs": suite.epochs}
    for flag, settings in (("--set ", made), ("--", epochs), ("--grid ", suite.grid)):
        for key, values in settings.items():
            owner, _, option = key.rpartition(".")
            of = [model for model in models if owner in ("", model.name)]
            if values is None or isinstance(values, Mapping) or not of:  # of a grid: settings that change together
                continue
            why = [_idle(option, model, with_graphs[model.label], suite.tune is not None) for model in of]
            if all(why):
                sentence = f"{flag}{key} changes nothing: {why[0]}"
                if settings is suite.grid:
                    raise InputError(f"{sentence}; leave it out")
                _LOG.warning("mil-zoo: %s", sentence)


def _idle(option: str, model: ModelPlan, graph: bool, tuned: bool) -> str:
    """Why a setting changes nothing for a model; "" where it may."""
    training, name = model.training, model.name
    if option == "graph" and not graph:
        return f"{name} takes no graph"
    if option not in {*settable(name), "graph"}:
        return f"{name} does not read it"
    if tuned or name in PROTOCOLS or option in model.options:
        return ""
    if option in ("tie", "patience", "patience_after", "select_after") and training.select == "last":
        return f"select=last of {model.label} chooses nothing"
    if option == "patience_after" and training.patience is None:
        return f"{model.label} has no patience"
    return f"sgd of {model.label} has none" if option == "betas" and training.optimizer == "sgd" else ""


def left_out(made: Mapping[str, Aggregator]) -> list[str]:
    """What the aggregators, by the models' names, train without in a task of no classes, a sentence each."""
    return [f"{name}: without {one.left_out}, which needs classes." for name, one in made.items() if one.left_out]
