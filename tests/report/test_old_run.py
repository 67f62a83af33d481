"""A run from before there were tasks, as its bench wrote it: the report gives the same numbers, byte by byte.

``golden/old_run/`` holds what ``mil-zoo report`` wrote of it then. The tables have since gained columns, and of
several test sets lost the permutation test.
"""

import pandas as pd
from helpers import GOLDEN

from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables

THEN = GOLDEN / "old_run"
# Of each model and fold the positive probability of six test slides, of which the last three are positive.
SAID = {
    "abmil": ([0.1, 0.2, 0.6, 0.4, 0.8, 0.9], [0.3, 0.1, 0.2, 0.7, 0.6, 0.9], [0.2, 0.4, 0.1, 0.9, 0.3, 0.8]),
    "mean": ([0.3, 0.6, 0.7, 0.4, 0.2, 0.9], [0.4, 0.7, 0.2, 0.3, 0.6, 0.8], [0.5, 0.1, 0.4, 0.3, 0.7, 0.6]),
}
SCORES = ("accuracy", "balanced_accuracy", "auc", "f1")


def old_run(path):
    """The files of that time: no task in ``config.yaml``, no notes in the rows, no logits beside the probabilities."""
    run = RunDirectory(path)
    config = {
        "title": "demo",
        "dataset": {"name": "demo", "title": "Demo", "kind": "simulated", "classes": ["normal", "tumour"]},
        "models": list(SAID),
        "split": {"kind": "kfold", "folds": 3, "repeats": 1, "validation_fraction": 0.15, "hash": "a1b2c3"},
        "seeds": [0],
        "version": "0.1.0",
        "selection": dict.fromkeys(SAID, "best validation AUC"),
        "model_settings": {model: {"training": {"epochs": 40}} for model in SAID},
    }
    config["dataset"] |= {"warnings": [], "simulated": True, "instance_labels": None}
    with run.writing(config):
        for model, folds in SAID.items():
            for fold, said in enumerate(folds):
                right = [(p > 0.5) == (i > 2) for i, p in enumerate(said)]
                above = [(p > q) + (p == q) / 2 for p in said[3:] for q in said[:3]]
                called = sum(p > 0.5 for p in said)
                scores = (sum(right) / 6, sum(right) / 6, sum(above) / 9, 2 * sum(right[3:]) / (3 + called))
                metrics = dict(zip(SCORES, scores, strict=True))
                row = {"trial": f"{model}-r0-f{fold}-s0", "aggregator": model, "grid": "", "repeat": 0, "fold": fold}
                row |= {"seed": 0, "status": "ok", "reason": None, "metrics": metrics, "val_metrics": metrics}
                row |= {"n_train": 10, "n_val": 2, "n_test": 6, "selected_epoch": 3, "epochs": 5, "parameters": 1234}
                row |= {"seconds_per_epoch": 2.5, "peak_mem_mib": 321.0}
                names = [f"s{fold}{i}" for i in range(6)]
                table = {
                    "slide_id": names,
                    "patient_id": names,
                    "split": "test",
                    "label": [int(i > 2) for i in range(6)],
                }
                table |= {"prob_0": [1 - p for p in said], "prob_1": list(said)}
                run.add_trial(
                    row, lambda folder, t=table: pd.DataFrame(t).to_csv(folder / "predictions.csv", index=False)
                )
    return run


def test_a_run_from_before_there_were_tasks_is_reported_as_it_was(tmp_path):
    run = old_run(tmp_path / "run")
    write_tables(Results.load(run))
    assert (run.path / "table.csv").read_bytes() == (THEN / "table.csv").read_bytes()
    then = pd.read_csv(THEN / "comparisons.csv", dtype=str)
    now = pd.read_csv(run.path / "comparisons.csv", dtype=str)
    assert now[then.columns].to_csv() == then.to_csv()
    shown = (run.path / "table.md").read_text(encoding="utf-8")
    assert (
        "| abmil | 0.833 ± 0.167 [0.14, 1.00] | 0.833 ± 0.167 [0.14, 1.00] | 0.926 ± 0.064 [0.66, 1.00] "
        "| 0.822 ± 0.168 [0.12, 1.00] | 3 | 1,234 |\n"
    ) in shown
