"""Runs the trials of a plan into a run directory."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import save_file

from mil_zoo.aggregators.base import Aggregator, create_aggregator
from mil_zoo.bench.plan import Plan, Trial
from mil_zoo.bench.store import RunDirectory
from mil_zoo.data.bag import Bag
from mil_zoo.data.dataset import Standardiser
from mil_zoo.data.slide_files import labels_of, pick, relabel
from mil_zoo.data.split_files import splits_csv
from mil_zoo.data.splits import Split
from mil_zoo.diagnostics.faithfulness import faithfulness
from mil_zoo.diagnostics.recorder import AttentionRecorder, attention_of
from mil_zoo.train.loop import fit, predict
from mil_zoo.train.metrics import score


def run_plan(
    plan: Plan,
    out: Path,
    *,
    on_trial: Callable[[Trial], None] | None = None,
    on_epoch: Callable[[Trial, dict[str, Any]], None] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> RunDirectory:
    """Runs every trial that ``out`` does not hold yet. A trial that fails is a row with its reason; the others go on.

    Args:
        plan: what to run.
        out: the run directory; one of the same settings is continued.
        on_trial: called before each trial that has to run.
        on_epoch: called after each of its epochs with the row of ``epochs.csv``.
        on_result: called with the row of each trial, also of those that were there already.

    Raises:
        InputError: see ``RunDirectory.writing``.
    """
    run = RunDirectory(out)
    with run.writing(plan.settings()):
        run.write_text("splits.csv", splits_csv(plan.splits, plan.dataset.bags))
        done = {row["trial"]: row for row in run.trials() if row["status"] == "ok"}
        parts: tuple[Split, dict[str, Sequence[Bag]]] | None = None
        for trial in plan.trials:
            if trial.id not in done:
                if on_trial is not None:
                    on_trial(trial)
                if parts is None or parts[0] is not trial.split:
                    parts = trial.split, _split_bags(plan, trial.split)
                done[trial.id] = _run_trial(plan, trial, parts[1], run, on_epoch)
            if on_result is not None:
                on_result(done[trial.id])
    return run


def _split_bags(plan: Plan, split: Split) -> dict[str, Sequence[Bag]]:
    parts = {part: pick(plan.dataset.bags, getattr(split, part)) for part in ("train", "val", "test")}
    if plan.dataset.card.standardise:
        standardise = Standardiser.fit(parts["train"])
        parts = {part: [standardise(bag) for bag in bags] for part, bags in parts.items()}
    if plan.suite.permute_labels:
        for number, part in enumerate(("train", "val")):
            rng = np.random.default_rng([number, split.repeat, split.fold])
            shuffled = _shuffled(np.array(labels_of(parts[part])), rng)
            parts[part] = relabel(parts[part], shuffled.tolist())
    return parts


def _shuffled(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The same labels in a random order in which each class gets its share of every label.

    Over a few dozen slides a plain shuffle agrees with the truth by chance often enough to look like a leak.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):  # spread every label evenly over the sequence
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    shuffled = np.empty_like(labels)
    shuffled[np.lexsort((rng.random(len(labels)), labels))] = labels[np.argsort(place)]
    return shuffled


def _run_trial(
    plan: Plan,
    trial: Trial,
    bags: dict[str, Sequence[Bag]],
    run: RunDirectory,
    on_epoch: Callable[[Trial, dict[str, Any]], None] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trial": trial.id,
        "aggregator": trial.model.name,
        "grid": trial.model.grid,
        "repeat": trial.split.repeat,
        "fold": trial.split.fold,
        "seed": trial.seed,
        "status": "ok",
        "reason": None,
        "n_train": len(bags["train"]),
        "n_val": len(bags["val"]),
        "n_test": len(bags["test"]),
    }
    try:
        aggregator, epochs, recorder, predictions = _train_and_predict(plan, trial, bags, on_epoch)
    except Exception as error:  # whatever an aggregator does wrong, the other trials go on
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        run.add_trial(row)
        return row

    def write(folder: Path) -> None:
        predictions.to_csv(folder / "predictions.csv", index=False, lineterminator="\n")
        pd.DataFrame(epochs).to_csv(folder / "epochs.csv", index=False, lineterminator="\n")
        recorder.write(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in aggregator.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")

    row |= {
        "metrics": _score(predictions, "test"),
        "val_metrics": _score(predictions, "val"),
        "epochs": len(epochs),
        "selected_epoch": next(epoch["epoch"] for epoch in epochs if epoch["selected"]),
        "parameters": sum(parameter.numel() for parameter in aggregator.parameters()),
        "seconds_per_epoch": float(np.mean([epoch["seconds"] for epoch in epochs])),
        "peak_mem_mib": _peak_memory_mib(),
    }
    run.add_trial(row, write)
    return row


def _train_and_predict(
    plan: Plan,
    trial: Trial,
    bags: dict[str, Sequence[Bag]],
    on_epoch: Callable[[Trial, dict[str, Any]], None] | None,
) -> tuple[Aggregator, list[dict[str, Any]], AttentionRecorder, pd.DataFrame]:
    seed = int(np.random.SeedSequence([trial.seed, trial.split.repeat, trial.split.fold]).generate_state(1)[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _reset_peak_memory()
    torch.manual_seed(seed)
    model, recorder = trial.model, AttentionRecorder()
    aggregator = create_aggregator(model.name, plan.dataset.in_dim, plan.dataset.num_classes, **model.options)
    epochs = fit(
        aggregator,
        bags["train"],
        bags["val"],
        model.training,
        graph=model.graph,
        seed=seed,
        device=device,
        after_epoch=recorder.record_training,
        on_epoch=None if on_epoch is None else lambda row: on_epoch(trial, row),
    )
    selected = next(row["epoch"] for row in epochs if row["selected"])
    rows = []
    for part in ("val", "test"):
        for bag, output, probabilities in predict(aggregator, bags[part], model.graph, device):
            if part == "test":
                recorder.record_test(selected, bag, output, probabilities)
                if plan.suite.faithfulness and output.attention is not None:
                    numbers = faithfulness(
                        bag,
                        attention_of(output, probabilities),
                        probabilities,
                        lambda changed: [p for _, _, p in predict(aggregator, changed, model.graph, device)],
                        plan.suite.faithfulness,
                    )
                    recorder.record_numbers(selected, bag, numbers)
            columns = {f"prob_{label}": f"{p:.8g}" for label, p in enumerate(probabilities.tolist())}
            known: dict[str, Any] = {
                "slide_id": bag.slide_id,
                "patient_id": bag.patient_id or "",
                "split": part,
                "label": bag.label,
            }
            rows.append(known | columns)
    return aggregator, epochs, recorder, pd.DataFrame(rows)


def _score(predictions: pd.DataFrame, part: str) -> dict[str, float | None]:
    rows = predictions[predictions["split"] == part]
    probabilities = rows.filter(regex=r"^prob_\d+$").astype(float).to_numpy()
    scores = score(rows["label"].to_numpy(), probabilities)
    return {name: None if np.isnan(value) else value for name, value in scores.items()}


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now


def _peak_memory_mib() -> float:
    """Peak memory since the reset: of the GPU where one is used, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
