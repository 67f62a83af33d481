"""Tables of practical equivalence, of the best simple baseline and of variance components."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo.report.load import Results
from mil_zoo.report.tables import comparisons, write_tables
from mil_zoo.report.tables.practical import baseline_table, equivalence_table, shown_baselines, shown_equivalences
from mil_zoo.report.tables.variance import shown_variances, variance_table
from mil_zoo.stats import correlated_t, variance_components

AUCS = {
    "abmil": [0.90, 0.95, 0.93, 0.97, 0.94],
    "mean": [0.80, 0.84, 0.86, 0.85, 0.84],
    "max": [0.70, 0.75, 0.71, 0.80, 0.72],
    "srmil": [0.901, 0.949, 0.931, 0.968, 0.941],
}


@pytest.fixture
def run(write):
    """Five folds of four models, AUC as above."""

    def make(aucs=AUCS, seeds=(0,), failed=()):
        rows = []
        for model, values in aucs.items():
            for fold, value in enumerate(values):
                for seed in seeds:
                    scores = dict.fromkeys(("accuracy", "balanced_accuracy", "f1"), 0.8)
                    changed = {"status": "failed", "reason": "no"} if (model, fold, seed) in failed else {}
                    auc = value[seed] if isinstance(value, tuple) else value
                    rows.append(write.row(model, fold, seed=seed, metrics=scores | {"auc": auc}, **changed))
        return Results.load(write.run(rows, list(aucs)))

    return make


def test_probabilities_are_those_of_the_correlated_t_test(run):
    results = run()
    table = equivalence_table(results).set_index(["metric", "a", "b"])
    row = table.loc[("auc", "abmil", "mean")]
    found = correlated_t(np.subtract(AUCS["abmil"], AUCS["mean"]), 60, 20)
    assert [row[name] for name in ("p_a_better", "p_equal", "p_b_better")] == pytest.approx(
        [found.above, found.equal, found.below]
    )
    assert table.loc[("auc", "abmil", "srmil")]["p_equal"] > 0.99
    assert np.isnan(table.loc[("accuracy", "abmil", "mean")]["p_equal"]), "the same in every fold: no spread to tell by"
    shown = shown_equivalences(results)
    assert ["Accuracy", "abmil", "mean", "-", "-", "-", "-"] in [*map(list, shown.rows)]
    assert "-: there is no spread to tell by" in shown.notes[-1]


def test_the_best_simple_baseline(run):
    results = run()
    table = baseline_table(results).set_index(["metric", "aggregator"])
    row = table.loc[("auc", "abmil")]
    pair = comparisons(results).set_index(["metric", "a", "b"]).loc[("auc", "abmil", "mean")]
    assert row["baseline"] == "mean"
    assert (row["difference"], row["low"], row["high"]) == tuple(pair[["difference", "low", "high"]])
    assert set(table.loc["auc"].index) == {"abmil", "srmil"}
    write_tables(results)
    text = (results.path / "comparisons.md").read_text()
    assert "In AUC 2 of 2 are better than the best simple baseline (abmil, srmil)." in text
    assert "| AUC | abmil | +0.100 [" in text
    assert "a large P(equal) says that choosing between them does not matter" in text
    assert {"equivalence.csv", "baseline.csv"} <= {path.name for path in results.path.iterdir()}


def test_less_can_be_better(write):
    """Where less is better, an aggregator that has less beats the baseline by what it has less."""
    nll = {"mean": [2.0, 1.9, 2.1, 2.0, 1.8], "abmil": [1.5, 1.6, 1.4, 1.5, 1.7]}
    rows = [
        write.row(model, fold, metrics={"c_index": 0.5, "nll": value})
        for model, values in nll.items()
        for fold, value in enumerate(values)
    ]
    results = Results.load(write.run(rows, list(nll), task={"name": "survival"}))
    (row,) = [row for row in shown_baselines(results).rows if row[0] == "NLL"]
    assert (row[1], row[2].text, row[3]) == ("abmil", "+0.420", "mean")
    low, high = map(float, row[2].below[0].strip("[]").split(", "))
    assert low < 0.42 < high
    assert not np.signbit(baseline_table(results).set_index("metric").loc["c_index", "difference"])


def test_a_baseline_before_the_others(run):
    turned = baseline_table(run({"mean": AUCS["mean"], "abmil": AUCS["abmil"]})).set_index(["metric", "aggregator"])
    assert turned.loc[("auc", "abmil")]["difference"] == pytest.approx(0.1)


def test_without_a_baseline_there_is_no_such_table(run):
    results = run({"abmil": AUCS["abmil"], "srmil": AUCS["srmil"]})
    assert not len(baseline_table(results))
    write_tables(results)
    assert "simple baseline" not in (results.path / "comparisons.md").read_text()
    assert not (results.path / "variance.csv").exists()  # one seed


def test_variance_of_splits_and_seeds(run):
    values = [(0.90, 0.91), (0.95, 0.96), (0.80, 0.83), (0.85, 0.84), (0.99, 0.97)]
    results = run({"abmil": values, "mean": [(v, v + 0.001) for v in AUCS["mean"]]}, seeds=(0, 1))
    table = variance_table(results).set_index(["metric", "aggregator"])
    found = variance_components(values)
    row = table.loc[("auc", "abmil")]
    assert row["split_sd"] ** 2 == pytest.approx(found.split)
    assert row["rest_sd"] ** 2 == pytest.approx(found.rest)
    assert row["split_share"] + row["seed_share"] + row["rest_share"] == pytest.approx(1)
    assert row["seed_raw"] < 0 == row["seed_sd"]
    write_tables(results)
    text = (results.path / "variance.md").read_text()
    assert "0.0000 (0%)\\*" in text
    assert "the method gives a negative component, which is shown as 0" in text
    assert "Two-way random effects" in text
    assert len(pd.read_csv(results.path / "variance.csv")) == 8


def test_of_one_test_set_the_interval_is_over_its_patients(run, monkeypatch):
    results = run({"abmil": [(0.90, 0.91), (0.95, 0.96)]}, seeds=(0, 1))
    assert "The interval of a mean is over test sets" in shown_variances(results).markdown()
    monkeypatch.setattr(type(results), "test_set_of", lambda self, split, rule=None: 0)
    text = shown_variances(results).markdown()
    assert "All splits test the same patients: the interval of a mean is over the choice of these" in text


def test_splits_that_lack_a_seed_are_left_out_of_the_components(run):
    values = {"abmil": [(0.90, 0.91), (0.95, 0.96), (0.80, 0.83)]}
    results = run(values, seeds=(0, 1), failed={("abmil", 1, 1)})
    assert variance_table(results)["splits"].tolist() == [2] * 4
