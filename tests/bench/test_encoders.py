"""Several sets of features: every model reads each of them on the same splits, and tables set one against the other."""

import numpy as np
import pandas as pd
import pytest
from layouts import GRID, write_trident


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


def test_encoder_against_aggregator(folder, run_cli):
    arguments = ("bench", "--dataset", folder, "--models", "mean,abmil", "--folds", 2, "--epochs", 3)
    arguments += ("--set", "learning_rate=0.05", "--out", folder / "run")
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert "holds 2 sets of features; choose with --features: good, noise" in err
    code, _, err = run_cli(*arguments, "--features", "good,noise")
    assert (code, err) == (0, "")
    run = folder / "run"
    table = pd.read_csv(run / "table.csv")
    assert table[["aggregator", "encoder"]].to_numpy().tolist() == [
        ["mean@features=good", "good"],
        ["mean@features=noise", "noise"],
        ["abmil@features=good", "good"],
        ["abmil@features=noise", "noise"],
    ]
    assert (table["trials_ok"] == 2).all()
    auc = table.groupby("encoder")["auc_mean"].mean()
    assert auc["good"] > 0.9 > auc["noise"]
    wide = pd.read_csv(run / "encoders.csv")
    assert list(wide.columns) == ["metric", "aggregator", "good_mean", "good_sd", "noise_mean", "noise_sd"]
    assert wide["aggregator"].tolist() == ["mean", "abmil"] * 4
    assert "| Aggregator | Encoder |" in (run / "table.md").read_text()
    assert "| AUC | abmil |" in (run / "encoders.md").read_text()
    rows = {path.name for path in (run / "trials").iterdir()}
    assert "abmil@features=good-r0-f0-s0" in rows
    predicted = [
        pd.read_csv(run / "trials" / f"abmil@features={name}-r0-f0-s0" / "predictions.csv")
        for name in ("good", "noise")
    ]
    assert predicted[0]["slide_id"].tolist() == predicted[1]["slide_id"].tolist()  # the same split
    assert run_cli(*arguments, "--features", "good,noise")[0] == 0  # continues
    code, _, err = run_cli(*arguments[:-1], folder / "one", "--features", "good")
    assert (code, err) == (0, "")
    assert "encoder" not in pd.read_csv(folder / "one" / "table.csv").columns
    assert "features: good" in (folder / "one" / "config.yaml").read_text()
