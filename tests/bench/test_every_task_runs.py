"""Of every task: outcomes of test patients choose nothing, an interrupted run goes on, and diagnostics run."""

import csv
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from survival_runs import make_cohort
from task_runs import TASKS, jobs_of, task_plan

import mil_zoo
from mil_zoo import Predictor
from mil_zoo.bench.executors import Processes
from mil_zoo.bench.runner import run_plan
from mil_zoo.report.load import Results
from mil_zoo.report.tables.subgroup_table import subgroup_table
from mil_zoo.tasks import task_of_config

SAME = ("predictions.csv", "skew.csv", "weights.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """A run of every task, trained in this process."""
    out = tmp_path_factory.mktemp("runs")
    return {task: run_plan(task_plan(folder, task), out / task) for task in TASKS}


@pytest.mark.parametrize("task", ["survival", "survival_cox"])
def test_outcomes_of_test_patients_choose_nothing(folder, tmp_path, task):
    """Poison: with the outcomes of the test patients exchanged the same weights of the same epoch are kept."""
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    owner = sorted(table["patient_id"].unique())
    part = dict(zip(owner, np.resize(["train", "train", "val", "test"], len(owner)), strict=True))
    table["split"] = table["patient_id"].map(part)
    table.to_csv(folder / "true.csv", index=False)
    rows = table.index[(table["split"] == "test") & table["os_months"].notna() & ~table["patient_id"].duplicated(False)]
    table.loc[rows, ["os_months", "censorship"]] = table.loc[rows[::-1], ["os_months", "censorship"]].to_numpy()
    table.to_csv(folder / "poisoned.csv", index=False)
    kept = []
    for name in ("true", "poisoned"):
        run = run_plan(task_plan(folder, task, f"{name}.csv", split="official", epochs=4), tmp_path / name)
        (row,) = run.trials()
        files = run.path / "trials" / row["trial"]
        kept.append((row["selected_epoch"], (files / "weights.safetensors").read_bytes(), row["metrics"]["c_index"]))
    assert kept[0][:2] == kept[1][:2]
    assert kept[0][2] != kept[1][2]


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_goes_on_and_looks_at_attention(folder, runs, tmp_path, task):
    plan, stopped = task_plan(folder, task), []

    def stop(trial):
        stopped.append(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path / "part", on_result=stop)
    again = run_plan(plan, tmp_path / "part")
    assert len(stopped) == 1
    names = [row["trial"] for row in runs[task].trials()]
    assert sorted(names) == sorted(row["trial"] for row in again.trials())
    for name in names:
        files = [run.path / "trials" / name for run in (runs[task], again)]
        for file in SAME:
            assert files[0].joinpath(file).read_bytes() == files[1].joinpath(file).read_bytes(), file
        skew = pd.read_csv(files[0] / "skew.csv")
        assert {"n_x_max", "entropy", "gini"} <= set(skew["name"])  # of attention, whatever is predicted


def test_a_process_of_its_own_gives_the_same_bytes(folder, runs, tmp_path):
    jobs = jobs_of({task: task_plan(folder, task) for task in TASKS}, tmp_path)
    done = Processes(1).run(list(jobs.values()), lambda trial: None, lambda trial, row: None)
    assert [trial.reason for trial in done] == [None] * len(TASKS)
    for task, job in jobs.items():
        there = runs[task].path / "trials" / job.trial.id
        for file in SAME:
            assert (job.folder / file).read_bytes() == (there / file).read_bytes(), (task, file)


@pytest.fixture(scope="module")
def slides(folder, tmp_path_factory):
    """The cohort's slides as files with places: what predict is given."""
    out, table = tmp_path_factory.mktemp("slides"), np.load(folder / "bags.npz")
    for i, name in enumerate(table["bag_name"][20:26]):  # each the only one of its patient
        rows = table["X"][table["bag_ptr"][20 + i] : table["bag_ptr"][21 + i]]
        with h5py.File(out / f"{name}.h5", "w") as file:
            file["features"] = rows
            file["coords"] = np.stack([np.arange(len(rows)) % 4, np.arange(len(rows)) // 4], 1) * 512
            file["coords"].attrs.update(patch_size=256, patch_size_level0=512)
    return out


@pytest.mark.parametrize("task", TASKS)
def test_slides_are_predicted_as_in_the_run_with_maps(runs, slides, tmp_path, run_cli, task):
    (first, _), of = [row["trial"] for row in runs[task].trials()], ("predict", "--run", runs[task].path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "classes.csv").write_text("of an earlier prediction")
    code, _, err = run_cli(*of, "--model", "abmil", "--trial", first, slides, "--out", tmp_path / "p")
    assert code == 0, err
    assert (tmp_path / "p" / "classes.csv").exists() == (task == "ordinal")
    table = pd.read_csv(tmp_path / "p" / "probabilities.csv", keep_default_na=False).set_index("slide_id")
    file = runs[task].path / "trials" / first / "task.json"
    fitted = task_of_config(json.loads(file.read_text() if file.exists() else json.dumps({"task": TASKS[task]})))
    columns = list(fitted.prediction_columns)
    known = runs[task].predictions(first).set_index("patient_id")  # each of these slides is its patient's only one
    table["patient"] = table.index.str.replace("slide_", "P")
    scored = table[table["patient"].isin(known.index)].set_index("patient")
    assert len(scored) >= 3
    got, expected = (frame.loc[scored.index, columns].replace("", np.nan).astype(float) for frame in (scored, known))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    tested = table["patient"].isin(known.index[known["split"] == "test"])
    assert (table["trained_on"].astype(int) == 1 - tested).all()
    for slide in table.index:
        stem = tmp_path / "p" / "attention" / slide
        attention = pd.read_csv(stem.with_suffix(".csv"))["attention"]
        assert attention.sum() == pytest.approx(1, abs=1e-4)
        assert stem.with_suffix(".png").stat().st_size > 5000
        patches = json.loads(stem.with_suffix(".geojson").read_text())["features"]
        measured = [patch["properties"]["measurements"]["attention"] for patch in patches]
        assert measured == pytest.approx(attention.tolist())


@pytest.mark.parametrize("task", TASKS)
def test_trials_together_predict_means_and_say_what_is_missing(runs, slides, tmp_path, run_cli, task):
    of = ("predict", "--run", runs[task].path, "--model", "abmil", slides, "--write", "none")
    code, _, err = run_cli(*of, "--out", tmp_path / "p")
    assert code == 0, err
    with (tmp_path / "p" / "probabilities.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert len(set(header)) == len(header)
    trials = [Predictor(runs[task], "abmil", row["trial"]) for row in runs[task].trials()]
    for cells, path in zip(rows, sorted(slides.iterdir()), strict=True):
        row, bag = dict(zip(header, cells, strict=True)), mil_zoo.data.read_bag(path)
        values = np.stack([trial.predict(bag).probabilities for trial in trials])
        mean = dict(zip(trials[0].task.prediction_columns, values.mean(0), strict=True))
        if task == "ordinal":  # a mean of classes is none
            above = 1 - np.cumsum([mean["prob_0"], mean["prob_1"]])
            mean["predicted"] = float((above > 0.5).sum())
            assert row["words"] == f"class {mean['predicted']:.0f}"
        for name, value in mean.items():
            assert float(row[name]) == pytest.approx(value, nan_ok=True), name
            assert np.isnan(value) == (name in row["reason"]), name
        if task in ("survival", "survival_cox"):
            assert row["predicted"] == f"risk {mean['risk']:.4g}, S(12 months) {mean['surv_12']:.0%}"
            assert "no surv_36: 2 of 2 trials predict none (fewer than 10 training patients are" in row["reason"]


@pytest.mark.parametrize("task", TASKS)
def test_groups_of_patients_are_scored(runs, tmp_path, task):
    """Each with the metrics of the task; of survival fold by fold, since hazards have bins of their own in each."""
    shutil.copytree(runs[task].path, tmp_path / "run")
    results = Results.load(tmp_path / "run")
    rows = pd.concat([results.predictions(trial) for trial in results.trials])
    owner = rows["patient_id"].where(rows["patient_id"].notna(), rows["slide_id"])
    groups = pd.DataFrame(
        {"slide_id": rows["slide_id"], "patient_id": owner, "site": owner.str[-1].isin(list("02468"))}
    )
    groups.drop_duplicates("slide_id").to_csv(tmp_path / "run" / "groups.csv", index=False)
    results = Results.load(tmp_path / "run")
    table = subgroup_table(results).set_index(["group", "metric"])
    assert set(table.index.get_level_values("metric")) == {metric.name for metric in results.headline}
    assert table["value"].notna().all()
    assert table["positives"].isna().all() == (results.task.family != "survival")
    if task != "survival":
        return
    metric, values = results.metric("nll"), []
    for trial in results.trials:
        own, fitted = results.scored_rows(trial), results.task_of(trial)
        own = own[own["patient_id"].str[-1].isin(list("02468"))]
        values.append(metric(*fitted.arguments(*fitted.read(own)), **fitted.context()))
    assert table.loc[("True", "nll")]["value"] == pytest.approx(np.mean(values))
