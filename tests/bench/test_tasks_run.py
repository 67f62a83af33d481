"""Survival, ordinal, multi-label and regression from a label table to tables, figures, page and predictions."""

import json

import numpy as np
import pandas as pd
import pytest
from survival_runs import make_cohort

from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.suite import Suite
from mil_zoo.cli import main
from mil_zoo.data.source import DatasetSource
from mil_zoo.report.load import Results
from mil_zoo.stats import bootstrap_difference, bootstrap_patients
from mil_zoo.survival import concordance, hazard_ratio
from mil_zoo.tasks import task_of_config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Bags whose positive instances hasten the event; ten patients have two slides, three lack an outcome."""
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Other patients of the same kind."""
    return make_cohort(tmp_path_factory.mktemp("elsewhere"), seed=1, mark="X")


BUDGET = ("--models", "mean", "--folds", 2, "--epochs", 2, "--set", "learning_rate=0.01")
OUTCOME = ("--time", "os_months", "--censorship", "censorship")


def bench(run_cli, cohort, out, *arguments):
    where = ("--dataset", cohort / "bags.npz", "--labels", cohort / "labels.csv")
    code, shown, err = run_cli("bench", *where, *BUDGET, *arguments, "--out", out)
    assert code == 0, err
    return shown


def trials(out):
    return [json.loads(line) for line in (out / "trials.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        pytest.param("survival", "packed", marks=pytest.mark.figures),
        pytest.param("survival_rank", "mean", marks=pytest.mark.figures),
        ("survival_cox", "packed"),
        ("survival_cox", "mean"),
    ],
)
def test_survival(cohort, tmp_path, run_cli, request, task, rule):
    out = tmp_path / "run"
    shown = bench(run_cli, cohort, out, "--task", task, *OUTCOME, "--patients", rule)
    assert "patients had the event" in shown
    excluded = pd.read_csv(out / "excluded.csv")
    assert excluded["slide_id"].tolist() == ["slide_60", "slide_61", "slide_62"]
    assert excluded["reason"].tolist() == ["no os_months", "no os_months", "no censorship"]
    for trial in trials(out):
        folder = out / "trials" / trial["trial"]
        rows = pd.read_csv(folder / ("predictions.csv" if rule == "packed" else "patients.csv"))
        assert rows.columns[:6].tolist() == ["slide_id", "patient_id", "split", "time_months", "event", "risk"]
        assert rows["patient_id"].is_unique
        test = rows[rows["split"] == "test"]
        assert trial["metrics"]["c_index"] == pytest.approx(
            concordance(test["time_months"], test["event"], test["risk"])
        )
        fitted = task_of_config(json.loads((folder / "task.json").read_text(encoding="utf-8")))
        assert len(fitted.horizons) >= 2
        assert fitted.median_risk is not None
        survival = test[[name for name in test if name.startswith("surv_")]].to_numpy()
        assert survival.shape[1] == (0 if task == "survival_rank" else len(fitted.horizons))
        assert (np.diff(survival, axis=1)[~np.isnan(np.diff(survival, axis=1))] <= 0).all()
    table = (out / "survival.md").read_text(encoding="utf-8")
    assert "C, pooled" in table
    assert "Log-rank p" in table
    if request.node.get_closest_marker("figures"):
        assert (out / "figures" / "kaplan_meier.png").exists()
        assert "Kaplan" in (out / "report.html").read_text(encoding="utf-8") or task == "survival_rank"
    code, _, err = run_cli("predict", "--run", out, "--model", "mean", cohort / "bags.npz", "--out", tmp_path / "new")
    assert code == 0, err
    predicted = pd.read_csv(tmp_path / "new" / "probabilities.csv")
    assert len(predicted) == 70
    assert predicted["predicted"].str.startswith("risk ").all()


@pytest.mark.parametrize(
    ("task", "columns", "figure"),
    [
        ("regression:column=score,unit=points", ["target", "predicted"], "agreement.png"),
        ("ordinal:num_classes=3", ["label", "prob_0", "prob_1", "prob_2", "predicted", "expected"], "confusion.png"),
        ("ordinal:num_classes=3,loss=coral", ["label", "prob_0", "prob_1", "prob_2", "predicted"], "confusion.png"),
        ("multilabel:names=[wide,deep]", ["label_wide", "label_deep", "prob_wide", "prob_deep"], "metrics.png"),
    ],
)
@pytest.mark.figures
def test_other_tasks(cohort, tmp_path, run_cli, task, columns, figure):
    out = tmp_path / "run"
    bench(run_cli, cohort, out, "--task", task)
    for trial in trials(out):
        rows = pd.read_csv(out / "trials" / trial["trial"] / "predictions.csv")
        assert rows.columns[3 : 3 + len(columns)].tolist() == columns
        assert None not in trial["metrics"].values()
    assert (out / "figures" / figure).exists()
    code, _, err = run_cli("predict", "--run", out, "--model", "mean", cohort / "bags.npz", "--out", tmp_path / "new")
    assert code == 0, err


def test_bins_and_baseline_know_nothing_of_test_patients(cohort):
    """Poison: other outcomes of the test patients change neither bins nor censoring curve of the fold."""
    settings = {"name": "survival", "time": "os_months", "censorship": "censorship"}
    source = DatasetSource(str(cohort / "bags.npz"), labels=cohort / "labels.csv")
    plan = make_plan(Suite(datasets=["x"], models=["mean"], folds=2, task=settings), source)
    split, bags, task = plan.splits[0], plan.dataset.bags, plan.dataset.task
    fitted = task.fit(bags.select(split.train).targets)
    tested = set(split.test)
    poisoned = [slide.changed(target=(999.0, 1.0)) if slide.slide_id in tested else slide for slide in bags.slides]
    again = task.fit(type(bags)(poisoned).select(split.train).targets)
    assert again == fitted
    assert len(fitted.edges) == 3


def test_slides_of_a_patient_that_differ_are_refused(cohort, tmp_path, run_cli):
    table = pd.read_csv(cohort / "labels.csv", dtype=str, keep_default_na=False)
    table.loc[1, "os_months"] = "77"
    table.to_csv(tmp_path / "torn.csv", index=False)
    where = ("--dataset", cohort / "bags.npz", "--labels", tmp_path / "torn.csv")
    code, _, err = run_cli("bench", *where, *OUTCOME, *BUDGET, "--out", tmp_path / "run")
    assert code == 2
    assert "patient 'P00' has time_months" in err
    assert "'slide_01'" in err
    assert "time_months 77" in err


@pytest.fixture(scope="module")
def abroad(cohort, elsewhere, tmp_path_factory):
    """Two models trained on one cohort and tested on the other."""
    out = tmp_path_factory.mktemp("abroad") / "run"
    where = ["--dataset", cohort / "bags.npz", "--labels", cohort / "labels.csv"]
    other = ["--test-on", elsewhere / "bags.npz", "--test-labels", elsewhere / "labels.csv"]
    budget = ["--models", "mean,max", "--epochs", 3, "--set", "learning_rate=0.01", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mil-zoo", "bench", *map(str, [*where, *other, *OUTCOME, *budget])])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return out


@pytest.mark.figures
def test_survival_of_another_cohort(abroad):
    table = pd.read_csv(abroad / "external.csv").set_index(["aggregator", "metric"])
    assert set(table.index) == {(model, metric) for model in ("mean", "max") for metric in ("c_index", "nll")}
    for model in ("mean", "max"):
        trial = next(one for one in trials(abroad) if one["aggregator"] == model)
        folder = abroad / "trials" / trial["trial"]
        rows = pd.read_csv(folder / "predictions.csv")
        val, test = (rows[rows["split"] == part] for part in ("val", "test"))
        assert test["patient_id"].str.startswith("X").all()
        assert not val["patient_id"].str.startswith("X").any()
        row = table.loc[model, "c_index"]
        expected = [concordance(part["time_months"], part["event"], part["risk"]) for part in (val, test)]
        assert row[["internal", "external"]].tolist() == pytest.approx(expected)
        assert row["low"] < row["difference"] < row["high"]
        horizon = f"surv_{row['horizon_months']:g}"
        assert row["predicted"] == pytest.approx(1 - test[horizon].mean())
        assert row["oe"] == pytest.approx(trial["metrics"][f"oe_{row['horizon_months']:g}"])
        fitted = task_of_config(json.loads((folder / "task.json").read_text(encoding="utf-8")))
        high = test["risk"] > fitted.median_risk  # of the training patients
        ratio = hazard_ratio(test["time_months"], test["event"], high, np.zeros(len(test)))
        assert row["hazard_ratio"] == pytest.approx(ratio.value)
    assert "High-risk hazard ratio" in (abroad / "external.md").read_text(encoding="utf-8")
    page = (abroad / "report.html").read_text(encoding="utf-8")
    assert "On the other dataset" in page
    assert (abroad / "figures" / "external.png").exists()


def test_a_single_test_set_has_intervals_and_tests_by_patient(abroad):
    """The same in the table, the comparisons and the page."""
    results = Results.load(abroad)
    table = pd.read_csv(abroad / "table.csv").set_index("aggregator")
    pairs = pd.read_csv(abroad / "comparisons.csv").set_index("metric")
    parts = {model: results.scored_sets(model)[0, 0] for model in ("mean", "max")}
    metric = results.metric("c_index")
    for model, (part,) in parts.items():
        drawn = bootstrap_patients([part], metric)
        row = table.loc[model]
        assert row[["c_index_low", "c_index_high"]].tolist() == pytest.approx([drawn.low, drawn.high])
        assert row[["c_index_boot_low", "c_index_boot_high"]].tolist() == pytest.approx([drawn.low, drawn.high])
        assert f"[{drawn.low:.2f}, {drawn.high:.2f}]" in (abroad / "table.md").read_text(encoding="utf-8")
        assert f"[{drawn.low:.2f}, {drawn.high:.2f}]" in (abroad / "report.html").read_text(encoding="utf-8")
    apart, row = bootstrap_difference(parts["mean"], parts["max"], metric), pairs.loc["c_index"]
    assert row["test"] == "bootstrap"
    assert row[["difference", "low", "high", "p"]].astype(float).tolist() == pytest.approx(
        [apart.value, apart.low, apart.high, apart.p]
    )
    assert "bootstrap" in (abroad / "comparisons.md").read_text(encoding="utf-8")


def test_labels_of_no_other_dataset_are_refused(cohort, tmp_path, run_cli):
    where = ("--dataset", cohort / "bags.npz", "--labels", cohort / "labels.csv", *OUTCOME)
    code, _, err = run_cli("bench", *where, "--test-labels", cohort / "labels.csv", "--out", tmp_path / "run")
    assert code == 2
    assert "--test-labels are those of --test-on" in err


def test_times_in_another_unit_are_refused(cohort, elsewhere, tmp_path, run_cli):
    for folder, unit in ((cohort, "months"), (elsewhere, "days")):
        table = pd.read_csv(folder / "labels.csv")
        table[f"time_{unit}"], table["event"] = table["os_months"], 1 - table["censorship"]
        table[["slide_id", "patient_id", f"time_{unit}", "event"]].to_csv(tmp_path / f"{unit}.csv", index=False)
    where = ("--dataset", cohort / "bags.npz", "--labels", tmp_path / "months.csv")
    other = ("--test-on", elsewhere / "bags.npz", "--test-labels", tmp_path / "days.csv")
    columns = ("--task", "survival", "--event", "event")
    code, _, err = run_cli("bench", *where, *other, *columns, "--models", "mean", "--out", tmp_path / "run")
    assert code == 2
    assert "times are in months and in days" in err


def test_labels_of_another_cohort_that_do_not_fit_say_what_to_do(cohort, elsewhere, tmp_path, run_cli):
    pd.read_csv(elsewhere / "labels.csv").rename(columns={"os_months": "dfs_months"}).to_csv(tmp_path / "dfs.csv")
    pd.read_csv(elsewhere / "labels.csv").rename(columns={"os_months": "time_months"}).to_csv(tmp_path / "found.csv")
    where = ("--dataset", cohort / "bags.npz", "--labels", cohort / "labels.csv")
    other = ("--models", "mean", "--test-on", elsewhere / "bags.npz", "--out", tmp_path / "run")
    pd.read_csv(elsewhere / "labels.csv").assign(censorship=1).to_csv(tmp_path / "alive.csv")
    elsewise = "rename this table's, since --test-on reads columns of the same names from both label tables"
    for arguments, messages in {
        (*where, *other, *OUTCOME): ("no labels.csv; pass --test-labels", "slide_id, os_months and censorship"),
        (*where, *other, *OUTCOME, "--test-labels", tmp_path / "alive.csv"): ("alive.csv: no patient had the event",),
        (*where, *other, *OUTCOME, "--test-labels", tmp_path / "dfs.csv"): ("dfs.csv: ", "'os_months'", elsewise),
        (*where, *other, "--time", "dfs_months", *OUTCOME[2:], "--test-labels", tmp_path / "dfs.csv"): (
            f"{cohort / 'labels.csv'}: ",
            "'dfs_months'",
            elsewise,
        ),
        ("--dataset", "demo_survival", *other, "--test-labels", tmp_path / "found.csv"): (
            "found.csv: the table has no column 'event'",
            "pass --censorship censorship",
        ),
    }.items():
        code, _, err = run_cli("bench", *arguments)
        assert code == 2
        for message in messages:
            assert message in err
        assert err.count("\n") == 1
