"""Of every task: outcomes of test patients choose nothing, an interrupted run goes on, and diagnostics run."""

import numpy as np
import pandas as pd
import pytest
from survival_runs import make_cohort

from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import Suite
from mil_zoo.data.source import DatasetSource

OUTCOME = {"time": "os_months", "censorship": "censorship"}
TASKS = {
    "survival": {"name": "survival", **OUTCOME},
    "survival_cox": {"name": "survival_cox", **OUTCOME},
    "ordinal": {"name": "ordinal", "num_classes": 3},
    "multilabel": {"name": "multilabel", "names": ["wide", "deep"]},
    "regression": {"name": "regression", "column": "score", "unit": "points"},
}
SMALL = {"learning_rate": 0.02, "bags_per_step": 8, "abmil.embed_dim": 8, "abmil.attention_dim": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


def plan(folder, task, labels="labels.csv", **given):
    source = DatasetSource(str(folder / "bags.npz"), labels=folder / labels)
    settings = {"models": ["abmil"], "folds": 2, "epochs": 1} | given
    return make_plan(Suite(datasets=["x"], task=TASKS[task], overrides=SMALL, **settings), source)


@pytest.mark.parametrize("task", ["survival", "survival_cox"])
def test_outcomes_of_test_patients_choose_nothing(folder, tmp_path, task):
    """Poison: with the outcomes of the test patients exchanged the same weights of the same epoch are kept."""
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    owner = sorted(table["patient_id"].unique())
    part = dict(zip(owner, np.resize(["train", "train", "val", "test"], len(owner)), strict=True))
    table["split"] = table["patient_id"].map(part)
    table.to_csv(folder / "true.csv", index=False)
    rows = table.index[(table["split"] == "test") & table["os_months"].notna() & ~table["patient_id"].duplicated(False)]
    table.loc[rows, ["os_months", "censorship"]] = table.loc[rows[::-1], ["os_months", "censorship"]].to_numpy()
    table.to_csv(folder / "poisoned.csv", index=False)
    kept = []
    for name in ("true", "poisoned"):
        run = run_plan(plan(folder, task, f"{name}.csv", split="official", epochs=4), tmp_path / name)
        (row,) = run.trials()
        files = run.path / "trials" / row["trial"]
        kept.append((row["selected_epoch"], (files / "weights.safetensors").read_bytes(), row["metrics"]["c_index"]))
    assert kept[0][:2] == kept[1][:2]
    assert kept[0][2] != kept[1][2]


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_goes_on_and_looks_at_attention(folder, tmp_path, task):
    whole = run_plan(made := plan(folder, task), tmp_path / "whole")
    stopped = []

    def stop(trial):
        stopped.append(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(made, tmp_path / "part", on_result=stop)
    again = run_plan(made, tmp_path / "part")
    assert len(stopped) == 1
    names = [row["trial"] for row in whole.trials()]
    assert sorted(names) == sorted(row["trial"] for row in again.trials())
    for name in names:
        files = [run.path / "trials" / name for run in (whole, again)]
        for file in ("predictions.csv", "weights.safetensors"):
            assert files[0].joinpath(file).read_bytes() == files[1].joinpath(file).read_bytes(), file
        skew = pd.read_csv(files[0] / "skew.csv")
        assert {"n_x_max", "entropy", "gini"} <= set(skew["name"])  # of attention, whatever is predicted
