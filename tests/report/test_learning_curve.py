"""The learning curve of a run whose grid varies the number of labels."""

import numpy as np
import pytest

from mil_zoo.report.figures import draw_figures
from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables
from mil_zoo.report.tables.label_budget import label_budget_table
from mil_zoo.stats import summarise

SCORES = {
    "abmil": {0.1: [0.6, 0.7, 0.65], 1: [0.9, 0.8, 0.85]},
    "gigassl": {0.1: [0.7, 0.75, 0.8], 1: [0.8, 0.7, None]},
}


def rows(write, extra=""):
    return [
        write.row(
            model,
            fold,
            grid=f"labelled={labelled}{extra}",
            n_labelled=round(60 * labelled),
            metrics={"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": score, "f1": 0.5},
        )
        for model, budgets in SCORES.items()
        for labelled, scores in budgets.items()
        for fold, score in enumerate(scores)
    ]


def test_scores_and_gains_by_number_of_labels(write):
    table = label_budget_table(Results.load(write.run(rows(write), SCORES))).set_index(["aggregator", "labelled"])
    assert table["slides"].to_dict() == {
        ("abmil", "0.1"): 6,
        ("abmil", "1"): 60,
        ("gigassl", "0.1"): 6,
        ("gigassl", "1"): 60,
    }
    expected = summarise([0.7, 0.75, 0.8], 6, 20)  # trained on the labelled tenth
    row = table.loc[("gigassl", "0.1")]
    assert [row[name] for name in ("mean", "sd", "low", "high", "n")] == pytest.approx(list(vars(expected).values()))
    assert row["gain_mean"] == pytest.approx(np.mean([0.1, 0.05, 0.15]))
    full = table.loc[("gigassl", "1")]
    assert (full["n"], full["gain_n"]) == (2, 2)  # the undefined score has no partner
    assert full["gain_mean"] == pytest.approx(-0.1)
    assert np.isnan(table.loc[("abmil", "1"), "gain_mean"])


def test_files_and_figure(write):
    run = write.run(rows(write, ",graph=knn:8"), SCORES, simulated=True)
    results = Results.load(run)
    assert {"learning_curve.csv", "learning_curve.md"} <= {path.name for path in write_tables(results)}
    text = (run.path / "learning_curve.md").read_text()
    assert "| gigassl@graph=knn:8 | 10% | 6 | 0.750 ± 0.050 [" in text
    assert "SIMULATED" in text
    (drawing,) = draw_figures(results, ["learning_curve"])
    assert drawing.path.stat().st_size > 10_000


def test_nothing_without_such_a_grid(write):
    results = Results.load(write.run([write.row()], ["abmil"]))
    assert "learning_curve.md" not in [path.name for path in write_tables(results)]
    assert draw_figures(results, ["learning_curve"]) == []
