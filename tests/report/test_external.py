"""A run that is tested on another dataset: what is lost there, and what is carried over."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo.metrics.classification import roc_area
from mil_zoo.report.figures import draw_figures, registry
from mil_zoo.report.load import Results
from mil_zoo.report.tables.external import external_table, shown_external
from mil_zoo.stats.shift import best_threshold, calibration_slope, fit_temperature


@pytest.fixture
def run(make_run, change_table, tmp_path):
    """A run of one model and fold whose test slides are another dataset's; its predictions."""

    def make(kind="all 60 slides of the other dataset are tested", seed=0):
        made = make_run(models=("mean",), folds=1)
        config = made.config
        config["split"]["kind"] = kind
        import yaml

        (made.path / "config.yaml").write_text(yaml.safe_dump(config))
        rng = np.random.default_rng(seed)
        rows = []
        for part, n, shift in (("val", 40, 0.0), ("test", 60, 1.5)):
            for i in range(n):
                odds = 1.5 * (2 * (i % 2) - 1) + rng.normal(0, 1.5) + shift
                p = 1 / (1 + np.exp(-2 * odds))
                rows.append((f"{part}{i}", f"{part} patient {i}", part, i % 2, 1 - p, p))
        table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "split", "label", "prob_0", "prob_1"])
        change_table(made, "mean-r0-f0-s0", "predictions.csv", table)
        return Results.load(made.path), table

    return make


def test_what_is_carried_over_comes_of_validation_slides_alone(run):
    results, table = run()
    row = external_table(results).iloc[0]
    val, test = (table[table["split"] == part] for part in ("val", "test"))
    threshold = best_threshold(val["label"], val["prob_1"])
    assert row["threshold"] == pytest.approx(threshold)
    assert row["sensitivity"] == pytest.approx((test["prob_1"] >= threshold)[test["label"] == 1].mean())
    assert row["specificity"] == pytest.approx((test["prob_1"] < threshold)[test["label"] == 0].mean())
    assert row["temperature"] == pytest.approx(fit_temperature(val["label"], val[["prob_0", "prob_1"]]))
    assert row["slope"] == pytest.approx(calibration_slope(test["label"], test["prob_1"]))
    assert row["in_the_large"] < 0  # the shift makes class 1 too likely


def test_internal_against_external(run):
    results, table = run()
    row = external_table(results).iloc[0]
    areas = [
        roc_area((part["label"] == 1).to_numpy(), part["prob_1"].to_numpy(), np.ones(len(part)))
        for part in (table[table["split"] == "val"], table[table["split"] == "test"])
    ]
    assert (row["internal"], row["external"]) == pytest.approx(areas)
    assert row["low"] < row["difference"] < row["high"]
    text = shown_external(results).markdown()
    assert "so that the internal score is a little too good" in text
    assert "Threshold: of highest balanced accuracy on validation slides" in text


def test_the_figure_draws_the_metric_of_the_table(run, monkeypatch):
    results, _ = run()
    drawn = {}
    monkeypatch.setattr(registry, "save", lambda figure, path: drawn.setdefault(path.stem, figure) and (b"", None))
    draw_figures(results, ["external"])
    (axes,) = drawn["external"].axes
    row = external_table(results).iloc[0]
    assert axes.get_xlabel() == "AUC"
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([row["internal"], row["external"]])


def test_a_cross_validation_has_no_such_table(run):
    results, _ = run(kind="stratified k-fold")
    assert not len(external_table(results))


def test_validation_slides_of_one_class_leave_what_needs_two_undefined(run, change_table):
    results, table = run()
    change_table(
        results.run, "mean-r0-f0-s0", "predictions.csv", table.assign(label=table["label"] * (table["split"] != "val"))
    )
    results = Results.load(results.path)
    row = external_table(results).iloc[0]
    assert row[["internal", "difference", "low", "threshold", "sensitivity"]].isna().all()
    assert row[["external", "slope", "in_the_large", "temperature"]].notna().all()
    assert "| mean | - |" in shown_external(results).markdown()
    assert draw_figures(results, ["external"]) is not None
