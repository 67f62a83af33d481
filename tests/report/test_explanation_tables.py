"""A bench with explainers: what every trial writes, and the table and figure that are made of it."""

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.report.figures import draw_figures, explanation_maps, explanations
from mil_zoo.report.load import Results
from mil_zoo.report.tables import documents
from mil_zoo.report.tables.explanations_table import explained, explanations_table

EXPLAINERS = ["attention", "gradient", "occlusion", "random"]


def plan_of(table, **given):
    suite = read_suite(None, **{"datasets": [str(table)], "models": ["abmil", "mean"], "folds": 2, "epochs": 3} | given)
    return make_plan(suite, suite.datasets[0])


@pytest.fixture(scope="module")
def run(bag_table, tmp_path_factory):
    return run_plan(plan_of(bag_table, explain=EXPLAINERS), tmp_path_factory.mktemp("run"))


def test_a_trial_keeps_scores_and_numbers_of_every_test_slide(run):
    for trial in Results.load(run).trials:
        assert {"explanations.csv", "explanations.h5"} <= set(trial.files)
        rows = pd.read_csv(run.path_of(trial.trial, "explanations.csv"))
        offered = set(EXPLAINERS) - ({"attention"} if trial.aggregator == "mean" else set())
        assert set(rows["explainer"]) == offered
        tested = run.predictions(trial.trial).query("split == 'test'")["slide_id"]
        assert set(rows["slide_id"]) == set(tested)
        with h5py.File(run.path_of(trial.trial, "explanations.h5")) as file:
            assert all(set(file[slide]["scores"]) == offered for slide in tested)


def test_the_table_is_the_mean_over_patients_with_their_interval(run):
    results = Results.load(run)
    table = explanations_table(results).set_index(["aggregator", "explainer"])
    assert list(table.index) == [("abmil", name) for name in EXPLAINERS] + [("mean", name) for name in EXPLAINERS[1:]]
    rows = explained(results).query("aggregator == 'abmil' and explainer == 'occlusion' and name == 'area'")
    areas = rows.groupby("patient_id")["value"].mean()
    row = table.loc["abmil", "occlusion"]
    assert row["patients"] == len(areas)
    assert row["area_mean"] == pytest.approx(areas.mean())
    assert row["area_low"] < row["area_mean"] < row["area_high"]
    assert row["area_high"] - row["area_mean"] == pytest.approx(row["area_mean"] - row["area_low"])
    assert row["area_mean"] > abs(table.loc["abmil", "random"]["area_mean"]), "these slides can be learned"
    assert 0 <= row["auroc"] <= 1


def test_attention_is_compared_with_each_explainer_by_patient(run):
    results = Results.load(run)
    table = explanations_table(results).set_index(["aggregator", "explainer"])
    rows = explained(results).query("aggregator == 'abmil' and name == 'area'")
    areas = rows.pivot_table(index="patient_id", columns="explainer", values="value")
    ahead = areas["attention"] - areas["random"]
    row = table.loc["abmil", "random"]
    assert row["ahead_mean"] == pytest.approx(ahead.mean())
    half = stats.t.ppf(0.975, len(ahead) - 1) * ahead.std() / len(ahead) ** 0.5
    assert row["ahead_high"] - row["ahead_low"] == pytest.approx(2 * half)
    assert table.loc["mean"]["ahead_mean"].isna().all(), "no attention to compare with"


def test_a_row_holds_every_explainer_of_an_aggregator(run):
    results = Results.load(run)
    (document,) = [document for document in documents(results) if document.name == "explanations"]
    text = document.markdown()
    assert "| Aggregator | Attention | Gradient x input | Occlusion | Random |" in text
    table = explanations_table(results).set_index(["aggregator", "explainer"])
    best = table["area_mean"].drop("random", level="explainer")
    assert f" {best['mean'].max():.3f} " in next(row for row in text.splitlines() if row.startswith("| mean | - |"))
    assert "**" not in text, "bold says of other tables that somebody cannot be the best, which is not decided here"
    leaders = [best[label].idxmax() for label in ("abmil", "mean")]
    for name, title in (("attention", "Attention"), ("gradient", "Gradient x input"), ("occlusion", "Occlusion")):
        led = [label for label, leader in zip(("abmil", "mean"), leaders, strict=True) if leader == name]
        assert (f"{title} of {len(led)} ({', '.join(led)})" in text) == bool(led)
    verdict = "larger of 1 (abmil)" if table.loc["abmil", "random"]["ahead_low"] > 0 else "larger of none"
    assert f"Attention against random: {verdict}" in text
    assert "## AUROC against instance labels" in text


def test_instance_labels_judge_only_what_speaks_for_the_right_class(run, monkeypatch):
    read = Results.test_predictions
    (first, *_) = Results.load(run).finished["abmil"]
    rows = read(Results.load(run), first)
    wrong, *others = rows["slide_id"][(rows["label"] == 1) & (rows["prob_1"] > 0.5)]

    def one_wrong(self, trial):
        rows = read(self, trial).copy()
        rows.loc[rows["slide_id"] == wrong, ["prob_0", "prob_1"]] = [0.9, 0.1]
        return rows

    monkeypatch.setattr(Results, "test_predictions", one_wrong)
    found = explained(Results.load(run)).query("aggregator == 'abmil' and explainer == 'attention'")
    judged = set(found["slide_id"][found["name"] == "auroc"])
    assert wrong not in judged
    assert set(others) <= judged
    assert wrong in set(found["slide_id"][found["name"] == "area"]), "flipping judges it as ever"


@pytest.mark.figures
def test_the_figures_have_a_row_or_a_panel_an_aggregator(run):
    drawings = draw_figures(Results.load(run), ["explanations", "explanation_curves", "explanation_maps"])
    assert [drawing.name for drawing in drawings] == ["explanations", "explanation-curves", "explanation-maps"]
    assert all(len(drawing.png) > 5_000 for drawing in drawings)


def test_every_aggregator_and_explainer_has_its_point(run):
    results = Results.load(run)
    areas, labels = explanations.draw(results)["explanations"].axes
    assert [tick.get_text() for tick in areas.get_yticklabels()] == ["abmil", "mean"]
    points = {round(float(line.get_xdata()[0]), 9) for line in areas.lines if line.get_marker() == "o"}
    assert points == {round(value, 9) for value in explanations_table(results)["area_mean"]}
    assert len([line for line in labels.lines if line.get_marker() == "o"]) == 7
    curves = explanations.draw_curves(results)["explanation-curves"].axes
    assert [axes.get_title() for axes in curves] == ["abmil", "mean"]
    assert [len(axes.lines) for axes in curves] == [1 + 2 * 4, 1 + 2 * 3]


def test_a_row_of_maps_bears_the_name_of_its_model_and_its_prediction(run):
    results = Results.load(run)
    figure = explanation_maps.draw(results)["explanation-maps"]
    *maps, bar = figure.axes
    named = [axes.get_ylabel().split("\n") for axes in maps if axes.get_ylabel()]
    assert [name for name, *_ in named] == ["abmil", "mean"]
    classes = results.config.dataset.classes
    assert all(" ".join(said) in classes for _, *said in named)
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["Truth: orange is\npositive", "Attention", "Gradient x input"]
    assert all(axes.yaxis_inverted() for axes in maps), "y points down"
    assert bar.get_ylabel() == "rank of a patch by relevance for the prediction"
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["least", "median", "most"]


def test_without_explainers_there_is_nothing(bag_table, tmp_path):
    run = run_plan(plan_of(bag_table, models=["mean"], epochs=1), tmp_path)
    results = Results.load(run)
    assert len(explanations_table(results)) == 0
    assert draw_figures(results, ["explanations", "explanation_curves", "explanation_maps"]) == []
    assert "explain" not in results.config.settings()


def test_an_unknown_explainer_is_refused_before_training(bag_table):
    with pytest.raises(InputError, match="unknown explainer 'atention'; did you mean 'attention'"):
        plan_of(bag_table, explain=["atention"])


def test_a_slide_of_two_instances_is_explained(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "pairs.npz"
    np.savez(
        path, X=rng.normal(size=(40, 3)).astype(np.float32), bag_ptr=2 * np.arange(21), bag_label=np.arange(20) % 2
    )
    run = run_plan(plan_of(path, models=["abmil"], epochs=1, explain=["occlusion"]), tmp_path / "run")
    assert np.isfinite(explanations_table(Results.load(run))["area_mean"]).all()
