"""A fabricated run directory: the files that reports read, with plausible numbers, made in well under a second."""

import itertools
import shutil
from types import SimpleNamespace
from urllib.parse import quote

import h5py
import numpy as np
import pandas as pd
import pytest

from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.diagnostics.attention import attention_curve, attention_skew
from mil_zoo.report.figures import registry
from mil_zoo.report.rescore import Columns, parse_columns, rescore

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


def write_run(path, rows, models, write=None, simulated=False, task=None, **dataset):
    """A run directory of these rows; ``write(row, folder)`` writes the files of a trial."""
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
        "task": task,
        "models": list(models),
        "split": {"kind": "kfold", "folds": 5, "repeats": 1, "validation_fraction": 0.15, "hash": "a1b2c3"},
        "seeds": [0],
        "version": "0.1.0",
        "selection": {model: "best validation accuracy" for model in models},
        "model_settings": {model: {"training": {"epochs": 40}} for model in models},
    }
    run = RunDirectory(path)
    with run.writing(config):
        for row in rows:
            if row["status"] == "failed":  # the bench says no more of it
                row = {name: value for name, value in row.items() if name not in ("metrics", "val_metrics")}
            run.add_trial(row, None if write is None else lambda folder, row=row: write(row, folder))
    return run


@pytest.fixture
def make_run(tmp_path):
    """``make_run(models=..., ...)``: a run directory with everything a report reads."""
    return lambda **options: fabricate(tmp_path / "run", **options)


def fabricate(
    path, models=("abmil", "srmil"), folds=2, epochs=4, slides=4, side=12, labels=True, nuclei=False, **options
):
    """A run of two classes: odd slides are positive, and test slide ``100 (fold + 1) + 1`` is predicted wrongly."""
    rng = np.random.default_rng(0)

    def write(row, folder):
        _write_epochs(folder, epochs, rng)
        _write_predictions(folder, row["aggregator"], row["fold"], slides)
        _write_attention(folder, MODELS[row["aggregator"]], row["fold"], epochs, slides, side, labels, nuclei)

    rows = []
    for model in models:
        for fold in range(folds):
            scores = {name: float(rng.beta(18, 2)) for name in ("accuracy", "balanced_accuracy", "auc", "f1")}
            rows.append(trial_row(model, fold, epochs=epochs, metrics=scores))
    return write_run(path, rows, models, write, **options)


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


def _write_predictions(folder, model, fold, slides):
    rng = np.random.default_rng([fold, list(MODELS).index(model)])
    rows = []
    for i, split in itertools.product(range(slides), ("val", "test")):
        # A probability on the side of the class that is predicted, see _write_attention.
        positive = rng.uniform(0.5, 1) if i % 2 and i != 1 else rng.uniform(0, 0.5)
        name = f"slide/{100 * (fold + 1) + i if split == 'test' else 50 + i}"
        patient = f"patient {i // 2}" if split == "val" else f"patient {fold}-{i // 2}"
        rows.append((name, patient, split, i % 2, 1 - positive, positive))
    columns = ["slide_id", "patient_id", "split", "label", "prob_0", "prob_1"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "predictions.csv", index=False)


def _write_attention(folder, shape, fold, epochs, slides, side, labels, nuclei):
    if shape is None:
        return
    sharpness, heads = shape
    rows = []
    with h5py.File(folder / "attention.h5", "w") as file:
        for i, split in itertools.product(range(slides), ("train", "test")):
            number = i if split == "train" else 100 * (fold + 1) + i
            rng = np.random.default_rng(number)
            positive, name = i % 2, f"slide/{number}"
            coords, tumour = _slide(rng, side, positive)
            given = tumour if labels and positive else None
            if split == "train":
                for epoch in range(1, epochs + 1):
                    weights = _attention(rng, tumour, sharpness * epoch / epochs, heads).mean(1)
                    rows += [(epoch, name, split, *item) for item in attention_curve(weights, given).items()]
                continue
            per_head = _attention(rng, tumour, sharpness, heads)
            numbers = attention_skew(per_head.mean(1), per_head, given)
            rows += [(epochs, name, split, *item) for item in numbers.items()]
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
def write(tmp_path):
    """``write.run(rows, models, ...)``: a run directory without trial files, of rows from ``write.row(...)``.

    ``write.run_at(path, rows, models, ...)``: the same elsewhere.
    """
    return SimpleNamespace(
        run=lambda *given, **options: write_run(tmp_path / "run", *given, **options),
        row=trial_row,
        run_at=write_run,
        path=tmp_path,
    )


@pytest.fixture
def change_table(tmp_path_factory):
    """``change_table(run, trial, name, table)``: the trial as if it had written another ``table`` into its file."""

    def change(run, trial, name, table):
        row = next(row for row in run.trials() if row["trial"] == trial)
        kept = tmp_path_factory.mktemp("trial") / "files"
        shutil.copytree(run.path / "trials" / trial, kept)
        table.to_csv(kept / name, index=False)
        del row["files"]
        run.add_trial(row, lambda folder: shutil.copytree(kept, folder, dirs_exist_ok=True))

    return change


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer pixels, which nobody looks at here."""
    monkeypatch.setattr(registry, "DPI", 60)


@pytest.fixture
def as_made(monkeypatch):
    """Panels stay where they were made, for tests of what becomes of pictures.

    Laying them out takes most of the time, and is for the tests of figures.
    """
    save = registry.save

    def keep(figure, path):
        figure.set_layout_engine("none")
        return save(figure, path)

    monkeypatch.setattr(registry, "save", keep)


@pytest.fixture
def again(tmp_path):
    """``again(table or [tables], cohort=, published=, by=, columns=, metric=)``: rescore.csv, and what was made."""

    calls = itertools.count()

    def run(tables, cohort=None, published=None, by=(), columns=(), metric=None, **outcome):
        paths = []
        for i, table in enumerate([tables] if isinstance(tables, pd.DataFrame) else tables):
            paths.append(tmp_path / f"file_{i}.csv")
            table.to_csv(paths[-1], index=False)
        others = {}
        for name, table in (("cohort", cohort), ("published", published)):
            others[name] = None
            if table is not None:
                others[name] = tmp_path / f"{name}.csv"
                table.to_csv(others[name], index=False)
        told = Columns(parse_columns(columns), tuple(by), outcome)
        out = tmp_path / f"out_{next(calls)}"
        made = rescore(paths, out, told, others["cohort"], others["published"], metric)
        found = pd.read_csv(out / "rescore.csv")
        return found.assign(remark=found["remark"].astype(object).fillna("")), made

    return run
