"""What came of a trial: its predictions as tables, their scores, and the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save

from mil_zoo.bench.parts import Parts
from mil_zoo.bench.results import Row
from mil_zoo.data.labelled import Standardiser
from mil_zoo.data.splits.split import patient_key
from mil_zoo.noted import note_of
from mil_zoo.tasks import Task, task_settings
from mil_zoo.train.protocols import TrialResult
from mil_zoo.train.steps import of_patients

TASK = "task.json"  # the task that a trial fitted to its training slides, where that is not the run's
STAGES = "stages.json"  # what a model learned before its training, and from which slides, where it does
EMBEDDINGS = "embeddings.npy"  # of the test slides, in the order of predictions.csv


def predictions_of(bags: Parts, result: TrialResult) -> pd.DataFrame:
    """``predictions.csv``: what is known of each slide, the target's columns, the prediction's, and the logits."""
    parts = []
    for part, predictions in result.predictions.items():
        slides = bags[part].slides
        known: dict[str, Sequence[Any]] = {
            "slide_id": [slide.slide_id for slide in slides],
            "patient_id": [slide.patient_id or "" for slide in slides],
            "split": [part] * len(slides),
        }
        known |= result.task.target_cells(bags[part].targets)
        known |= result.task.prediction_cells(predictions.numpy())
        if part in result.logits:  # they rank also where predictions saturate
            columns = result.logits[part].double().T.tolist()
            known |= {f"logit_{i}": [repr(value) for value in column] for i, column in enumerate(columns)}
        parts.append(pd.DataFrame(known))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return table


def patients_of(bags: Parts, result: TrialResult, rule: str | None) -> pd.DataFrame | None:
    """``patients.csv``: as ``predictions.csv``, of patients whose slides are several bags; None where none are scored.

    A task that scores patients combines the logits of their slides, of which it then predicts.
    """
    task = result.task
    if not task.of_patients or rule not in ("mean", "max"):
        return None
    tables = []
    for part, logits in result.logits.items():
        combined, targets = of_patients(task, logits, bags[part], rule)
        names = list(dict.fromkeys(patient_key(slide) for slide in bags[part].slides))
        known = {"slide_id": names, "patient_id": names, "split": [part] * len(names)}
        cells = task.target_cells(targets) | task.prediction_cells(task.predict(combined).numpy())
        tables.append(pd.DataFrame(known | cells))
    table: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return table


def metrics_of(task: Task, predictions: pd.DataFrame, part: str) -> dict[str, float | None]:
    """Every metric of one part; None where it is undefined."""
    return _defined(task.score(*task.read(predictions[predictions["split"] == part])))


def _defined(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in scores.items()}


def notes_of(task: Task, predictions: pd.DataFrame) -> dict[str, str]:
    """Why test metrics are undefined, and what must be known of others, by name."""
    scores = task.score(*task.read(predictions[predictions["split"] == "test"]))
    return {name: note for name, value in scores.items() if (note := note_of(value))}


def scores_of_last(bags: Parts, result: TrialResult, rule: str | None) -> dict[str, float | None]:
    """The test scores of the last epoch; {} where it was chosen."""
    if result.last is None or (result.task.of_patients and rule in ("mean", "max")):  # these are of slides
        return {}
    return _defined(result.task.score(bags["test"].targets, result.last.double().numpy()))


def scores_of_patients(task: Task, predictions: pd.DataFrame, rule: str | None) -> Row:
    """What a trial's row says of patients; nothing where slides are not combined."""
    if rule not in ("mean", "max") or task.of_patients:
        return {}
    return {
        "patient_metrics": metrics_of(task, task.patients(predictions[predictions["split"] == "test"], rule), "test")
    }


def weights_file(weights: Mapping[str, torch.Tensor]) -> bytes:
    """The content of ``weights.safetensors``. A parameter that two modules share is written under both of its names."""
    seen: set[int] = set()
    owned = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        owned[name] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    return save(owned)


def write_files(
    folder: Path,
    predictions: pd.DataFrame,
    patients: pd.DataFrame | None,
    result: TrialResult,
    weights: bytes,
    standardiser: Standardiser | None,
    task: Task,
) -> None:
    """Writes what came of a trial into its empty folder; ``task`` is the run's, before it was fitted."""
    if result.task != task:
        (folder / TASK).write_text(json.dumps(task_settings(result.task)), encoding="utf-8")
    predictions.to_csv(folder / "predictions.csv", index=False, lineterminator="\n")
    if patients is not None:
        patients.to_csv(folder / "patients.csv", index=False, lineterminator="\n")
    pd.DataFrame(result.epochs).to_csv(folder / "epochs.csv", index=False, lineterminator="\n")
    if result.stages:
        (folder / STAGES).write_text(json.dumps(list(result.stages), indent=1), encoding="utf-8")
    if result.recorder is not None:
        result.recorder.write(folder)
    if result.explanations is not None:
        result.explanations.write(folder)
    (folder / "weights.safetensors").write_bytes(weights)
    if standardiser is not None:
        (folder / "standardiser.safetensors").write_bytes(save(standardiser.tensors()))


def write_test_embeddings(folder: Path, result: TrialResult) -> None:
    """Writes those of the test slides in float16; as they are where one of them is too large for it."""
    if result.embeddings is None:
        return
    values = result.embeddings.detach().float().numpy()
    if np.abs(values).max(initial=0) <= np.finfo(np.float16).max:
        values = values.astype(np.float16)
    np.save(folder / EMBEDDINGS, values, allow_pickle=False)
