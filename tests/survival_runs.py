"""A fabricated survival run, of models whose risks follow the true ones more or less, and a cohort to train on."""

import json

import numpy as np
import pandas as pd

from mil_zoo.noted import note_of
from mil_zoo.stats import concordance
from mil_zoo.tasks import Survival, task_settings

FOLDS, PATIENTS = 5, 40  # tested in each fold


def survival_run(write, path, noise, folds=FOLDS, tested=FOLDS, seed=0, covariates=True, eventless=(), **dataset):
    """A run of ``noise``: of each model the spread of its risk around the true one; None for one risk of all.

    Of the ``folds`` so many are ``tested``. No test patient of an ``eventless`` one has the event.

    ``write`` is the fixture of ``tests/report``.
    """
    rng = np.random.default_rng(seed)
    n = folds * PATIENTS
    hidden, age = rng.normal(size=n), rng.normal(size=n)
    hazard = 1.5 * hidden + 0.5 * age
    death, lost = rng.exponential(30 * np.exp(-hazard)), rng.uniform(10, 90, n)
    time, event = np.minimum(death, lost).round(1), (death <= lost).astype(int)
    names = np.array([f"p{i:03d}" for i in range(n)])
    fold = np.arange(n) % folds
    event[np.isin(fold, eventless)] = 0
    task = Survival("rank", time="time_months", event="event", unit="months")
    rows, tables, fitted = [], {}, {}
    for model, spread in noise.items():
        risk = np.zeros(n) if spread is None else hidden + spread * rng.normal(size=n)
        for number in range(min(folds, tested)):
            test = fold == number
            values = {"slide_id": names[test], "patient_id": names[test], "split": "test"}
            values |= {"time_months": time[test], "event": event[test], "risk": risk[test]}
            score = concordance(time[test], event[test], risk[test])
            size = {"n_train": int((~test).sum()), "n_test": int(test.sum())}
            size["notes"] = {"c_index": note} if (note := note_of(score)) else {}
            scores = {"c_index": None if np.isnan(score) else float(score)}
            row = write.row(model, number, metrics=scores, val_metrics=scores, **size)
            training = np.stack([time[~test], event[~test]], 1)
            one = task.of_cohort(training).fit(training).finished(training, risk[~test, None])
            rows.append(row)
            tables[row["trial"]], fitted[row["trial"]] = pd.DataFrame(values), task_settings(one)

    def files(row, folder):
        tables[row["trial"]].to_csv(folder / "predictions.csv", index=False)
        epoch = {"epoch": 1, "loss": 0.5, "val_loss": 0.5, "seconds": 1.0, "selected": 1}
        pd.DataFrame([epoch]).to_csv(folder / "epochs.csv", index=False)
        (folder / "task.json").write_text(json.dumps(fitted[row["trial"]]), encoding="utf-8")

    given = {"classes": [], "task": task_settings(task)["task"]} | dataset
    run = write.run_at(path, rows, list(noise), files, **given)
    parts = {f"r0-f{k}": np.where(fold == k, "test", "train") for k in range(folds)}
    pd.DataFrame({"slide_id": names, "patient_id": names, **parts}).to_csv(path / "splits.csv", index=False)
    outcomes = pd.DataFrame({"patient_id": names, "time_months": time, "event": event})
    if covariates:
        outcomes.to_csv(path / "outcomes.csv", index=False)
        outcomes[["patient_id"]].assign(age=(60 + 10 * age).round(1)).to_csv(path / "covariates.csv", index=False)
    return run


def make_cohort(folder, seed=0, mark=""):
    """Bags whose positive instances hasten the event; ten patients have two slides, three lack an outcome."""
    rng, n = np.random.default_rng(seed), 70
    sizes, amount = rng.integers(8, 16, n), rng.uniform(0, 1, n)
    patient = np.array([f"{mark}P{i:02d}" for i in range(n)])
    for i in range(0, 20, 2):
        patient[i + 1], amount[i + 1] = patient[i], amount[i]
    features = [
        rng.normal(size=(s, 5)) + 3 * (np.arange(s) < a * s)[:, None] for s, a in zip(sizes, amount, strict=True)
    ]
    names = np.array([f"{mark}slide_{i:02d}" for i in range(n)])
    np.savez(
        folder / "bags.npz",
        X=np.concatenate(features).astype(np.float32),
        bag_ptr=np.concatenate([[0], sizes.cumsum()]),
        bag_label=np.zeros(n, int),
        bag_name=names,
    )
    death, lost = rng.exponential(40 * np.exp(2 - 4 * amount)), rng.uniform(20, 120, n)
    for i in range(0, 20, 2):
        death[i + 1], lost[i + 1] = death[i], lost[i]
    table = pd.DataFrame(
        {
            "slide_id": names,
            "patient_id": patient,
            "os_months": np.minimum(death, lost).round(2),
            "censorship": (death > lost).astype(int),
            "score": (20 * amount).round(2),
            "label": np.digitize(amount, [0.3, 0.6]),
            "wide": (amount > 0.5).astype(int),
            "deep": (amount > 0.7).astype(int),
        },
        dtype=object,
    )
    table.loc[[60, 61], "os_months"] = None
    table.loc[62, "censorship"] = None
    table.loc[63, "wide"] = None
    table.to_csv(folder / "labels.csv", index=False)
    return folder
