"""A tuned trial: its configuration is chosen inside its own training part, before any test slide is looked at."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil_zoo.bench.models import ModelPlan
from mil_zoo.bench.plan import TrialPlan
from mil_zoo.bench.results import Row
from mil_zoo.bench.search import Judged, ranking, search
from mil_zoo.bench.suite import Suite
from mil_zoo.data.bags import Bags
from mil_zoo.data.splits.draw import kfold
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe, write_text
from mil_zoo.tasks import Task
from mil_zoo.train.checkpoint import CheckpointPlace
from mil_zoo.train.protocols import TrialResult

Parts = Mapping[str, Bags]


@dataclass(frozen=True)
class Training:
    """One training of a tuned trial.

    Attributes:
        model: with the configuration.
        bags: of its parts; without "test" while configurations are judged.
        place: of its checkpoint.
        number: of the training within the trial, from 0.
        chosen: whether it is the trial's own, of which attention is explained.
    """

    model: ModelPlan
    bags: Parts
    place: CheckpointPlace
    number: int
    chosen: bool = False


Train = Callable[[Training], TrialResult]
Score = Callable[[Parts, TrialResult, str], Mapping[str, float | None]]


@dataclass(frozen=True)
class Tuned:
    """What came of a search.

    Attributes:
        model: with the chosen configuration.
        result: of its training, with the test slides.
        rows: of ``tuning.csv``, one a configuration.
        settings: the chosen ones.
        seconds: that all trainings took.
    """

    model: ModelPlan
    result: TrialResult
    rows: list[Row]
    settings: dict[str, Any]
    seconds: float


def tune(
    trial: TrialPlan, suite: Suite, task: Task, bags: Parts, place: CheckpointPlace, train: Train, score: Score
) -> Tuned:
    """Chooses the configuration of a trial and gives what it then predicts.

    Each configuration is trained like any trial, on the same training slides with the same seed, and judged by the
    task's criterion on the validation slides (ties: their loss, then the earlier one); with ``inner_folds`` on the mean
    over folds of the training and validation slides together. Test slides are not handed to these trainings. When the
    choice is made, every configuration is tested, which changes nothing any more: the budget curve is made of that.

    Args:
        trial: whose model has a space.
        suite: says how many configurations, by which sampler, and inner folds.
        task: what is predicted.
        bags: the trial's parts.
        place: where what is done is kept, for a trial that is killed.
        train: runs a training; one whose checkpoint is of a finished training predicts at once.
        score: of the bags, a result and a part, the metrics.

    Raises:
        InputError: Optuna is missing, or the training part cannot be divided into the inner folds.
        RuntimeError: every configuration failed.
    """
    model, criterion = trial.model, task.select
    higher = bool(task.higher_is_better(criterion))
    inner = _inner_parts(trial, suite, task, bags)
    folds = [{name: part for name, part in bags.items() if name != "test"}] if inner is None else inner
    kept, trainings = _Kept(place.folder / "configurations.json"), 0

    def of(number: int, fold: int | str) -> CheckpointPlace:
        return place.of(f"{number}-{fold}", keep_finished=True)

    def judge(number: int, settings: dict[str, Any]) -> Judged:
        nonlocal trainings
        trainings = number * len(folds)
        known = kept.get(number, settings)
        if known is not None:
            return known
        scores, losses, epochs, seconds = [], [], 0, 0.0
        try:
            configured = model.configured(settings)
            for fold, parts in enumerate(folds):
                result = train(Training(configured, parts, of(number, fold), trainings + fold))
                value = score(parts, result, "val")[criterion]
                scores.append(np.nan if value is None else value)
                losses.append(next((row.get("val_loss", np.nan) for row in result.epochs if row["selected"]), np.nan))
                epochs += len(result.epochs)
                seconds += sum(row["seconds"] for row in result.epochs)
        except OSError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return kept.add(number, Judged(settings=settings, epochs=epochs, seconds=seconds, reason=reason))
        finally:
            if inner is not None:  # their weights are not needed again
                for fold in range(len(folds)):
                    shutil.rmtree(of(number, fold).folder, ignore_errors=True)
        found = Judged(
            settings=settings,
            score=float(np.mean(scores)),
            loss=float(np.mean(losses)),
            epochs=epochs,
            seconds=seconds,
        )
        return kept.add(number, found)

    seed = np.random.SeedSequence(
        [trial.seed, trial.split.repeat, trial.split.fold, zlib.crc32(model.label.encode())]
    ).generate_state(1)[0]
    number = int(suite.tune or 1)
    judged = search(model.space, model.recipe, number, suite.sampler, int(seed), judge, higher)
    best = ranking(judged, higher)[0]
    if judged[best].score != judged[best].score:
        where = "the validation slides" if inner is None else "an inner fold"
        undefined = f"{criterion} is undefined on {where}; put slides of every outcome there, or more of them"
        reason = next((one.reason for one in judged if one.reason), undefined)
        raise RuntimeError(f"none of {number} configurations could be judged: {reason}")
    rows, chosen, seconds = [], None, sum(one.seconds for one in judged)
    for i, one in enumerate(judged):
        tested = None
        if not one.reason:
            with contextlib.suppress(Exception) if i != best else contextlib.nullcontext():
                configured = model.configured(one.settings)
                place_of = of(i, "test" if inner else 0)
                result = train(Training(configured, bags, place_of, number * len(folds) + i, chosen=i == best))
                tested = score(bags, result, "test")[criterion]
                seconds += sum(row["seconds"] for row in result.epochs) if inner else 0.0
                chosen = (configured, result) if i == best else chosen
        rows.append(_row(i, one, criterion, tested, chosen=i == best))
    assert chosen is not None
    return Tuned(*chosen, rows, judged[best].settings, seconds)


def _row(number: int, one: Judged, criterion: str, tested: float | None, chosen: bool) -> Row:
    return {
        "configuration": number,
        "settings": json.dumps(one.settings),
        "metric": criterion,
        "validation": one.score,
        "validation_loss": one.loss,
        "test": np.nan if tested is None else tested,
        "chosen": int(chosen),
        "epochs": one.epochs,
        "seconds": one.seconds,
        "reason": one.reason,
    }


def _inner_parts(trial: TrialPlan, suite: Suite, task: Task, bags: Parts) -> list[Parts] | None:
    """The parts of each inner fold, in which nothing of the test part is; None without inner folds."""
    if suite.inner_folds is None:
        return None
    pool = bags["train"] + bags["val"]
    strata = task.strata(pool.targets)
    try:
        splits = kfold(
            pool.relabelled(strata.tolist()),
            suite.inner_folds,
            seed=trial.seed,
            strata=None if task.strata_are_classes else task.shares(pool.targets),
        )
    except InputError as error:
        raise InputError(f"--inner-folds {suite.inner_folds}: in the training part {error}") from error
    rest = {name: part for name, part in bags.items() if name not in ("train", "val", "test")}
    return [
        rest | {"train": pool.select([*split.train, *split.val]), "val": pool.select(split.test)} for split in splits
    ]


class _Kept:
    """The configurations that were judged before the trial was killed, in a file of the trial.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        with contextlib.suppress(OSError, ValueError):
            refuse_pipe(path)
            self._rows = json.loads(path.read_text(encoding="utf-8"))

    def get(self, number: int, settings: dict[str, Any]) -> Judged | None:
        """What came of a configuration; None where it was not judged, and then of no later one either."""
        if number < len(self._rows) and self._rows[number]["settings"] == json.loads(json.dumps(settings)):
            return Judged(**self._rows[number])
        del self._rows[number:]
        return None

    def add(self, number: int, one: Judged) -> Judged:
        """Keeps what came of a configuration."""
        self._rows.append(dataclasses.asdict(one))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(self._rows))
        return one
