"""A fabricated run directory: the files that reports read, with plausible numbers, made in well under a second."""

import json
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from mil_zoo.diagnostics.attention import attention_curve, attention_skew

# Sharpness of attention at the end of training, and heads; None: a model without attention.
MODELS = {
    "abmil": (9.0, 1),
    "srmil": (1.5, 4),
    "mean": None,
    "transmil": (2.5, 8),
    "dsmil": (5.0, 1),
    "clam_sb": (7.0, 1),
    "acmil": (4.0, 5),
    "ilra": (3.0, 8),
}


class Run:
    """What reports use of a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = yaml.safe_load((path / "config.yaml").read_text())

    def trials(self):
        return [json.loads(line) for line in (self.path / "trials.jsonl").read_text().splitlines()]

    def epochs(self, trial):
        return pd.read_csv(self.path / "trials" / trial / "epochs.csv")

    def skew(self, trial):
        return pd.read_csv(self.path / "trials" / trial / "skew.csv", dtype={"slide_id": str})

    def attention(self, trial):
        return self.path / "trials" / trial / "attention.h5"


def trial_row(aggregator="abmil", fold=0, seed=0, grid="", **changes):
    """A row of trials.jsonl."""
    name = aggregator + (f"@{grid}" if grid else "")
    metrics = {"accuracy": 0.9, "balanced_accuracy": 0.88, "auc": 0.95, "f1": 0.89}
    row = {
        "trial": f"{name}-r0-f{fold}-s{seed}",
        "aggregator": aggregator,
        "grid": grid,
        "repeat": 0,
        "fold": fold,
        "seed": seed,
        "status": "ok",
        "reason": None,
        "metrics": metrics,
        "val_metrics": metrics,
        "n_train": 60,
        "n_val": 10,
        "n_test": 20,
        "selected_epoch": 3,
        "epochs": 5,
        "parameters": 1234567,
        "seconds_per_epoch": 2.5,
        "peak_mem_mib": 321.0,
    }
    return row | changes


def write_run(path, rows, models, simulated=False, **dataset):
    """A run directory without trial files."""
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "title": "fabricated",
        "dataset": {
            "name": "demo",
            "title": "Demo_slides & 100 % noise",
            "kind": "simulated" if simulated else "real",
            "classes": ["normal", "tumour"],
            "warnings": ["Labels of 3 slides are disputed"],
            "simulated": simulated,
            "instance_labels": None,
        }
        | dataset,
        "models": list(models),
        "split": {"kind": "kfold", "folds": 5, "repeats": 1, "validation_fraction": 0.15, "hash": "a1b2c3"},
        "seeds": [0],
        "version": "0.1.0",
        "selection": {model: "best validation accuracy" for model in models},
        "instance_threshold": 0.2,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(path)


@pytest.fixture
def make_run(tmp_path):
    """``make_run(models=..., ...)``: a run directory with everything a report reads."""
    return lambda **options: fabricate(tmp_path / "run", **options)


def fabricate(
    path, models=("abmil", "srmil"), folds=2, epochs=4, slides=4, side=12, labels=True, nuclei=False, **options
):
    rng = np.random.default_rng(0)
    rows = []
    for model in models:
        for fold in range(folds):
            scores = {name: float(rng.beta(18, 2)) for name in ("accuracy", "balanced_accuracy", "auc", "f1")}
            row = trial_row(model, fold, epochs=epochs, metrics=scores)
            rows.append(row)
            folder = path / "trials" / row["trial"]
            folder.mkdir(parents=True)
            _write_epochs(folder, epochs, rng)
            _write_attention(folder, MODELS[model], fold, epochs, slides, side, labels, nuclei)
    return write_run(path, rows, models, **options)


def _write_epochs(folder, epochs, rng):
    done = np.arange(1, epochs + 1) / max(epochs, 10)
    speed, top = rng.uniform(2, 8), rng.uniform(0.85, 0.99)

    def curve(end):
        return np.clip(0.5 + (end - 0.5) * (1 - np.exp(-speed * done)) + rng.normal(0, 0.02, epochs), 0, 1)

    table = {
        "epoch": range(1, epochs + 1),
        "loss": 0.7 * np.exp(-speed * done) + 0.05,
        "learning_rate": 1e-4,
        "train_accuracy": curve(1.0),
        "val_accuracy": curve(top),
        "val_auc": curve(top),
        "val_loss": 0.5,
        "seconds": 2.5,
        "selected": [0] * (epochs - 1) + [1],
    }
    pd.DataFrame(table).to_csv(folder / "epochs.csv", index=False)


def _write_attention(folder, shape, fold, epochs, slides, side, labels, nuclei):
    rows = []
    if shape is not None:
        sharpness, heads = shape
        with h5py.File(folder / "attention.h5", "w") as file:
            for i in range(slides):
                for split, number in (("train", i), ("test", 100 * (fold + 1) + i)):
                    rng = np.random.default_rng(number)
                    positive = i % 2
                    coords, tumour = _slide(rng, side, positive)
                    given = tumour if labels else None
                    name = f"slide/{number}"
                    if split == "train":
                        for epoch in range(1, epochs + 1):
                            weights = _attention(rng, tumour, sharpness * epoch / epochs, heads).mean(1)
                            numbers = attention_curve(weights, given if positive else None)
                            rows += [(epoch, name, split, key, value) for key, value in numbers.items()]
                        continue
                    per_head = _attention(rng, tumour, sharpness, heads)
                    numbers = attention_skew(per_head.mean(1), per_head, given if positive else None)
                    rows += [(epochs, name, split, key, value) for key, value in numbers.items()]
                    group = file.create_group(quote(name, safe=""))
                    group.attrs.update(slide_id=name, label=positive, predicted=positive if i != 1 else 0)
                    group.attrs["patch_size"] = np.nan if nuclei else 224.0
                    group["attention"] = per_head.mean(1).astype("f4")
                    group["head_attention"] = per_head.astype("f4")
                    group["coords"] = coords.astype("f4")
                    if labels:
                        group["instance_labels"] = tumour.astype("i1")
    columns = ["epoch", "slide_id", "split", "name", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "skew.csv", index=False)


def _slide(rng, side, positive):
    """Patches of a round piece of tissue, with a round tumour in a positive slide."""
    height = int(side * rng.uniform(0.6, 1.4))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(height)), -1).reshape(-1, 2)
    middle = np.array([side, height]) / 2
    grid = grid[(((grid - middle) / middle) ** 2).sum(1) < rng.uniform(0.7, 1.0)]
    seat = grid[rng.integers(len(grid))]
    near = ((grid - seat) ** 2).sum(1) < (side * rng.uniform(0.05, 0.25) + 1) ** 2
    return grid * 224.0, near & bool(positive)


def _attention(rng, tumour, sharpness, heads):
    scores = rng.normal(size=(len(tumour), heads)) * sharpness * 0.6 + sharpness * 0.8 * tumour[:, None]
    weights = np.exp(scores - scores.max(0))
    return weights / weights.sum(0)


@pytest.fixture
def write():
    """``write(path, rows, models, ...)``: a run directory without trial files."""
    return SimpleNamespace(run=write_run, row=trial_row)
