"""A bench with explainers: what every trial writes, and the table and figure that are made of it."""

import h5py
import numpy as np
import pandas as pd
import pytest

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.report.figures import draw_figures, explanation_maps
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


def test_it_is_said_where_attention_stands(run):
    (document,) = [document for document in documents(Results.load(run)) if document.name == "explanations"]
    text = document.markdown()
    assert "| Aggregator | Explainer | Area of flipping | AUROC | AP |" in text
    assert "abmil: " in text
    assert "its attention is number" in text or "Attention has the largest area" in text
    assert "mean: " in text


@pytest.mark.figures
def test_the_figure_has_a_panel_an_aggregator_and_explainer(run):
    drawings = draw_figures(Results.load(run), ["explanations", "explanation_maps"])
    assert [drawing.path.name for drawing in drawings] == ["explanations.png", "explanation-maps.png"]
    assert all(len(drawing.png) > 5_000 for drawing in drawings)


def test_a_row_of_maps_bears_the_name_of_its_model_without_attention_too(run):
    figure = explanation_maps.draw(Results.load(run))["explanation-maps"]
    named = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in named] == ["abmil", "mean"]
    assert all(axes.axison for axes in named)
    assert figure.get_supxlabel().startswith("Colour: rank of a patch's score")


def test_without_explainers_there_is_nothing(bag_table, tmp_path):
    run = run_plan(plan_of(bag_table, models=["mean"], epochs=1), tmp_path)
    results = Results.load(run)
    assert len(explanations_table(results)) == 0
    assert draw_figures(results, ["explanations", "explanation_maps"]) == []
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
