"""Several sets of features: every model reads each of them on the same splits, and tables set one against the other."""

import numpy as np
import pandas as pd
import pytest
from layouts import GRID, write_trident

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables
from mil_zoo.report.tables.encoders import without_encoder


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        noise = rng.normal(size=(12, 6)).astype(np.float32)
        write_trident(tmp_path, f"s{number:02d}", "good", noise[:, :4] + number % 2 * 3, GRID)
        write_trident(tmp_path, f"s{number:02d}", "noise", noise, GRID)
    labels = pd.DataFrame({"slide_id": [f"s{n:02d}" for n in range(24)], "label": [n % 2 for n in range(24)]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def test_encoder_against_aggregator(folder):
    name = str(folder)
    suite = read_suite(datasets=[name], models=["mean"], folds=2, epochs=3, overrides={"learning_rate": 0.05})
    with pytest.raises(InputError, match="holds 2 sets of features; choose with --features: good, noise"):
        make_plan(suite, name)
    with pytest.raises(InputError, match="no features called 'nois'; did you mean 'noise'"):
        make_plan(suite, name, features=["good", "nois"])
    assert make_plan(suite, name, features=["good"]).settings()["dataset"]["features"] == "good"
    run = run_plan(make_plan(suite, name, features=["good", "noise"]), folder / "run")
    write_tables(Results.load(run))
    table = pd.read_csv(run.path / "table.csv")
    assert table[["aggregator", "encoder"]].to_numpy().tolist() == [
        ["mean@features=good", "good"],
        ["mean@features=noise", "noise"],
    ]
    assert (table["trials_ok"] == 2).all()
    auc = table.groupby("encoder")["auc_mean"].mean()
    assert auc["good"] > 0.9 > auc["noise"]
    wide = pd.read_csv(run.path / "encoders.csv")
    assert list(wide.columns) == ["metric", "aggregator", "good_mean", "good_sd", "noise_mean", "noise_sd"]
    assert wide["aggregator"].tolist() == ["mean"] * 4
    assert "| Aggregator | Encoder |" in (run.path / "table.md").read_text()
    assert "| AUC | mean |" in (run.path / "encoders.md").read_text()
    trials = [run.path / "trials" / f"mean@features={encoder}-r0-f0-s0" for encoder in ("good", "noise")]
    good, noise = (pd.read_csv(trial / "predictions.csv")["slide_id"].tolist() for trial in trials)
    assert good == noise  # the same split


def test_labels_without_the_encoder():
    assert without_encoder("abmil@features=uni", "uni") == "abmil"
    assert without_encoder("abmil@features=uni%2Fv1,dim=64", "uni/v1") == "abmil@dim=64"
    assert without_encoder("abmil@features=uni (patients)", "uni") == "abmil (patients)"
