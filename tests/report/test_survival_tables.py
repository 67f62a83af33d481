"""The tables of survival: beside the clinical model, what intervals leave out, their files, and collapsed models."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from survival_runs import FOLDS, PATIENTS, survival_run

from mil_zoo.report.across_runs.forest import forest
from mil_zoo.report.figures import survival_curves
from mil_zoo.report.figures.survival_curves import draw_curves
from mil_zoo.report.load import Results
from mil_zoo.report.survival_folds import clinical_folds, folds_of
from mil_zoo.report.tables import comparisons, write_tables
from mil_zoo.stats import bootstrap_difference, concordance, corrected_t_test, holm

NOISE = {"good": 0.3, "poor": 8.0, "flat": None}


@pytest.fixture
def run(write):
    return survival_run(write, write.path / "run", NOISE)


def test_the_difference_to_the_clinical_model_is_tested(run):
    """By the corrected t over folds of the same patients, adjusted over the models."""
    write_tables(results := Results.load(run.path))
    table = pd.read_csv(run.path / "survival.csv").set_index("aggregator")
    assert table.index.tolist() == ["clinical", *NOISE]
    clinical = [concordance(*part.arguments[:3]) for part in clinical_folds(results).scored]
    assert table.loc["clinical", "c_mean"] == pytest.approx(np.mean(clinical))
    tests = {}
    for model in NOISE:
        own = [concordance(*part.arguments[:3]) for part in folds_of(results, model)]
        n = FOLDS * PATIENTS
        tests[model] = corrected_t_test(np.subtract(own, clinical).tolist(), n - PATIENTS, PATIENTS)
        found, row = tests[model].difference, table.loc[model]
        ends = row[["beats_clinical", "beats_clinical_low", "beats_clinical_high"]].astype(float)
        assert ends.tolist() == pytest.approx([found.mean, found.low, found.high])
        assert row["test"] == "corrected t"
        assert row["p_beats_clinical"] == pytest.approx(tests[model].p)
    adjusted = holm([test.p for test in tests.values()])
    assert table.loc[list(NOISE), "p_beats_clinical_holm"].tolist() == pytest.approx(adjusted.tolist())
    assert table.loc["good", "p_beats_clinical_holm"] < 0.05 < table.loc["poor", "p_beats_clinical_holm"]
    assert table.loc["good", "p_adds_to_clinical"] < 0.001 < table.loc["poor", "p_adds_to_clinical"]
    text = (run.path / "survival.md").read_text(encoding="utf-8")
    found = tests["good"].difference
    assert f"{found.mean:+.3f} [{found.low:.3f}, {found.high:.3f}]" in text
    assert "(corrected t)" in text


def test_a_single_test_set_is_compared_by_its_patients(write):
    """The clinical model is fitted to training patients, whose outcomes stand in no test part."""
    run = survival_run(write, write.path / "run", {"good": 0.3}, tested=1)
    write_tables(results := Results.load(run.path))
    (part,), clinical = folds_of(results, "good"), clinical_folds(results)
    drawn = bootstrap_difference([part.scored], clinical.scored, results.metric("c_index"))
    row = pd.read_csv(run.path / "survival.csv").set_index("aggregator").loc["good"]
    names = ["beats_clinical", "beats_clinical_low", "beats_clinical_high", "p_beats_clinical"]
    assert row[names].astype(float).tolist() == pytest.approx([drawn.value, drawn.low, drawn.high, drawn.p])
    assert row["test"] == "bootstrap"


def test_a_run_without_outcomes_says_why_there_is_no_clinical_row(write):
    run = survival_run(write, write.path / "run", {"good": 0.3}, tested=1)
    (run.path / "outcomes.csv").unlink()
    write_tables(Results.load(run.path))
    assert "No clinical row: the run has no outcomes.csv" in (run.path / "survival.md").read_text(encoding="utf-8")


def test_without_covariates_there_is_no_clinical_row(write):
    run = survival_run(write, write.path / "run", {"good": 0.3}, covariates=False)
    write_tables(Results.load(run.path))
    table = pd.read_csv(run.path / "survival.csv")
    assert table["aggregator"].tolist() == ["good"]
    assert not [name for name in table if "clinical" in name]
    assert "the card names no covariates" in (run.path / "survival.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("age", "why"),
    [
        (60.0, r"none of the clinical covariates (age) varies among the training patients"),
        ("adult", "none of the clinical covariates varies among the training patients"),
        ("", "the clinical covariate 'age' is empty for every patient; leave it out"),
    ],
)
def test_covariates_that_tell_nothing_take_nothing_from_the_models(write, age, why):
    run = survival_run(write, write.path / "run", {"good": 0.3}, folds=2, tested=2)
    table = pd.read_csv(run.path / "covariates.csv", dtype=str)
    table.assign(age=age).to_csv(run.path / "covariates.csv", index=False)
    write_tables(Results.load(run.path))
    assert pd.read_csv(run.path / "survival.csv")["aggregator"].tolist() == ["good"]
    assert f"No clinical row: {why}." in (run.path / "survival.md").read_text(encoding="utf-8")


def test_what_intervals_leave_out_is_said_wherever_the_table_goes(run):
    write_tables(Results.load(run.path))
    for name in ("survival.md", "survival.tex"):
        assert "leave out the spread over trainings" in (run.path / name).read_text(encoding="utf-8")


def test_a_collapsed_model_is_flagged(run):
    """One risk for all: C is .5, there are no two groups, and the table says that the model may have collapsed."""
    write_tables(Results.load(run.path))
    table = pd.read_csv(run.path / "survival.csv").set_index("aggregator")
    assert table.loc["flat", "c_pooled"] == 0.5
    assert np.isnan(table.loc["flat", "hazard_ratio"])
    text = (run.path / "survival.md").read_text(encoding="utf-8")
    assert f"flat: in {FOLDS} of {FOLDS} folds all test patients lie on one side" in text
    assert "good: in" not in text


def test_a_forest_of_cohorts(write, run_cli):
    """``mil-zoo compare`` of survival: pooled C of every model in every cohort, of whole runs or of their tables."""
    runs = {}
    for seed, title in enumerate(("First & last", "Second")):
        run = survival_run(write, write.path / title, {"good": 0.3, "poor": 8.0}, seed=seed, title=title)
        write_tables(Results.load(run.path))
        runs[title] = pd.read_csv(run.path / "survival.csv").set_index("aggregator")
    tables = write.path / "tables"
    tables.mkdir()
    for name in ("config.yaml", "table.csv", "survival.csv"):
        (tables / name).write_bytes((write.path / "Second" / name).read_bytes())
    folders = [write.path / "First & last", tables]
    code, _, err = run_cli("compare", *folders, "--metric", "c_index", "--out", write.path / "out")
    assert code == 0, err
    table = pd.read_csv(write.path / "out" / "cohorts.csv").set_index(["cohort", "aggregator"])
    for title, own in runs.items():
        for model in ("clinical", "good", "poor"):
            names = ["c_pooled", "c_pooled_low", "c_pooled_high"]
            assert table.loc[(title, model), names].tolist() == pytest.approx(own.loc[model, names].tolist())
    assert r"First \& last" in (write.path / "out" / "cohorts.tex").read_text(encoding="utf-8")
    drawn = forest(table.reset_index(), "Concordance").axes[0]
    squares = [line.get_xdata()[0] for line in drawn.lines if line.get_marker() in ("s", "D")]
    assert sorted(squares) == pytest.approx(sorted(table["c_pooled"]))
    assert [text.get_text() for text in drawn.get_yticklabels()] == list(runs)
    assert (write.path / "out" / "cohorts.png").stat().st_size > 5_000


def test_a_run_whose_only_metric_is_undefined_says_so_everywhere(write, run_cli):
    run = survival_run(write, write.path / "run", {"good": 0.3, "poor": 8.0}, tested=1, eventless=[0])
    other = survival_run(write, write.path / "other", {"good": 0.3, "poor": 8.0}, seed=1, title="other")
    code, _, err = run_cli("report", run.path)
    assert code == 0, err
    told = pd.read_csv(run.path / "undefined.csv")
    assert told["note"].eq("no event").all()
    assert set(told["trial"]) == {"good-r0-f0-s0", "poor-r0-f0-s0", "good", "poor"}
    said = {
        "table.md": "| good | - | 1 |",
        "table.tex": "Undefined: no event (C; 2 of 2 trials; undefined.csv).",
        "survival.md": "The pooled C of clinical, good, poor is undefined: no comparable pair",
        "survival.tex": "The pooled C of clinical, good, poor is undefined: no comparable pair",
        "comparisons.md": "C is undefined on all test slides that both predicted (no event).",
        "report.html": "C is undefined in every trial (no event): no model can be called better than another by it.",
    }
    for name, words in said.items():
        text = (run.path / name).read_text(encoding="utf-8")
        assert words in text, name
        assert "| nan" not in text, name
        assert "differs from the best" not in text, name
    code, _, err = run_cli("compare", run.path, other.path, "--out", write.path / "out")
    assert code == 2
    assert "C is undefined on Demo_slides & 100 % noise for every aggregator (no event); leave" in err


def test_a_fold_without_events_is_left_out_of_the_mean_and_said(write, run_cli):
    run = survival_run(write, write.path / "run", {"good": 0.3, "poor": 8.0}, eventless=[1])
    other = survival_run(write, write.path / "other", {"good": 0.3, "poor": 8.0}, seed=1, title="other")
    for each in (run, other):
        assert run_cli("report", each.path)[0] == 0
    table = pd.read_csv(run.path / "table.csv").set_index("aggregator")
    scores = [row["metrics"]["c_index"] for row in run.trials() if row["aggregator"] == "good"]
    assert scores.count(None) == 1
    assert table.loc["good", "c_index_mean"] == pytest.approx(np.mean([score for score in scores if score is not None]))
    assert table.loc["good", "c_index_n"] == 4
    for name in ("table.md", "survival.md", "table.tex", "survival.tex", "report.html"):
        assert "(n = 4)" in (run.path / name).read_text(encoding="utf-8"), name
    for name in ("table.md", "table.tex", "report.html"):
        text = (run.path / name).read_text(encoding="utf-8")
        assert "Undefined: no event (C; 2 of 10 trials; undefined.csv)." in text, name
    assert run_cli("compare", run.path, other.path, "--out", write.path / "out")[0] == 0
    for name in ("ranking.md", "ranking.tex"):
        text = (write.path / "out" / name).read_text(encoding="utf-8")
        assert "over 4 of 5 test folds (no event): good, poor." in text


def test_a_metric_of_one_fold_of_five_is_not_tested_by_draws_of_its_patients(write):
    results = Results.load(survival_run(write, write.path / "run", {"good": 0.3, "poor": 8.0}).path)
    for trial in results.trials:
        if trial.fold:
            trial.metrics["c_index"] = None
    row = comparisons(results).set_index("metric").loc["c_index"]
    assert (row["splits"], row["test"]) == (1, "")
    assert row["difference"] > 0
    assert row[["low", "high", "p", "p_worse", "detectable"]].isna().all()


def test_curves_end_where_ten_are_at_risk_and_say_what_is_undefined(run):
    """The panel of a collapsed model has no two groups to test, and says so."""
    figure = draw_curves(results := Results.load(run.path))["kaplan_meier"]
    times = np.concatenate([part.arguments[0] for part in folds_of(results, "good")])
    assert (times >= (until := np.sort(times)[-10])).sum() == 10
    panels = {axes.get_title().split("\n")[0]: axes for axes in figure.axes if axes.get_title()}
    assert set(panels) == set(NOISE)
    for axes in panels.values():
        drawn = [line.get_xdata() for line in axes.lines]
        assert max(line.max() for line in drawn if len(line)) == axes.get_xlim()[1] == until
    said = panels["flat"].get_title().replace("\n", " ")
    assert said == "flat no event at which both groups are at risk"
    assert re.search(r"hazard ratio \d\.\d\d \[\d\.\d\d, \d\.\d\d\]\nlog-rank p < 0\.001", panels["good"].get_title())


def test_a_horizon_that_no_model_predicts_has_no_calibration(run, monkeypatch):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"surv_12": np.nan, "surv_24": np.nan, "surv_36": np.nan}, index=range(60))
    task = SimpleNamespace(horizon_times={"12": 12.0, "24": 24.0, "36": 36.0}, criterion="nll")
    fold = SimpleNamespace(task=task, rows=rows, arguments=(rng.uniform(1, 60, 60), rng.integers(0, 2, 60)))
    monkeypatch.setattr(survival_curves, "folds_of", lambda *_: [fold])
    results = Results.load(run.path)
    assert survival_curves.draw_calibration(results) == {}
    rows["surv_12"] = rng.uniform(0.2, 0.9, 60)
    assert "within 12 months" in survival_curves.draw_calibration(results)["survival_calibration"].get_supxlabel()
    fold.rows, fold.arguments = rows.iloc[:9], tuple(values[:9] for values in fold.arguments)
    figure = survival_curves.draw_calibration(results)["survival_calibration"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["groups too small"]
