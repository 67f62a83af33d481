"""A task and a metric from plugin files, from data to page: nothing of the package knows them."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_zoo.metrics import find_metric, registry
from mil_zoo.registry import PLUGINS
from mil_zoo.tasks import TASKS

HERE = Path(__file__).parent
COUNTING, NPV, CLASH = HERE / "task_counting.py", HERE / "metric_npv.py", HERE / "metric_clash.py"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What a plugin registers is gone after the test, and its file can be imported again."""
    import sys

    monkeypatch.setattr(registry, "_METRICS", {task: dict(known) for task, known in registry._METRICS.items()})
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    monkeypatch.setattr(PLUGINS, "files", list(PLUGINS.files))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mil_zoo_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Bags of instances some of which are cells, and the label table that counts them."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cells")
    sizes, counts = rng.integers(8, 20, 24), rng.integers(0, 8, 24)
    features = [
        rng.normal(size=(n, 6)) + 3 * (np.arange(n) < count)[:, None] for n, count in zip(sizes, counts, strict=True)
    ]
    ends = np.concatenate([[0], sizes.cumsum()])
    names = np.array([f"slide_{i:02d}" for i in range(24)])
    np.savez(
        folder / "cells.npz",
        X=np.concatenate(features).astype(np.float32),
        bag_ptr=ends,
        bag_label=np.zeros(24, int),
        bag_name=names,
    )
    pd.DataFrame({"slide_id": names, "count": counts, "patient_id": names}).to_csv(folder / "counts.csv", index=False)
    return folder


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.figures
def test_a_task_runs_from_its_table_to_the_page(cells, tmp_path, run_cli):
    plugin, out = ("--plugin", COUNTING), tmp_path / "run"
    where = ("--dataset", cells / "cells.npz", "--labels", cells / "counts.csv", "--task", "counting:unit=nuclei")
    budget = ("--models", "abmil,mean", "--folds", 2, "--epochs", 3, "--set", "learning_rate=0.01", "--out", out)
    code, shown, err = run_cli("bench", *plugin, *where, *budget)
    assert code == 0, err
    assert "count_error" in shown

    counts = {row["slide_id"]: row["count"] for row in read_csv(cells / "counts.csv")}
    tested = []
    for line in (out / "trials.jsonl").read_text(encoding="utf-8").splitlines():
        trial = json.loads(line)
        rows = read_csv(out / "trials" / trial["trial"] / "predictions.csv")
        assert list(rows[0]) == ["slide_id", "patient_id", "split", "count", "expected", "logit_0"]
        assert all(row["count"] == counts[row["slide_id"]] for row in rows)
        test = [row for row in rows if row["split"] == "test"]
        errors = [abs(float(row["count"]) - float(row["expected"])) for row in test]
        assert trial["metrics"] == {"count_error": pytest.approx(np.mean(errors))}
        epochs = read_csv(out / "trials" / trial["trial"] / "epochs.csv")
        chosen = next(row for row in epochs if row["selected"] == "1")
        assert float(chosen["val_count_error"]) == min(float(row["val_count_error"]) for row in epochs)
        tested += [row["slide_id"] for row in test] if trial["aggregator"] == "mean" else []
    assert sorted(tested) == sorted(counts)

    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| Aggregator | Mean error |" in table
    assert "lowest validation mean error" in table
    (row,) = [row for row in read_csv(out / "table.csv") if row["aggregator"] == "mean"]
    assert float(row["count_error_low"]) < float(row["count_error_mean"]) < float(row["count_error_high"])
    assert {row["metric"] for row in read_csv(out / "comparisons.csv")} == {"count_error"}
    assert "Mean error" in (out / "report.html").read_text(encoding="utf-8")
    assert {"figure3.png", "metrics.png", "training.png"} <= {path.name for path in (out / "figures").iterdir()}
    assert "unit: nuclei" in (out / "config.yaml").read_text(encoding="utf-8")

    code, _, err = run_cli(
        "predict", *plugin, "--run", out, "--model", "abmil", cells / "cells.npz", "--out", tmp_path / "new"
    )
    assert code == 0, err
    predicted = read_csv(tmp_path / "new" / "probabilities.csv")
    assert len(predicted) == 24
    assert all(row["predicted"].startswith("expected ") and float(row["expected"]) > 0 for row in predicted)


def test_what_the_task_refuses_is_a_sentence(cells, tmp_path, run_cli):
    counts = (cells / "counts.csv").read_text(encoding="utf-8")
    broken = tmp_path / "broken.csv"
    broken.write_text(counts.replace("slide_05,", "slide_05,many", 1), encoding="utf-8")
    start = ("bench", "--dataset", cells / "cells.npz", "--models", "mean", "--out", tmp_path / "run")
    for arguments, words in {
        ("--task", "counting", "--labels", cells / "counts.csv"): "unknown task 'counting'",
        ("--plugin", COUNTING, "--task", "counting", "--labels", broken): "slide 'slide_05' has count 'many",
        ("--plugin", COUNTING, "--task", "counting:unti=x"): "unknown key 'unti'; did you mean 'unit'",
        ("--plugin", COUNTING, "--task", "counting", "--labels", cells / "counts.csv", "--set", "select=auc"): (
            "training.select must be one of count_error, loss, last, not 'auc'"
        ),
    }.items():
        code, _, err = run_cli(*start, *arguments)
        assert (code, words in err) == (2, True), err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_metric_appears_wherever_metrics_do(bag_table, tmp_path, run_cli):
    plugin, runs = ("--plugin", NPV), [tmp_path / "first", tmp_path / "second"]
    for number, out in enumerate(runs):
        table = tmp_path / f"bags{number}.npz"
        table.write_bytes(bag_table.read_bytes())
        budget = ("--models", "mean,max,topk", "--folds", 2, "--epochs", 2, "--set", "select=npv", "--out", out)
        code, shown, err = run_cli("bench", *plugin, "--dataset", table, *budget)
        assert code == 0, err
        assert "NPV" in shown
    out = runs[0]
    for line in (out / "trials.jsonl").read_text(encoding="utf-8").splitlines():
        trial = json.loads(line)
        assert list(trial["metrics"]) == ["accuracy", "balanced_accuracy", "auc", "f1", "npv"]
        rows = pd.read_csv(out / "trials" / trial["trial"] / "predictions.csv").query("split == 'test'")
        again = find_metric("npv")(rows["label"].to_numpy(), rows[["prob_0", "prob_1"]].to_numpy())
        assert trial["metrics"]["npv"] == pytest.approx(again, nan_ok=True)
        epochs = pd.read_csv(out / "trials" / trial["trial"] / "epochs.csv")
        best = epochs["val_npv"].max()
        assert np.isnan(best) or epochs.loc[epochs["selected"] == 1, "val_npv"].item() == best
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| AUC | F1 | NPV |" in table
    assert "highest validation NPV" in table
    assert {"npv_mean", "npv_low", "npv_boot_high"} <= set(read_csv(out / "table.csv")[0])
    assert "npv" in {row["metric"] for row in read_csv(out / "comparisons.csv")}
    assert "NPV" in (out / "report.html").read_text(encoding="utf-8")
    assert "NPV" in (out / "table.tex").read_text(encoding="utf-8")

    code, _, err = run_cli("compare", *runs, *plugin, "--metric", "npv", "--out", tmp_path / "both")
    assert code == 0, err
    assert "NPV" in (tmp_path / "both" / "ranking.md").read_text(encoding="utf-8")
    code, _, err = run_cli("compare", *runs, "--metric", "npw", "--out", tmp_path / "both")
    assert code == 2
    assert "npw" in err


def test_the_name_of_a_built_in_metric_is_refused(bag_table, tmp_path, run_cli):
    code, _, err = run_cli("bench", "--plugin", CLASH, "--dataset", bag_table, "--out", tmp_path / "run")
    assert code == 2
    assert "metric 'auc' of classification is already registered by mil_zoo.metrics.classification.auc" in err
    assert not (tmp_path / "run").exists()
