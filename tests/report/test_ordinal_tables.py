"""Ordered classes: what a model says is the number of P(y > k) above 0.5, and not the most probable class."""

import numpy as np
import pandas as pd

from mil_zoo.report.load import Results
from mil_zoo.report.tables import write_tables


def test_a_model_of_ordered_classes_has_collapsed_when_it_says_one_of_all(write):
    """Class 0 is the most probable one of every slide, and of half of them P(y > 0) is above 0.5."""
    n, rows = 12, []
    said = {"spread": [[0.55, 0.25, 0.2], [0.4, 0.35, 0.25]], "flat": [[0.55, 0.25, 0.2]] * 2}
    for model in said:
        rows += [write.row(model, fold, metrics={"qwk": 0.1, "mae_class": 1.0}) for fold in range(2)]

    def files(row, folder):
        values = np.resize(said[row["aggregator"]], (n, 3))
        table = pd.DataFrame(
            {"slide_id": [f"s{row['fold']}_{i:02d}" for i in range(n)], "patient_id": "", "split": "test"}
        )
        table["label"] = np.arange(n) % 3
        table[["prob_0", "prob_1", "prob_2"]] = values
        above = np.stack([1 - values[:, 0], values[:, 2]], axis=1)
        table["predicted"], table["expected"] = (above > 0.5).sum(1), values @ np.arange(3)
        table.to_csv(folder / "predictions.csv", index=False)

    task = {"name": "ordinal", "num_classes": 3}
    run = write.run(rows, list(said), files, task=task, classes=["a", "b", "c"])
    write_tables(Results.load(run.path))
    text = (run.path / "table.md").read_text(encoding="utf-8")
    assert "Collapsed: flat says 'a'" in text
    assert "spread says" not in text
