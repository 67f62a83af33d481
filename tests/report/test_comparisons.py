"""Paired comparisons of a run, what is bold because of them, and diagnostics over several slides and seeds."""

import h5py
import numpy as np
import pandas as pd
import pytest

from mil_zoo.report.load import Results
from mil_zoo.report.tables import comparisons, score_table, skew_table, write_tables
from mil_zoo.report.tables.comparison_tables import shown_comparisons, why_none_is_bold
from mil_zoo.report.tables.diagnostics_table import diagnostics_table
from mil_zoo.report.tables.pairs import best, chances
from mil_zoo.report.tables.text import fixed, interval, p_value
from mil_zoo.stats import corrected_t_test, delong_test, detectable_difference, holm


def row(write, model, fold, value, **changes):
    scores = {"accuracy": value, "balanced_accuracy": value, "auc": value, "f1": value}
    return write.row(model, fold, metrics=scores, **changes)


def test_folds_are_compared_by_the_corrected_t_test(write):
    values = {
        "abmil": [0.9, 0.92, 0.95, 0.91, 0.92],
        "mean": [0.6, 0.61, 0.66, 0.62, 0.63],
        "max": [0.88, 0.93, 0.94, 0.92, 0.91],
    }
    run = write.run([row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)], list(values))
    pairs = comparisons(Results.load(run))
    auc = pairs[pairs["metric"] == "auc"].reset_index(drop=True)
    assert list(zip(auc["a"], auc["b"], strict=True)) == [("abmil", "mean"), ("abmil", "max"), ("mean", "max")]
    found = corrected_t_test([0.3, 0.31, 0.29, 0.29, 0.29], 60, 20)
    assert auc.loc[0, ["difference", "low", "high", "p"]].tolist() == pytest.approx(
        [found.difference.mean, found.difference.low, found.difference.high, found.p]
    )
    assert auc.loc[0, "detectable"] == pytest.approx(detectable_difference(found.se, 4, comparisons=2))
    assert auc["p_holm"].tolist() == pytest.approx(holm(auc["p"]))
    assert set(auc["test"]) == {"corrected t"}
    marked = best(Results.load(run))
    assert marked["auc"] == {"abmil", "max"}
    write_tables(Results.load(run))
    table = (run.path / "table.md").read_text()
    assert "| abmil | **0.920** ± " in table
    assert "| max | **0.916** ± " in table
    assert "| mean | 0.624 ± " in table
    assert "Bold: can be the best" in table
    assert r"abmil & \textbf{0.920} $\pm$ " in (run.path / "table.tex").read_text()
    assert "| AUC | abmil | mean | 0.296 [" in (run.path / "comparisons.md").read_text()


def test_few_splits_make_nothing_bold(write):
    values = {"abmil": [0.7, 0.8, 0.75], "mean": [0.6, 0.7001, 0.65]}  # nearly the same difference, by chance
    run = write.run([row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)], list(values))
    pairs = comparisons(Results.load(run))
    assert (pairs["p_holm"] < 0.01).all()
    assert np.isposinf(pairs["detectable"]).all(), "a design that decides nothing finds no difference"
    assert best(Results.load(run)) == {}
    write_tables(Results.load(run))
    assert "Nothing is bold: fewer than 5 splits cannot tell" in (run.path / "table.md").read_text()
    text = (run.path / "comparisons.md").read_text()
    assert "Which can be the best" not in text
    few = "- Nothing is decided, however small p is: fewer than 5 splits cannot tell aggregators apart.\n"
    assert text.count(few) == 2, "of all pairs, and of the best simple baseline"
    none = "No difference in accuracy or AUC, however large, is found four times in five by this design."
    assert none in text
    assert "| none |\n" in text
    assert few in "".join(table.markdown() for table in shown_comparisons(Results.load(run), "mean").tables[:1])
    assert np.isposinf(pd.read_csv(run.path / "equivalence.csv")["detectable"]).all()
    assert "none in AUC, four times in five" in (run.path / "reporting.md").read_text()


def test_a_metric_of_one_test_set_of_several_is_not_tested_as_that_of_a_single_one(make_run):
    results = Results.load(make_run(models=("abmil", "srmil"), folds=2, slides=12))
    for trial in results.trials:
        if trial.fold == 1:
            trial.metrics["auc"] = None
    row = comparisons(results).set_index("metric").loc["auc"]
    assert (row["splits"], row["test"]) == (1, "")
    assert row[["low", "p", "p_worse", "p_holm", "detectable"]].isna().all()
    assert row["reason"] == "1 test set has a difference; a test needs two."
    assert why_none_is_bold(results).startswith("fewer than 5 splits cannot tell")


def test_a_model_without_a_decision_has_no_p_of_being_the_best(write):
    """One model finished two folds of five: that it can be the best is no finding."""
    values = {"abmil": [0.9, 0.92, 0.95, 0.91, 0.92], "mean": [0.6, 0.61, 0.66, 0.62, 0.63], "max": [0.7, 0.8]}
    rows = [row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)]
    results = Results.load(write.run(rows, list(values)))
    table = shown_comparisons(results).tables[0]
    assert [line[0] for line in table.rows] == ["abmil", "mean"]
    assert best(results)["auc"] == {"abmil", "max"}, "nor is it out"
    assert "- Nothing is decided in 4 rows, however small p is: fewer than 5" in shown_comparisons(results).markdown()


def test_few_splits_are_the_reason_beside_a_metric_that_none_has(write):
    scores = [{"accuracy": value, "auc": None} for value in (0.7, 0.8)]
    rows = [write.row(m, f, metrics=s, val_metrics=s) for m in ("abmil", "mean") for f, s in enumerate(scores)]
    results = Results.load(write.run(rows, ["abmil", "mean"]).path)
    assert (comparisons(results)["splits"] == 0).any()
    assert why_none_is_bold(results).startswith("fewer than 5 splits cannot tell")


def test_nothing_is_bold_without_a_difference(write):
    values = {"abmil": [0.9, 0.7, 0.8, 0.8, 0.7], "mean": [0.8, 0.75, 0.7, 0.7, 0.8]}
    run = write.run([row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)], list(values))
    assert best(Results.load(run)) == {}
    write_tables(Results.load(run))
    assert "**" not in (run.path / "table.md").read_text()
    assert "Nothing is bold: no aggregator differs" in (run.path / "table.md").read_text()
    assert "Intervals are cut" not in (run.path / "comparisons.md").read_text()


def test_a_single_split_is_compared_on_its_slides(make_run):
    run = make_run(models=("abmil", "srmil"), folds=1, slides=12)
    a, b = (list(Results.load(run).test_sets(label).values()) for label in ("abmil", "srmil"))
    pairs = comparisons(Results.load(run)).set_index("metric")
    assert pairs.loc["auc", "p"] == delong_test(a, b).p
    assert (pairs.loc["auc", "test"], pairs.loc["accuracy", "test"]) == ("DeLong", "permutation")
    assert pairs.loc["accuracy", "p"] == 1  # both err on the same slide
    assert pairs.loc["f1", ["test", "p"]].tolist() == ["permutation", 1]
    table = score_table(Results.load(run))
    assert (table["accuracy_boot_low"] < 11 / 12).all()
    assert (table["accuracy_low"] < table["accuracy_boot_low"] + 0.1).all()
    write_tables(Results.load(run))
    shown = (run.path / "table.md").read_text().splitlines()[2]
    low, high = table.loc[0, ["accuracy_low", "accuracy_high"]]
    assert f"[{low:.2f}, {high:.2f}]" in shown


def test_test_sets_keep_seeds_patients_and_slides(make_run):
    run = make_run(models=("abmil",), folds=2, slides=6)
    sets = Results.load(run).test_sets("abmil")
    assert list(sets) == [(0, 0), (0, 1)]
    part = sets[0, 1]
    assert part.probabilities.shape == (1, 6, 2)
    assert part.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert part.patients.tolist() == [f"patient 1-{i}" for i in (0, 0, 1, 1, 2, 2)]


def test_diagnostics_over_slides_and_seeds(make_run):
    run = make_run(models=("abmil", "srmil"), folds=1, slides=6)
    original = run.path / "trials" / "abmil-r0-f0-s0"
    again = next(row for row in run.trials() if row["aggregator"] == "abmil") | {"seed": 1, "trial": "abmil-r0-f0-s1"}

    def write(folder):
        for path in original.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        with h5py.File(folder / "attention.h5", "a") as file:
            for group in file.values():
                group["attention"][:] = group["attention"][:][::-1]

    run.add_trial(again, write)
    results = Results.load(run)
    numbers = diagnostics_table(results)
    froc = numbers[numbers["name"] == "attention_froc"]
    assert len(froc) == 3
    assert froc["value"].between(0, 1).all()
    single = numbers[(numbers["name"].str.startswith("attention_froc_")) & (numbers["aggregator"] == "srmil")]
    assert single["value"].mean() == pytest.approx(froc[froc["aggregator"] == "srmil"]["value"].item())
    agreement = numbers[numbers["name"] == "seed_spearman"]
    assert set(agreement["aggregator"]) == {"abmil"}
    assert len(agreement) == 6
    assert agreement["seed"].isna().all()
    table = skew_table(results).set_index("aggregator")
    assert table.loc["abmil", "seed_spearman_median"] == pytest.approx(agreement["value"].median())
    assert np.isnan(table.loc["srmil", "seed_spearman_median"])
    write_tables(results)
    text = (run.path / "skew.md").read_text()
    for title in ("Attention FROC", "FROC by the rules of CAMELYON16", "Spearman across seeds"):
        assert title in text
    assert len(pd.read_csv(run.path / "diagnostics.csv")) == len(numbers)


def test_nuclei_have_no_froc(make_run):
    results = Results.load(make_run(models=("abmil",), nuclei=True))
    assert not diagnostics_table(results)["name"].str.contains("froc").any()
    write_tables(results)
    text = (results.run.path / "skew.md").read_text()
    assert "Attention AUROC" in text
    assert "FROC by" not in text


def test_trainings_on_one_test_set_are_one_split(make_run, change_table):
    """Five repeats that test the same patients: no five folds, one interval in table, csv and figure."""
    run = make_run(models=("abmil", "srmil"), folds=2, slides=12)
    for trial in [row for row in run.trials() if row["fold"] == 1]:
        path = run.path / "trials" / trial["trial"] / "predictions.csv"
        rows = pd.read_csv(path)
        rows["patient_id"] = rows["patient_id"].str.replace("patient 1-", "patient 0-")
        change_table(run, trial["trial"], "predictions.csv", rows)
    results = Results.load(run)
    table, pairs = score_table(results), comparisons(results).set_index("metric")
    assert set(table["splits"]) == {1}
    assert set(pairs["splits"]) == {1}
    assert pairs.loc["auc", "test"] == "DeLong"
    found = results.estimate("abmil", "auc")
    assert (found.method, found.low) == ("patients", table.loc[0, "auc_low"])
    write_tables(results)
    text = (run.path / "table.md").read_text()
    assert "2 trainings tested on one set" in text
    assert "2 test folds" not in text


def test_patients_are_compared_too(make_run):
    run = make_run(models=("abmil", "srmil"), folds=1, slides=12, patient_rule="mean", patients=6, bags=12)
    rows = [row | {"patient_metrics": row["metrics"]} for row in run.trials()]
    (run.path / "trials.jsonl").unlink()
    for row in rows:
        run.add_trial(row)
    pairs = comparisons(Results.load(run))
    assert pairs["a"].tolist() == ["abmil"] * 4 + ["abmil (patients)"] * 4
    assert pairs["b"].tolist() == ["srmil"] * 4 + ["srmil (patients)"] * 4


def test_a_control_needs_few_comparisons(write):
    values = {
        "abmil": [0.9, 0.92, 0.95, 0.91, 0.92],
        "mean": [0.6, 0.61, 0.66, 0.62, 0.63],
        "max": [0.8, 0.8, 0.9, 0.7, 0.8],
    }
    run = write.run([row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)], list(values))
    text = "".join(table.markdown() for table in shown_comparisons(Results.load(run), "mean").tables)
    assert "Which can be the best" in text
    assert "Against mean" in text
    pairs = comparisons(Results.load(run)).query("metric == 'auc'")
    p = pairs[(pairs["a"] == "mean") | (pairs["b"] == "mean")]["p"]
    assert p_value(holm(p)[0]) in text


def test_of_two_aggregators_one_is_bold_where_their_test_finds_a_difference(write):
    """One-sided p is below .05 here and two-sided p above: all pairs say that none differs, so none is bold."""
    values = {"abmil": [0.90, 0.88, 0.93, 0.91, 0.92], "mean": [0.82, 0.83, 0.77, 0.85, 0.88]}
    rows = [row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)]
    results = Results.load(write.run(rows, list(values)))
    (pair,) = comparisons(results).query("metric == 'auc'").to_dict("records")
    assert 0.05 < pair["p"] < 0.1
    assert chances(results, results.lead)[1] == pytest.approx([1, pair["p"]])
    assert best(results) == {}


def test_differences_stay_within_what_the_metric_can_differ_by(write):
    values = {"abmil": [0.9, 0.1, 0.9, 0.1, 0.9], "mean": [0.1, 0.9, 0.1, 0.9, 0.1]}
    rows = [row(write, m, f, v) for m, part in values.items() for f, v in enumerate(part)]
    results = Results.load(write.run(rows, list(values)))
    (pair,) = comparisons(results).query("metric == 'auc'").to_dict("records")
    assert (pair["low"], pair["high"]) < (-1, 1) < (pair["high"], np.inf)
    text = shown_comparisons(results).markdown()
    assert "| AUC | abmil | mean | 0.160 [-1.000, 1.000] |" in text
    assert "- Intervals are cut where no two values of a metric can differ by more;" in text
    assert "No difference in accuracy or AUC, however large, is found four times in five by this design." in text


def test_nothing_is_below_0_that_is_shown_as_0():
    assert [fixed(value) for value in (-0.0004, -0.0, 0.0004, -0.0006)] == ["0.000", "0.000", "0.000", "-0.001"]
    assert interval(-0.0004, 0.1, "+.3f") == "[+0.000, +0.100]"
