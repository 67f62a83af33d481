"""A protocol from a plugin file: its trials stand in the tables beside an aggregator's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_zoo.registry import PLUGINS
from mil_zoo.train.protocols import PROTOCOLS

PLUGIN = Path(__file__).parent / "protocol_nearest.py"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What the plugin registers is gone after the test."""
    monkeypatch.setattr(PROTOCOLS, "_entries", dict(PROTOCOLS._entries))
    monkeypatch.setattr(PLUGINS, "files", list(PLUGINS.files))


def test_a_protocol_runs_from_its_file_to_the_table(tmp_path, run_cli):
    rng, labels = np.random.default_rng(0), np.arange(20) % 2
    features = rng.normal(size=(200, 6)) + 3 * np.repeat(labels, 10)[:, None]  # one mean a class: it must be perfect
    arrays = {"X": features.astype(np.float32), "bag_ptr": np.arange(0, 201, 10), "bag_label": labels}
    np.savez(tmp_path / "bags.npz", **arrays)
    out = tmp_path / "out"
    budget = ["--folds", 2, "--epochs", 1, "--set", "nearest_mean.scale=2.0"]
    models = ["--plugin", PLUGIN, "--models", "nearest_mean,mean"]
    code, _, err = run_cli("bench", *models, "--dataset", tmp_path / "bags.npz", *budget, "--out", out)
    assert code == 0, err
    table = pd.read_csv(out / "table.csv").set_index("aggregator")
    assert table.loc["nearest_mean", "auc_mean"] == 1
    assert table.loc["nearest_mean", "trials_ok"] == 2
    assert "nearest_mean" in (out / "report.html").read_text(encoding="utf-8")
