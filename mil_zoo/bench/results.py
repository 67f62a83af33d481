"""What a run says of itself, typed: the contract between the bench, which writes it, and the report, which reads it.

``RunConfig`` is ``config.yaml``, ``Trial`` is a row of ``trials.jsonl``. Reading a file and writing it again gives the
same bytes: a key that stands in no file is None here, and None is written only where the bench writes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mil_zoo.config import from_mapping, parse_yaml, yaml_text
from mil_zoo.errors import InputError

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What the tables say of the data.

    Attributes:
        name: the data card, or the name of a table or folder.
        title: for headings.
        kind: "real", "simulated", "table" or "own", as the data card states; "predictions" of others.
        simulated: whether the slides were made by a program.
        classes: names, by class index.
        bags: their number.
        instances: number in all bags together.
        in_dim: features of an instance.
        layout: how the files lie; None where the data are no files.
        features: the set of features that is read; a list of them where several are compared.
        standardised: whether features were standardised by those of the training slides.
        projected: on how many principal axes of training instances features were projected; None for none.
        instance_labels: what makes an instance positive; None where instances have no labels.
        patient_rule: how the slides of a patient are combined: "mean", "max", "packed"; None where they are not.
        patients: their number, where there is such a rule.
        mpp: micrometres a level-0 pixel; None where unknown.
        digests: of its "labels", of sampled rows of its "features", perhaps of "all features"; None in runs of before.
        warnings: sentences that belong under every table.
    """

    name: str
    title: str
    kind: str
    simulated: bool = False
    classes: list[str] = field(default_factory=list)
    bags: int | None = None
    instances: int | None = None
    in_dim: int | None = None
    layout: str | None = None
    features: Any = None
    standardised: bool = False
    projected: int | None = None
    instance_labels: str | None = None
    patient_rule: Literal["mean", "max", "packed"] | None = None
    patients: int | None = None
    mpp: float | None = None
    digests: dict[str, str] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def several_encoders(self) -> bool:
        """Whether several sets of features are compared."""
        return isinstance(self.features, list)


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """How the slides were divided.

    Attributes:
        kind: the scheme, or the split file's name.
        folds: number of test parts.
        repeats: repetitions of the division.
        validation_fraction: share of the training slides on which checkpoints are chosen; None where the splits came
            with validation slides of their own.
        seed: of the shuffle into folds.
        hash: of all parts; runs of one hash compare slide by slide.
        file: SHA-256 of ``splits.csv``; None in runs of before it was kept.
    """

    kind: str
    folds: int
    repeats: int
    validation_fraction: float | None
    seed: int | None = None
    hash: str
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How one ``aggregator[@grid]`` was made and trained.

    Attributes:
        options: of its constructor.
        graph: graph spec, or None.
        training: optimiser, schedule, budget, selection: the fields of ``mil_zoo.train.config.TrainingConfig`` that it
            reads.
        search: what it was tuned over, a range or values of every setting; {} where it was not.
        replaced: what its recipe has of the settings that suite or command line changed; None in runs of before.
    """

    options: dict[str, Any] = field(default_factory=dict)
    graph: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TuningFacts:
    """How every aggregator was tuned, inside the training part of each trial.

    Attributes:
        configurations: that were tried, the recipe among them.
        sampler: "tpe" or "random".
        inner_folds: that they were judged on; None for the validation slides.
        optuna: version of what proposed them.
    """

    configurations: int
    sampler: str
    inner_folds: int | None = None
    optuna: str


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``config.yaml``: all that the results of a run depend on.

    Attributes:
        title: aggregators on dataset.
        version: of mil-zoo.
        task: what is predicted: the registered ``name`` and its settings; None for classification.
        dataset: see :class:`DatasetFacts`.
        models: aggregators, in the order of the tables.
        model_settings: of every ``aggregator[@grid]``, in the order of the tables.
        selection: for each of them how its checkpoint is chosen, in words.
        split: see :class:`SplitFacts`.
        seeds: of each fold.
        permute_labels: whether training labels were shuffled.
        threads: CPU threads of a trial.
        faithfulness: numbers of instances removed and kept; None where nothing was.
        explain: explainers that scored the instances of the test slides; None for none.
        grid: what was varied; None without a grid.
        tuning: how configurations were chosen; None where every aggregator has its recipe.
        plugins: files that were imported for what they register, and their SHA-256; None without any.
        versions: of the packages that numbers depend on, by name; None in runs of before they were kept.
    """

    title: str
    version: str
    task: dict[str, Any] | None = None
    dataset: DatasetFacts
    models: list[str]
    model_settings: dict[str, ModelSettings]
    selection: dict[str, str]
    split: SplitFacts
    seeds: list[int]
    permute_labels: bool = False
    threads: int = 1
    faithfulness: list[int] | None = None
    explain: list[str] | None = None
    grid: dict[str, Any] | None = None
    tuning: TuningFacts | None = None
    plugins: dict[str, str] | None = None
    versions: dict[str, str] | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str = "config.yaml") -> RunConfig:
        """The settings as typed values.

        Args:
            settings: the mapping in ``config.yaml``.
            where: its path, for messages.

        Raises:
            InputError: a key is missing or unknown, or a value has the wrong type; it names the version that wrote it.
        """
        try:
            return from_mapping(cls, settings, where)
        except InputError as error:
            raise InputError(_other_version(str(error), settings.get("version"))) from None

    @classmethod
    def from_yaml(cls, text: str, where: str = "config.yaml") -> RunConfig:
        """The text of ``config.yaml`` as typed values; errors as in :meth:`from_settings`."""
        return cls.from_settings(parse_yaml(text, where), where)

    def settings(self) -> Row:
        """The mapping that ``config.yaml`` holds, keys in their order; what does not apply is left out."""
        settings = dataclasses.asdict(self)
        absent = ["projected", "patient_rule", "patients", "mpp", "digests"]
        if self.dataset.layout is None:
            absent += ["layout", "features"]
        settings["dataset"] = _without(settings["dataset"], absent)
        settings["split"] = _without(settings["split"], ["file"])
        settings["model_settings"] = {
            label: _without(model, ["search", *["replaced"] * (model["replaced"] is None)])
            for label, model in settings["model_settings"].items()
        }
        return _without(settings, ["task", "faithfulness", "explain", "grid", "tuning", "plugins", "versions"])

    def to_yaml(self) -> str:
        """The text of ``config.yaml``."""
        return yaml_text(self.settings())

    @property
    def planned_trials(self) -> int:
        """How many trials the run has when it is at its end."""
        return len(self.model_settings) * self.split.folds * self.split.repeats * len(self.seeds)

    def in_order(self, trials: Iterable[Trial]) -> list[Trial]:
        """Trials in the order of the tables; see :class:`mil_zoo.report.load.Results`."""
        planned = {label: i for i, label in enumerate(self.model_settings)}
        models = {model: i for i, model in enumerate(self.models)}

        def place(trial: Trial) -> tuple[Any, ...]:
            # Numbers inside a grid name compare as numbers: dim=64 comes before dim=512.
            parts = re.split(r"(\d+(?:\.\d+)?)", trial.grid)
            grid = [float(part) if i % 2 else part for i, part in enumerate(parts)]
            model = models.get(trial.aggregator, len(models)), trial.aggregator
            return *model, planned.get(trial.label, len(planned)), grid, trial.repeat, trial.fold, trial.seed

        return sorted(trials, key=place)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A row of ``trials.jsonl``: what came of one aggregator on one split with one seed.

    Attributes:
        trial: its name, ``<aggregator>[@grid]-r<repeat>-f<fold>-s<seed>``.
        aggregator: registry key.
        grid: the variant's name; "" without a grid.
        features: which set of features it read; None for the dataset's only one.
        repeat: of the division.
        fold: the test part.
        seed: of the trial.
        status: "ok" or "failed".
        reason: why it failed.
        n_train: slides of the training part, those whose labels are withheld too.
        n_val: validation slides.
        n_test: test slides.
        n_labelled: training slides whose labels were used.
        metrics: on the test slides, by name; None where one is undefined. {} for a failed trial.
        val_metrics: on the validation slides.
        notes: of a test metric why it is undefined, or what must be known of its value, by name.
        patient_metrics: on the test patients, where slides are combined into patients.
        last_metrics: on the test slides, of the last epoch's weights; {} where that epoch was chosen.
        epochs: that were trained.
        selected_epoch: the one whose checkpoint was tested.
        parameters: trained numbers.
        seconds_per_epoch: mean over epochs.
        settings: the configuration that was chosen, where one was searched for; {} for the recipe.
        training_seconds: that all trainings of the trial took, of every configuration; None in runs of before.
        inference_ms: a test slide, reading it included; None in runs of before.
        energy_j: joules that the trial took, of all configurations, by the counters of the processors; None where they
            cannot be read, or several trials ran at a time.
        peak_mem_mib: memory that the trial took at most, above what the process held; None where that is not known.
        machine: processor, cores and GPU that it ran on; None in runs of before.
        files: SHA-256 of each file of its folder, by name; {} of a failed trial.
    """

    trial: str
    aggregator: str
    grid: str = ""
    features: str | None = None
    repeat: int
    fold: int
    seed: int
    status: Literal["ok", "failed"] = "ok"
    reason: str | None = None
    n_train: int = 0
    n_val: int = 0
    n_test: int = 0
    n_labelled: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    val_metrics: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    patient_metrics: dict[str, float | None] = field(default_factory=dict)
    last_metrics: dict[str, float | None] = field(default_factory=dict)
    epochs: int | None = None
    selected_epoch: int | None = None
    parameters: int | None = None
    seconds_per_epoch: float | None = None
    peak_mem_mib: float | None = None
    machine: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    training_seconds: float | None = None
    inference_ms: float | None = None
    energy_j: float | None = None
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "trials.jsonl") -> Trial:
        """A row of ``trials.jsonl``, without its checksum, as typed values.

        Raises:
            InputError: a key is missing or unknown, or a value has the wrong type.
        """
        return from_mapping(cls, row, where)

    def to_row(self) -> Row:
        """The row that ``trials.jsonl`` holds, without its checksum, keys in their order."""
        row = dataclasses.asdict(self)
        return {name: value for name, value in row.items() if name in ("features", "reason") or value not in (None, {})}

    @property
    def ok(self) -> bool:
        """Whether it finished."""
        return self.status == "ok"

    @property
    def label(self) -> str:
        """``aggregator[@grid]``, its row in the tables."""
        return f"{self.aggregator}@{self.grid}" if self.grid else self.aggregator

    @property
    def split(self) -> tuple[int, int]:
        """Repeat and fold: trials of one split are tested on the same slides."""
        return self.repeat, self.fold


def _without(mapping: Row, names: list[str]) -> Row:
    """The mapping without those of ``names`` that hold nothing."""
    return {name: value for name, value in mapping.items() if name not in names or value}


def _other_version(message: str, version: Any) -> str:
    from mil_zoo import __version__

    if version == __version__:
        return message
    return f"{message}; the run was written by mil-zoo {version or 'of unknown version'}, this is {__version__}"
