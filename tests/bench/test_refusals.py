"""What keeps a model from its data, or a setting from an effect, is said before anything is trained."""

import numpy as np
import pytest

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite


@pytest.fixture(scope="module")
def no_places(bag_table, tmp_path_factory):
    """The table without coordinates, which it holds without the step of their grid."""
    path = tmp_path_factory.mktemp("no_places") / "bare.npz"
    with np.load(bag_table) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays if name != "coords"})
    return path


def plan_of(table, models, **given):
    given = {"folds": 2, "epochs": 1, **given}
    return make_plan(read_suite(None, datasets=[str(table)], models=models, **given), str(table))


def test_a_model_whose_data_lack_something_fails_before_the_others_train_as_ever(no_places, tmp_path):
    started = []
    run = run_plan(
        plan_of(no_places, ["camil", "mean"]), tmp_path / "both", on_trial=lambda trial: started.append(trial.id)
    )
    alone = run_plan(plan_of(no_places, ["mean"]), tmp_path / "alone")
    rows = run.trials()
    assert [row["trial"] for row in rows] == ["camil-r0-f0-s0", "camil-r0-f1-s0", "mean-r0-f0-s0", "mean-r0-f1-s0"]
    assert started == ["mean-r0-f0-s0", "mean-r0-f1-s0"]
    for row in rows[:2]:
        assert row["status"] == "failed"
        for part in (
            "camil needs the coordinates of patches",
            "40 of 40 slides of",
            "--set camil.neighbours=graph --set camil.graph=",
        ):
            assert part in row["reason"]
    for trial in started:
        assert run.read(trial, "predictions.csv") == alone.read(trial, "predictions.csv")
        assert run.read(trial, "weights.safetensors") == alone.read(trial, "weights.safetensors")


@pytest.mark.parametrize(
    ("model", "overrides", "sentence"),
    [
        ("camil", {"camil.neighbours": "graph"}, "camil needs a graph and has none; set one (--set camil.graph=knn:8)"),
        ("camil", {"camil.neighbours": "graph", "camil.graph": "feature_knn:3"}, ""),
        ("camil", {"camil.neighbours": "graph", "camil.graph": "knn:3"}, "or leave camil out"),
        ("srmil", {"srmil.graph": None}, "srmil needs a graph and has none"),
        ("srmil", {"srmil.graph": "window:2"}, "srmil needs the coordinates of patches"),
        ("srmil", {"srmil.graph": "feature_knn:0"}, "the number of neighbours must be a positive integer"),
        ("camil", {"camil.heads": 7}, "camil: heads (7) must lie between"),
        ("abmil", {}, ""),
    ],
)
def test_what_a_model_lacks(no_places, model, overrides, sentence):
    (planned,) = plan_of(no_places, [model], overrides=overrides).models
    assert sentence in planned.lacks
    assert bool(sentence) == bool(planned.lacks)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"overrides": {"labelled": 1e9}},
            r"labelled=1e\+09 of mean: a training part holds 18 slides; ask for at most",
        ),
        ({"grid": {"labelled": [4, 30]}}, "labelled=30 of mean@labelled=30: a training part holds 18 slides"),
        ({"overrides": {"labelled": 4.5}}, "labelled must be a share in .* or a whole number of slides, not 4.5"),
        ({"grid": {"graph": ["window:2", "knn:3"]}}, "--grid graph changes nothing: mean takes no graph; leave it out"),
        (
            {"grid": {"tie": ["loss", "auc"]}, "overrides": {"select": "last"}},
            "--grid tie changes nothing: select=last",
        ),
        (
            {"overrides": {"srmil.graph": "windw:2"}, "models": ["srmil"]},
            "unknown graph 'windw'; did you mean 'window'",
        ),
        (
            {"grid": {"epochs": [1, 2]}, "models": ["linear_probe"]},
            "--grid epochs changes nothing: linear_probe does not read it; leave it out",
        ),
        (
            {"overrides": {"knn_probe.epochs": 3}, "models": ["knn_probe"]},
            "knn_probe.epochs: knn_probe has no option 'epochs'",
        ),
    ],
)
def test_settings_that_cannot_be_and_grids_that_change_nothing(bag_table, given, sentence):
    with pytest.raises(InputError, match=sentence):
        plan_of(bag_table, **{"models": ["mean", "abmil"], **given})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"graph": "window:2"}, "--set graph changes nothing: mean takes no graph"),
        ({"abmil.graph": "window:2"}, "--set abmil.graph changes nothing: abmil takes no graph"),
        ({"select": "last", "tie": "auc"}, "--set tie changes nothing: select=last of mean chooses nothing"),
        ({"select": "last", "patience": 3}, "--set patience changes nothing: select=last of mean chooses nothing"),
        ({"patience_after": 3}, "--set patience_after changes nothing: mean has no patience"),
        ({"optimizer": "sgd", "betas": [0.8, 0.9]}, "--set betas changes nothing: sgd of mean has none"),
        ({"select": "last", "patience": None, "graph": None, "mean.graph": None}, ""),
    ],
)
def test_a_setting_that_changes_nothing_is_told_and_taken(bag_table, caplog, overrides, sentence):
    assert len(plan_of(bag_table, ["mean", "abmil"], overrides=overrides).models) == 2
    assert [record.getMessage() for record in caplog.records] == [f"mil-zoo: {sentence}"] * bool(sentence)


def test_what_the_suite_sets_is_not_told_as_the_users(bag_table, caplog):
    """The suite demo sets rate, schedule and epochs of whatever it trains; a probe reads none of them."""
    given = {"datasets": [str(bag_table)], "models": ["linear_probe", "knn_probe"], "folds": 2}
    make_plan(read_suite("demo", **given), str(bag_table))
    assert caplog.records == []
    make_plan(read_suite("demo", **given, epochs=3, overrides={"schedule": "cosine"}), str(bag_table))
    assert [record.getMessage() for record in caplog.records] == [
        f"mil-zoo: --{key} changes nothing: linear_probe does not read it" for key in ("set schedule", "epochs")
    ]


def test_a_suite_of_several_models_serves_some_of_them_chosen_otherwise(bag_table, tmp_path):
    (tmp_path / "shared.yaml").write_text("overrides: {tie: loss, patience: 5, graph: 'knn:4', srmil.mask_rate: 0.3}")
    suite = read_suite(
        str(tmp_path / "shared.yaml"),
        datasets=[str(bag_table)],
        models=["abmil", "mean"],
        folds=2,
        overrides={"select": "last"},
    )
    assert {model.training.select for model in make_plan(suite, str(bag_table)).models} == {"last"}


def test_a_grid_without_its_step_is_told(bag_table):
    (planned,) = plan_of(bag_table, ["srmil"], overrides={"graph": "window:2"}).models
    assert "srmil cannot be trained on bags.npz: slide 'slide_05': graph 'window' needs patch_size" in planned.lacks
    assert not plan_of(bag_table, ["camil"]).models[0].lacks


def test_a_setting_that_one_of_the_models_heeds_is_taken(bag_table):
    overrides = {"graph": "feature_knn:3", "abmil.select": "last", "tie": "auc"}
    graphs = [model.graph for model in plan_of(bag_table, ["mean", "abmil", "srmil"], overrides=overrides).models]
    assert graphs == [None, None, "feature_knn:3"]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("search: [learning_rate]", "search must be a mapping, not \\['learning_rate'\\]"),
        ("grid: 3", "grid must be a mapping, not 3"),
        ("overrides: epochs", "overrides must be a mapping, not 'epochs'"),
        ("search: {meen.embed_dim: [8, 16]}", "meen.embed_dim is of no model; did you mean 'mean'"),
        ("overrides: {meen.embed_dim: 8}", "meen.embed_dim is of no model; did you mean 'mean'"),
        ("explain: [random, random]", "--explain must name each explainer once, not random,random"),
    ],
)
def test_suites_that_cannot_be(bag_table, tmp_path, told, sentence):
    (tmp_path / "suite.yaml").write_text(f"datasets: [demo]\nmodels: [mean]\n{told}\n")
    with pytest.raises(InputError, match=sentence):
        make_plan(read_suite(str(tmp_path / "suite.yaml")), str(bag_table))


def test_a_dry_run_refuses_what_a_run_does(run_cli, bag_table, tmp_path):
    """What belongs to the report alone is found before hours of training, and so it is when none is asked for."""
    told = ("bench", "--dataset", bag_table, "--models", "mean", "--folds", 2, "--dry-run", "--out", tmp_path / "r")
    code, out, _ = run_cli(*told, "--models", "mean,max", "--explain", "integrated-gradients")
    assert code == 0
    assert "No difference in AUC, however large, is found by this design: fewer than 5 splits" in " ".join(out.split())
    for more, sentence in ((("--by", "ward"), "nothing says the ward"), (("--control", "abmil"), "is not among")):
        code, _, err = run_cli(*told, *more)
        assert code == 2
        assert sentence in err
