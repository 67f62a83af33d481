"""A run is read once, whatever is made of it, and nothing of the report needs torch."""

import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest

from mil_zoo import InputError
from mil_zoo.report import trial_tables
from mil_zoo.report.load import Results
from mil_zoo.report.tables import comparisons, documents, score_table

COUNT_OPENS = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, given: opened.append(given) if event == "open" else None)
from mil_zoo.cli import cli
from mil_zoo.report.figures import registry
registry.save = lambda figure, path: (b"picture", None)  # making one takes seconds and reads nothing
run = Path({path!r}).resolve()
cli(["report", str(run)], standalone_mode=False)
assert "torch" not in sys.modules and "dgl" not in sys.modules
for path, mode, _ in opened:
    if isinstance(path, (str, Path)) and run in Path(path).resolve().parents and (mode or "r")[0] == "r":
        print("read", Path(path).resolve().relative_to(run).as_posix())
"""


def test_a_report_reads_each_file_once_and_never_torch(make_run):
    run = make_run(models=("abmil",), folds=2)
    done = subprocess.run(
        [sys.executable, "-c", COUNT_OPENS.format(path=str(run.path))], capture_output=True, text=True, check=True
    )
    reads = Counter(line[5:] for line in done.stdout.splitlines() if line.startswith("read "))
    expected = ["config.yaml", "trials.jsonl"]
    for trial in (row["trial"] for row in run.trials()):
        expected += [f"trials/{trial}/{name}" for name in ("predictions.csv", "epochs.csv", "skew.csv", "attention.h5")]
    assert reads == dict.fromkeys(expected, 1)


def test_attention_files_are_opened_once(make_run, monkeypatch):
    from mil_zoo.report import attention_store
    from mil_zoo.report.page import write_page

    results = Results.load(make_run(folds=2))
    opened, original = [], attention_store.h5py.File
    monkeypatch.setattr(attention_store.h5py, "File", lambda path: opened.append(path) or original(path))
    documents(results)
    write_page(results)
    assert len(opened) == len(set(opened)) == 4


def test_more_attention_files_than_may_be_open(make_run, monkeypatch):
    from mil_zoo.report import attention_store

    run = make_run(folds=3)
    expected = documents(Results.load(run))
    monkeypatch.setattr(attention_store, "OPEN", 1)
    assert documents(Results.load(run)) == expected


def test_comparisons_are_computed_once(make_run, monkeypatch):
    from mil_zoo.report.tables import pairs

    calls, original = [], pairs.corrected_t_test
    monkeypatch.setattr(pairs, "corrected_t_test", lambda *given: calls.append(given) or original(*given))
    results = Results.load(make_run(models=("abmil", "srmil", "mean"), folds=2))
    documents(results)
    documents(results)
    assert comparisons(results) is comparisons(results)
    assert score_table(results) is score_table(results)
    assert len(calls) == 3 * 4  # pairs and metrics


def test_trials_read_together_say_what_each_says_alone(make_run, monkeypatch):
    results = Results.load(make_run(models=("abmil", "srmil"), folds=3))
    parts = {name: getattr(results, name)(*results.trials) for name in ("test_skew", "training_skew")}
    assert all(part["trial"].unique().tolist() == list(range(6)) for part in parts.values())
    monkeypatch.setattr(trial_tables, "TOGETHER", 1)
    alone = Results.load(results.run)
    for name, together in parts.items():
        each = [getattr(alone, name)(trial) for trial in alone.trials]
        pd.testing.assert_frame_equal(together.reset_index(drop=True), pd.concat(each, ignore_index=True))


def test_trials_are_typed_and_in_order(write):
    rows = [write.row(model, fold) for fold in (1, 0) for model in ("mean", "abmil")]
    results = Results.load(write.run(rows, ["abmil", "mean"]).path)
    assert [trial.trial for trial in results.trials] == [
        "abmil-r0-f0-s0", "abmil-r0-f1-s0", "mean-r0-f0-s0", "mean-r0-f1-s0",
    ]  # fmt: skip
    assert results.config.dataset.title == "Demo_slides & 100 % noise"
    assert [metric.name for metric in results.metrics] == ["accuracy", "balanced_accuracy", "auc", "f1"]
    with pytest.raises(InputError, match="has no metric 'kappa'"):
        results.metric("kappa")


def test_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        Results.load(tmp_path)
