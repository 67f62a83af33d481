"""The plan of a benchmark: which aggregators, on which splits, trained how. It is data; nothing runs here."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mil_zoo import __version__
from mil_zoo.bench.checks import check_suite
from mil_zoo.bench.models import ModelPlan, plan_models
from mil_zoo.bench.opening import open_judged
from mil_zoo.bench.refusals import check_effects, check_labelled, lacking, left_out, made_without_weights, takes_graph
from mil_zoo.bench.results import DatasetFacts, ModelSettings, RunConfig, SplitFacts, TuningFacts
from mil_zoo.bench.suite import Suite
from mil_zoo.data.bags import Bags
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.files import splits_csv
from mil_zoo.data.splits.schemes import DrawnSplits, draw_splits
from mil_zoo.data.splits.split import Split, patient_key, split_hash
from mil_zoo.errors import InputError
from mil_zoo.stats import read_covariates
from mil_zoo.tasks import task_settings

PERMUTED = (
    "TRAINING LABELS WERE SHUFFLED, anew for every seed. {band}A network that learned nothing still orders bags by "
    "what their features hold, either way round, and spreads wider; a test {score} as far off as with the true labels "
    "means that test labels reach training or selection. Slides that occur twice and labels written into features do "
    "not show so."
)

VERSIONS = ("numpy", "scipy", "scikit-learn", "torch", "numba", "dgl")  # that a run keeps


@dataclass(frozen=True)
class TrialPlan:
    """One aggregator on one split with one seed."""

    model: ModelPlan
    split: Split
    seed: int

    @property
    def id(self) -> str:
        """``<aggregator>[@grid]-r<repeat>-f<fold>-s<seed>``."""
        return f"{self.model.label}-r{self.split.repeat}-f{self.split.fold}-s{self.seed}"


@dataclass(frozen=True, eq=False)
class Plan:
    """A dataset, where it was opened from, its splits, the trials to run on them, and the plugins that these need.

    ``digests`` are those of its labels and of sampled rows of its features.
    """

    suite: Suite
    source: DatasetSource
    dataset: Dataset
    models: Sequence[ModelPlan]
    drawn: DrawnSplits
    plugins: tuple[Path, ...] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def splits(self) -> Sequence[Split]:
        """The divisions that the trials run on."""
        return self.drawn.splits

    def _files(self) -> dict[str, Any]:
        found, several = self.dataset.features, [model.features for model in self.models if model.features]
        if found is None:
            return {}
        return {"layout": found.layout, "features": list(dict.fromkeys(several)) or found.name}

    @property
    def trials(self) -> list[TrialPlan]:
        """Every trial, folds outermost: an interrupted run has compared all aggregators on the folds it did."""
        return [
            TrialPlan(model, split, seed) for split in self.splits for seed in self.suite.seeds for model in self.models
        ]

    def _patients(self) -> dict[str, Any]:
        if self.dataset.patient_rule is None:
            return {}
        count = len({patient_key(slide) for slide in self.dataset.bags.slides})
        return {"patient_rule": self.dataset.patient_rule, "patients": count}

    @cached_property
    def splits_csv(self) -> str:
        """The text of ``splits.csv``."""
        return splits_csv(self.splits, self.dataset.bags)

    def source_of(self, trial: TrialPlan) -> DatasetSource:
        """How to open the dataset with the features that a trial reads."""
        features = trial.model.features
        return self.source if features is None else self.source.with_features(features)

    def _permuted(self) -> str:
        """What shuffled labels show, with the band of the mean score over the folds of a model that knows nothing."""
        task, bags = self.dataset.task, self.dataset.bags
        score, variances = task.score_at_chance, []
        for split in self.splits:
            if split.repeat == self.splits[0].repeat:
                tested = bags.select(split.test)
                scored = {patient_key(slide) if task.of_patients else slide.slide_id: slide for slide in tested.slides}
                variances.append(task.variance_at_chance(Bags(list(scored.values())).targets))
        if not score or not any(variances):
            return PERMUTED.format(band="", score=score or "score")
        band = 1.96 * sum(variances) ** 0.5 / len(variances)
        return PERMUTED.format(band=f"Of random orders 95 % of mean {score}s lie in 0.50 +- {band:.2f}. ", score=score)

    def config(self) -> RunConfig:
        """What ``config.yaml`` of the run directory holds: all that the results depend on."""
        card, suite = self.dataset.card, self.suite
        dataset = DatasetFacts(
            name=card.name,
            title=card.title,
            kind=card.kind,
            simulated=card.kind == "simulated",
            classes=list(card.classes),
            bags=len(self.dataset.bags),
            instances=self.dataset.bags.num_instances,
            in_dim=self.dataset.in_dim,
            **self._files(),
            standardised=card.standardise,
            projected=suite.project,
            instance_labels=card.instance_labels,
            **self._patients(),
            mpp=card.mpp,
            digests=dict(self.digests) or None,
            warnings=[*card.warnings, *self.drawn.warnings, *[self._permuted()] * suite.permute_labels],
        )
        split = SplitFacts(
            kind=self.drawn.kind,
            folds=1 + max(split.fold for split in self.splits),
            repeats=1 + max(split.repeat for split in self.splits),
            validation_fraction=None if self.drawn.validated else suite.validation_fraction,
            seed=suite.split_seed,
            hash=split_hash(self.splits),
            file=hashlib.sha256(self.splits_csv.encode()).hexdigest(),
        )
        return RunConfig(
            title=f"{', '.join(suite.models)} on {card.title}",
            version=__version__,
            task=task_settings(self.dataset.task).get("task"),
            dataset=dataset,
            models=list(suite.models),
            model_settings={
                model.label: ModelSettings(
                    options=dict(model.options),
                    graph=model.graph,
                    training=model.training_settings,
                    search={dimension.name: dimension.settings() for dimension in model.space},
                    replaced=dict(model.replaced),
                )
                for model in self.models
            },
            selection={model.label: model.selection_rule(self.dataset.task) for model in self.models},
            split=split,
            seeds=list(suite.seeds),
            permute_labels=suite.permute_labels,
            threads=suite.threads,
            faithfulness=suite.faithfulness or None,
            explain=suite.explain or None,
            grid=suite.grid or None,
            tuning=self._tuning(),
            plugins={str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in self.plugins} or None,
            versions=package_versions(),
        )

    def _tuning(self) -> TuningFacts | None:
        suite = self.suite
        if suite.tune is None:
            return None
        version = importlib.metadata.version("optuna")
        return TuningFacts(
            configurations=suite.tune, sampler=suite.sampler, inner_folds=suite.inner_folds, optuna=version
        )

    def settings(self) -> dict[str, Any]:
        """:meth:`config` as the plain values that the file holds."""
        return self.config().settings()


def package_versions() -> dict[str, str]:
    """Versions of the installed packages among those that numbers depend on, without what they say of the build."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name).partition("+")[0]
    return found


def make_plan(
    suite: Suite,
    source: DatasetSource | str,
    features: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    verify: bool = False,
) -> Plan:
    """Opens one dataset of a suite, draws the splits and settles every aggregator's options.

    Args:
        suite: what to compare.
        source: how to open the dataset, or its name alone. What the suite says of patients and of the dataset that is
            tested on holds where the source says nothing.
        features: which sets of features (encoders); several are compared, each with every model. Empty for the
            source's, or the only one.
        plugins: files whose registered things the run needs; its ``config.yaml`` names them and their content.
        verify: digest all features, see :func:`mil_zoo.bench.opening.open_judged`.

    Raises:
        InputError: an unknown aggregator, option, dataset or graph, or folds that the dataset cannot fill.
    """
    check_suite(suite)
    if len(set(features)) < len(features):
        raise InputError(f"--features must name each set once, not {','.join(features)}")
    source = _settled(source if isinstance(source, DatasetSource) else DatasetSource(source), suite)
    if features:
        source = source.with_features(features[0])
    dataset, digests = open_judged(source, features[1:], verify, suite.project)
    return plan_of(suite, source, dataset, digests, features, plugins)


def plan_of(
    suite: Suite,
    source: DatasetSource,
    dataset: Dataset,
    digests: Mapping[str, str],
    features: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> Plan:
    """The plan of a dataset in hand; arguments and errors as of :func:`make_plan`.

    Args:
        suite: what to compare.
        source: where the dataset came from.
        dataset: opened and judged.
        digests: of its labels and features.
        features: which sets of features are compared.
        plugins: files whose registered things the run needs.
    """
    check_suite(suite)
    if suite.title is not None:
        dataset = dataclasses.replace(dataset, card=dataclasses.replace(dataset.card, title=suite.title))
    drawn = _draw(dataset, suite)
    models = [model for name in suite.models for model in plan_models(name, suite, dataset.card.graph, dataset.task)]
    made = {model.label: made_without_weights(model, dataset, suite.project or dataset.in_dim) for model in models}
    check_labelled(models, drawn.splits)
    check_effects(suite, models, {model.label: takes_graph(model, made[model.label][0]) for model in models})
    without = left_out({model.name: one for model in models if (one := made[model.label][0]) is not None})
    drawn = dataclasses.replace(drawn, warnings=[*drawn.warnings, *without, *_without_clinical(dataset)])
    models = [
        dataclasses.replace(model, lacks=why or lacking(model, one, dataset))
        for model, (one, why) in zip(models, made.values(), strict=True)
    ]
    if len(features) > 1:
        models = [model.reading(each) for model in models for each in features]
    return Plan(suite, source, dataset, models, drawn, tuple(Path(file).resolve() for file in plugins), digests)


def _without_clinical(dataset: Dataset) -> list[str]:
    """Why the run will have no clinical model, where the card names covariates that none can be made of."""
    if dataset.covariates is not None:
        try:
            read_covariates(dataset.covariates, [name for name in dataset.covariates.columns if name != "patient_id"])
        except InputError as error:
            return [f"No clinical model: {error}."]
    return []


def _draw(dataset: Dataset, suite: Suite) -> DrawnSplits:
    """The suite's splits, in which every part gets its share of what the task says, and what the folds then hold."""
    task, targets = dataset.task, dataset.bags.targets
    drawn = draw_splits(
        dataclasses.replace(dataset, bags=dataset.bags.relabelled(task.strata(targets).tolist())),
        suite.split,
        suite.folds,
        suite.repeats,
        suite.validation_fraction,
        suite.split_seed,
        suite.allow_leaky_splits,
        None if task.strata_are_classes else task.shares(targets),
    )
    of_repeat: dict[int, list[Any]] = {}
    for split in drawn.splits:
        of_repeat.setdefault(split.repeat, []).append(_by_patient(dataset, split.test))
    notes = [note for folds in of_repeat.values() for note in task.fold_facts(folds)]
    return dataclasses.replace(drawn, warnings=[*drawn.warnings, *dict.fromkeys(notes)])


def _by_patient(dataset: Dataset, slide_ids: Sequence[str]) -> Any:
    """The targets ``[n, T]`` of slides, where patients are scored those of their patients."""
    bags = dataset.bags.select(slide_ids)
    if not dataset.task.of_patients:
        return bags.targets
    _, first = np.unique([patient_key(slide) for slide in bags.slides], return_index=True)
    return bags.targets[np.sort(first)]


def _settled(source: DatasetSource, suite: Suite) -> DatasetSource:
    """The source with the suite's patients and dataset to test on, where it names none; independent of this process."""
    if source.patients is None:
        source = dataclasses.replace(source, patients=suite.patients)
    if not source.task:
        source = source.with_task(suite.task)
    if source.test_on is None and suite.test_on is not None:
        other = dataclasses.replace(source, name=suite.test_on, labels=None, patients=None)
        source = dataclasses.replace(source, test_on=other)
    return source.anywhere()
