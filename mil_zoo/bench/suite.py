"""What a benchmark is asked to do, as a suite's YAML and the command line state it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mil_zoo.config import from_mapping, parse_override, read_shipped, read_yaml, shipped_names
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.files import refuse_pipe


@dataclass(frozen=True)
class Suite:
    """A benchmark's settings, as ``configs/suites/<name>.yaml`` and the command line state them.

    Attributes:
        datasets: card names or table paths; each is a benchmark of its own.
        models: aggregators to compare.
        task: what is predicted: the ``name`` of a registered task and its settings; empty for what the card says.
        split: how the slides are divided, see ``mil_zoo.data.splits.schemes.draw_splits``.
        allow_leaky_splits: run published splits that share patients between train and test, with a warning.
        test_on: card name or path of another dataset, all of whose slides are tested; ``folds`` then plays no part.
        patients: how patients of several slides are scored, see ``mil_zoo.data.DatasetSource``.
        folds: number of test parts of the cross-validation, or "published" for those that come with the dataset.
        repeats: repetitions of it.
        seeds: seeds of each fold.
        epochs: budget for all aggregators; None for each one's own.
        validation_fraction: share of the training slides on which checkpoints are chosen.
        split_seed: of the shuffles into folds.
        faithfulness: numbers k of most attended instances to remove from, and alone to keep of, every test slide.
        explain: explainers that score the instances of every test slide, see ``mil_zoo.diagnostics.explanations``.
        permute_labels: train on shuffled labels: a leak detector, whose test AUC must be near 0.5.
        threads: CPU threads of a trial. Sums split among more threads differ in their last bits, so this belongs to
            the plan, and the number of trials that run at a time does not.
        overrides: "model.key" or "key" (for all models) to value.
        title: what tables and figures call the dataset; None for its own.
        embeddings: keep the embeddings of the test slides.
        tune: how many configurations of each aggregator are tried inside the training part of each trial, the first of
            which is the recipe; None trains the recipe alone.
        project: numbers an instance to which features are projected, on principal axes of a split's training instances;
            None leaves them as they are.
        inner_folds: folds of a trial's training and validation slides together on which configurations are judged; None
            for its validation slides.
        sampler: what proposes configurations: "tpe" or "random".
        search: "model.key" or "key" to ranges that replace those of the aggregators' YAML, see ``bench.space``.
        grid: "model.key" or "key" to the values that are tried, see ``bench.grid.points``; several grids multiply.
        of_suite: what of ``overrides``, and whether ``epochs``, the user did not ask for: settings of the suite's file,
            which may change nothing for the models of now.
    """

    datasets: list[str]
    models: list[str] = field(default_factory=lambda: ["srmil", "abmil"])
    task: dict[str, Any] = field(default_factory=dict)
    split: str = "kfold"
    allow_leaky_splits: bool = False
    test_on: str | None = None
    patients: Literal["mean", "max", "packed"] | None = None
    folds: int | Literal["published"] = 5
    repeats: int = 1
    seeds: list[int] = field(default_factory=lambda: [0])
    epochs: int | None = None
    validation_fraction: float = 0.15
    split_seed: int = 0
    faithfulness: list[int] = field(default_factory=list)
    explain: list[str] = field(default_factory=list)
    permute_labels: bool = False
    threads: int = 1
    title: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    embeddings: bool = True
    project: int | None = None
    tune: int | None = None
    inner_folds: int | None = None
    sampler: Literal["tpe", "random"] = "tpe"
    search: dict[str, Any] = field(default_factory=dict)
    of_suite: list[str] = field(default_factory=list)

    @property
    def trainings(self) -> int:
        """How many times a trial trains."""
        if self.tune is None:
            return 1
        return self.tune if self.inner_folds is None else self.tune * (self.inner_folds + 1)


def read_suite(name: str | None = None, **given: Any) -> Suite:
    """A suite with the command line's settings on top.

    Args:
        name: a shipped suite or the path of a ``.yaml``; None for the shipped one called like the only dataset where
            there is one, and ``demo`` without a dataset.
        **given: attributes of :class:`Suite` that replace the suite's; None leaves them.

    Raises:
        InputError: unknown suite or key.
    """
    datasets = given.get("datasets")
    if name is None:
        name = next((name for name in shipped_names("suites") if [name] == (datasets or ["demo"])), None)
    if name is None:
        mapping, where = {}, "command line"
    elif name.endswith((".yaml", ".yml")):
        mapping, where = read_yaml(Path(name)), name
    else:
        if name not in shipped_names("suites") and Path(name).exists():
            refuse_pipe(Path(name))
            raise InputError(f"{name}: the name of a suite's file ends in .yaml; rename it")
        mapping, where = read_shipped("suites", name), f"suites/{name}.yaml"
    changed = {key: value for key, value in given.items() if value is not None}
    for key in ("overrides", "grid", "search"):
        for told in (mapping, changed):
            if not isinstance(told.get(key, {}), Mapping):
                raise InputError(f"{where}: {key} must be a mapping, not {told[key]!r:.60}")
    own, models = (told.get("models") or mapping.get("models") or [] for told in (mapping, changed))
    named = {*shipped_names("aggregators"), *map(str, own), *map(str, models)}
    for key in (str(key) for part in ("overrides", "grid", "search") for key in mapping.get(part, {})):
        if "." in key and (owner := key.partition(".")[0]) not in named:
            raise InputError(f"{where}: {key} is of no model{did_you_mean(owner, sorted(named))}")
    shipped, grid, search = (
        {key: value for key, value in mapping.get(part, {}).items() if "." not in key or key.split(".")[0] in models}
        for part in ("overrides", "grid", "search")
    )
    if "epochs" in changed:  # what was asked for now goes before what the suite says of single models
        shipped = {key: value for key, value in shipped.items() if key.rpartition(".")[2] != "epochs"}
    overrides, grids = changed.pop("overrides", {}), changed.pop("grid", {})
    for key in overrides:
        if key in grids:
            raise InputError(f"{key} is in --set and in --grid; choose one")
    # A setting made now goes before a grid of the suite, and a grid of now before the suite's setting. The last of two
    # settings holds: one that is made now for all models stands behind what the suite says of single ones.
    shipped = {key: value for key, value in shipped.items() if key not in overrides}
    grid = {**{key: values for key, values in grid.items() if key not in overrides}, **grids}
    changed["search"] = {**search, **changed.get("search", {})}
    changed["of_suite"] = [*shipped, *(["epochs"] if "epochs" not in changed else [])]
    return from_mapping(Suite, {**mapping, **changed, "overrides": {**shipped, **overrides}, "grid": grid}, where)


def parse_task(text: str) -> dict[str, Any]:
    """``"counting:unit=cells,scale=[2,3]"`` as ``{"name": "counting", "unit": "cells", "scale": [2, 3]}``."""
    name, _, settings = text.partition(":")
    task: dict[str, Any] = {"name": name.strip()}
    for setting in filter(None, re.split(r",(?![^\[]*\])", settings)):  # a comma within [...] separates its values
        path, value = parse_override(setting)
        task[".".join(path)] = value
    return task


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """``["srmil.mask_rate=0.5"]`` as ``{"srmil.mask_rate": 0.5}``."""
    overrides = {}
    for text in texts:
        path, value = parse_override(text)
        if len(path) > 2:
            raise InputError(f"--set {text!r} must look like srmil.mask_rate=0.5 or epochs=20")
        overrides[".".join(path)] = value
    return overrides
