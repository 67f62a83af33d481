"""Predicting slides with the aggregators of a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.registry import AGGREGATORS, create_aggregator
from mil_zoo.bench.outcome import TASK
from mil_zoo.bench.results import RunConfig, Trial
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.data.bag import Bag
from mil_zoo.data.labelled import Standardiser
from mil_zoo.diagnostics.explanations import Floats
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.fitted import Facts, Fitted, Prediction, predict_together
from mil_zoo.fitted.explained import explain_together
from mil_zoo.tasks import Task, task_of_config
from mil_zoo.train.device import usable_device
from mil_zoo.train.protocols import PROTOCOLS


class Predictor:
    """The aggregators that the trials of one model of a run left, as an ensemble.

    Predictions and attention are the mean over the members. With one trial named, it is that trial alone.

    Attributes:
        model: ``aggregator`` or ``aggregator@grid``.
        task: what is predicted.
        trials: names of the members' trials.
        members: the trained aggregators of these trials; each can be saved.
        in_dim: feature dimension D.
        simulated: whether the slides that they were trained on were made by a program.
        packed: whether the slides of a patient were one bag in training; here each is predicted alone.

    Args:
        run: a run directory.
        model: ``aggregator`` or ``aggregator@grid``, as the run's tables name it.
        trial: the only trial to use; None for all finished ones of the model.
        device: where to compute; None for a GPU where there is one.

    Raises:
        InputError: no run, model or finished trial of that name, or its files are damaged.
    """

    def __init__(
        self, run: Path | str | RunDirectory, model: str, trial: str | None = None, device: str | None = None
    ) -> None:
        run = run if isinstance(run, RunDirectory) else RunDirectory.open(run)
        where = str(run.path / "config.yaml")
        config = RunConfig.from_settings(run.config, where)
        if not isinstance(model, str) or model not in config.model_settings:
            raise InputError(f"{run.path} holds no model {model!r}{did_you_mean(model, config.model_settings)}")
        finished = [Trial.from_row(row) for row in run.trials()]
        finished = [each for each in finished if each.ok and each.label == model]
        chosen = [each for each in finished if trial in (None, each.trial)]
        if not chosen:
            known = did_you_mean(trial or "", [each.trial for each in finished])
            what = f"trial {trial!r} of {model}{known}" if trial else f"finished trial of {model}"
            raise InputError(f"{run.path} holds no {what}")
        name, settings = chosen[0].aggregator, config.model_settings[model]
        if name in PROTOCOLS:
            raise InputError(
                f"{model} is no aggregator, and predicts in its own run alone; run mil-zoo bench --models {name} with "
                "--test-on of the other slides"
            )
        if name not in AGGREGATORS and config.plugins:
            files = ", ".join(config.plugins)
            raise InputError(f"{model} came from a plugin ({files}); pass it again with --plugin, which executes it")
        self.model = model
        self.task = task_of_config(config.settings())
        self.trials = [each.trial for each in chosen]
        self.in_dim = int(config.dataset.in_dim or 0)
        self.simulated = config.dataset.simulated
        self.packed = config.dataset.patient_rule == "packed"
        device = usable_device(device)
        parts = _parts(run, self.packed)
        self.members: list[Fitted] = []
        for each in chosen:
            task = _fitted_task(run, each) or self.task
            options = {key: each.settings.get(key, value) for key, value in settings.options.items()}
            width = config.dataset.projected or self.in_dim
            aggregator = create_aggregator(name, width, task=task, **options).to(device)
            scaled = config.dataset.standardised or config.dataset.projected is not None
            standardiser = _load(run, each.trial, aggregator, scaled)
            slides = parts.get(f"r{each.repeat}-f{each.fold}", {})
            self.members.append(
                Fitted(
                    aggregator=aggregator,
                    name=name,
                    options=options,
                    graph=settings.graph,
                    precision=str(settings.training.get("precision", "float32")),
                    standardiser=standardiser,
                    facts=_facts(config, model, each, slides),
                    device=device,
                )
            )

    def __call__(self, bags: Iterable[Bag]) -> Iterator[Prediction]:
        """Predicts slides one after the other; each is let go of before the next is read.

        Raises:
            InputError: a bag of another feature dimension, or without what the graph needs.
        """
        for bag in bags:
            yield self.predict(bag)

    def predict(self, bag: Bag) -> Prediction:
        """Predicts one slide, see :meth:`__call__`."""
        return predict_together(self.members, bag)

    def explain(self, prediction: Prediction, explainers: Sequence[str]) -> dict[str, Floats]:
        """Scores the instances of a predicted slide, see :func:`mil_zoo.fitted.explained.explain_together`."""
        return explain_together(self.members, prediction, explainers)


def _facts(config: RunConfig, model: str, trial: Trial, parts: dict[str, tuple[str, ...]]) -> Facts:
    """What a model card says of a trial."""
    features = trial.features or config.dataset.features
    training = config.model_settings[model].training
    return Facts(
        data=config.dataset.title,
        simulated=config.dataset.simulated,
        features=features if isinstance(features, str) else None,
        train=parts.get("train", ()),
        val=parts.get("val", ()),
        training={key: trial.settings.get(key, value) for key, value in training.items()},
        selection=config.selection[model],
        val_scores=trial.val_metrics,
        test_scores=trial.metrics,
        warnings=tuple(config.dataset.warnings),
        trial=f"trial {trial.trial} of a run of mil-zoo {config.version}: {config.title}",
    )


def _fitted_task(run: RunDirectory, trial: Trial) -> Task | None:
    """The task that a trial fitted to its training slides; None where that is the run's."""
    return task_of_config(json.loads(run.read(trial.trial, TASK))) if TASK in trial.files else None


def _parts(run: RunDirectory, packed: bool) -> dict[str, dict[str, tuple[str, ...]]]:
    """For each column of the run's ``splits.csv`` the slides of "train" and "val"; of packed patients, they too."""
    table = run.table("splits.csv", ("slide_id", "patient_id"))
    if table is None:
        raise InputError(f"{run.path} lacks splits.csv; start the bench with --out {run.path} again, which writes it")
    names = ["slide_id", "patient_id"] if packed else ["slide_id"]
    return {
        str(column): {
            part: tuple(table[names][table[column] == part].to_numpy().ravel().tolist()) for part in ("train", "val")
        }
        for column in table.columns
        if column not in ("slide_id", "patient_id", "label")
    }


def _load(run: RunDirectory, trial: str, aggregator: Aggregator, standardised: bool) -> Standardiser | None:
    """Loads a trial's weights; its standardiser, or None where features are used as they are."""
    try:
        aggregator.load_state_dict(load(run.read(trial, "weights.safetensors")))
        return Standardiser(**load(run.read(trial, "standardiser.safetensors"))) if standardised else None
    except (SafetensorError, RuntimeError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{run.path_of(trial, 'weights.safetensors')} cannot be loaded ({first}); start the bench with --out "
            f"{run.path} again, or name the plugin and the version of mil-zoo that it was trained with"
        ) from error
