"""A run directory made of prediction files, so that every table, figure and test of a bench is made of them too."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mil_zoo import __version__
from mil_zoo.bench.results import DatasetFacts, ModelSettings, RunConfig, SplitFacts, Trial
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.noted import note_of
from mil_zoo.report.rescore.parts import Part
from mil_zoo.tasks import Task, task_settings

KIND = "predictions"  # of a dataset of which nothing but predictions is at hand
_COLUMNS = ("slide_id", "patient_id", "split")


def write_run(path: Path, parts: Sequence[Part], title: str, task: Task, warnings: Sequence[str]) -> RunDirectory:
    """Writes the predictions of one group as the trials of a run.

    Args:
        path: the run directory.
        parts: of the group.
        title: what tables call the data.
        task: what is predicted.
        warnings: sentences that belong under every table.

    Raises:
        InputError: the directory cannot be written, or holds another run.
    """
    usable = [part for part in parts if len(part.rows)]
    repeats, folds, seeds = (_numbers(part.split[i] for part in usable) for i in range(3))
    models = list(dict.fromkeys(part.model for part in usable))
    digest = hashlib.sha256()
    for part in usable:
        digest.update("\n".join([*part.split[:2], *part.rows["slide_id"]]).encode())
    owners = {name for part in usable for name in _owners(part.rows)}
    config = RunConfig(
        title=f"{', '.join(models)} on {title}",
        version=__version__,
        task=task_settings(task).get("task"),
        dataset=DatasetFacts(
            name=title,
            title=title,
            kind=KIND,
            classes=[str(c) for c in range(getattr(task, "count", 0))],
            bags=len({slide for part in usable for slide in part.rows["slide_id"]}),
            warnings=list(warnings),
        ),
        models=models,
        model_settings={model: ModelSettings() for model in models},
        selection={},
        split=SplitFacts(
            kind=f"as in the files, {len(owners)} patients",
            folds=len(folds),
            repeats=len(repeats),
            validation_fraction=None,
            hash=digest.hexdigest()[:12],
        ),
        seeds=sorted(seeds.values()),
    )
    run = RunDirectory(path)
    with run.writing(config.settings()):
        for part in usable:
            _write_trial(run, part, task, (repeats, folds, seeds))
    return run


def _write_trial(
    run: RunDirectory, part: Part, task: Task, numbers: tuple[dict[str, int], dict[str, int], dict[str, int]]
) -> None:
    repeat, fold, seed = (known[text] for known, text in zip(numbers, part.split, strict=True))
    scores = {metric.name: part.value(metric) for metric in part.task.metrics}
    trial = Trial(
        trial=f"{safe(part.model)}-r{repeat}-f{fold}-s{seed}",
        aggregator=part.model,
        repeat=repeat,
        fold=fold,
        seed=seed,
        n_train=part.n_train,
        n_test=len(part.rows),
        metrics={name: None if np.isnan(value) else float(value) for name, value in scores.items()},
        notes={name: note for name, value in scores.items() if (note := note_of(value))},
    )

    def write(folder: Path) -> None:
        rows = part.rows.assign(split="test")
        targets, predictions = task.read(rows)
        cells = {**task.target_cells(targets), **task.prediction_cells(predictions)}
        table = pd.concat([rows[list(_COLUMNS)].reset_index(drop=True), pd.DataFrame(cells)], axis=1)
        table.to_csv(folder / "predictions.csv", index=False, lineterminator="\n")
        (folder / "epochs.csv").write_text("epoch,loss\n", encoding="utf-8")
        if part.task != task:
            (folder / "task.json").write_text(json.dumps(task_settings(part.task)), encoding="utf-8")

    run.add_trial(trial.to_row(), write)


def safe(name: str) -> str:
    """A name as part of a file's name; different names stay different."""
    plain = re.sub(r"[^A-Za-z0-9_.,=+ -]", "_", name)[:80]
    return plain if plain == name and plain else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _numbers(texts: object) -> dict[str, int]:
    """Whole numbers as they are, other names numbered in order of appearance."""
    known = list(dict.fromkeys(texts))  # type: ignore[call-overload]
    if all(re.fullmatch(r"\d+", text) for text in known) and len({int(text) for text in known}) == len(known):
        return {text: int(text) for text in known}
    return {text: i for i, text in enumerate(known)}


def _owners(rows: pd.DataFrame) -> list[str]:
    return rows["patient_id"].where(rows["patient_id"] != "", rows["slide_id"]).tolist()
