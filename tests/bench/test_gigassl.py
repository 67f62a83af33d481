"""Giga-SSL in the benchmark: pretraining without labels or tested slides, and a probe on few labels."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mil_zoo import InputError
from mil_zoo.bench.parts import few_labels, split_bags
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.predictor import Predictor
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.bench.trial import Job, _context
from mil_zoo.config import read_shipped
from mil_zoo.data.splits.split import find_leaks
from mil_zoo.report.figures.pretraining_curves import draw
from mil_zoo.report.load import Results
from mil_zoo.report.tables.label_budget import label_budget_table
from mil_zoo.ssl import protocol
from mil_zoo.ssl.config import PretrainConfig
from mil_zoo.train.protocols import model_options, run_protocol

SMALL = {
    "models": ["gigassl", "abmil", "mean"],
    "folds": 2,
    "epochs": 2,
    "grid": {"labelled": [0.2, 1]},
    "overrides": {"gigassl.downsample": 10, "gigassl.out_dim": 8, "gigassl.projection_dim": 4, "gigassl.views": 3},
}


def small_plan(table, **given):
    suite = read_suite(None, **{"datasets": [str(table)]} | SMALL | given)
    return make_plan(suite, suite.datasets[0])


@pytest.fixture(scope="module")
def pretrained():
    """The slides of every pretraining that happened, in order."""
    return []


@pytest.fixture(scope="module")
def finished(bag_table, tmp_path_factory, pretrained):
    original = protocol.pretrain

    def spy(source, *rest, **more):
        pretrained.append(list(source.slide_ids))
        return original(source, *rest, **more)

    plan = small_plan(bag_table)
    protocol.pretrain = spy
    try:
        return plan, run_plan(plan, tmp_path_factory.mktemp("run"))
    finally:
        protocol.pretrain = original


def test_same_folds_tables_and_files(finished):
    plan, run = finished
    rows = run.trials()
    assert [row["status"] for row in rows] == ["ok"] * 12
    for row in rows:
        predictions = run.predictions(row["trial"])
        split = plan.splits[row["fold"]]
        assert list(predictions.query("split == 'test'")["slide_id"]) == list(split.test)
        assert row["n_train"] == len(split.train)
        assert row["n_labelled"] == (len(split.train) if row["grid"] == "labelled=1" else 4)
    weights = load_file(run.path / "trials" / "gigassl@labelled=1-r0-f0-s0" / "weights.safetensors")
    assert {"encoder.backbone.block0.conv1", "probe.coefficients"} <= set(weights)
    assert "nothing is chosen" in run.config["selection"]["gigassl@labelled=1"]
    with pytest.raises(InputError, match="run mil-zoo bench --models gigassl with --test-on"):
        Predictor(run, "gigassl@labelled=1")


def test_no_tested_patient_is_pretrained_on_and_budgets_share_a_pretraining(finished, pretrained):
    plan, _ = finished
    assert len(pretrained) == 2  # one a fold, though each fold has two numbers of labels
    patient_of = {bag.slide_id: bag.patient_id for bag in plan.dataset.bags}
    for split, slides in zip(plan.splits, pretrained, strict=True):
        assert set(slides) == {*split.train, *split.val}
        assert find_leaks(slides, split.test, patient_of) == []


def test_the_loss_of_chance_lies_within_its_panel(finished):
    _, run = finished
    results = Results.load(run)
    trial = next(trial for trial in results.trials if trial.aggregator == "gigassl")
    loss = draw(results)["pretraining"].axes[0]
    assert loss.get_ylim()[0] == 0
    assert loss.get_ylim()[1] > results.epochs(trial)["chance"].iloc[-1]


def test_the_curve_has_a_point_for_every_number_of_labels(finished):
    _, run = finished
    table = label_budget_table(Results.load(run))
    assert list(zip(table["aggregator"], table["labelled"], strict=True)) == [
        (model, labelled) for model in SMALL["models"] for labelled in ("0.2", "1")
    ]
    assert table["slides"].tolist() == pytest.approx([4, table["slides"].max()] * 3)


def test_pretraining_needs_no_labels(finished):
    """With slides that have no labels to pretrain on, and few that have some to probe, every prediction stays."""
    plan, run = finished
    trial = next(trial for trial in plan.trials if trial.id == "gigassl@labelled=0.2-r0-f0-s0")
    bags, _ = split_bags(plan.dataset, trial.split)
    few = few_labels(bags, trial, plan.dataset.task)
    assert (len(few["train"]), len(few["unlabelled"])) == (4, len(trial.split.train) + len(trial.split.val))
    few["unlabelled"] = few["unlabelled"].relabelled([None] * len(few["unlabelled"]))
    job = Job(trial, plan.source, run.path, plan.suite)
    result = run_protocol(_context(job, plan.dataset, few, lambda row: None, {}))
    expected = run.predictions(trial.id).query("split == 'test'")[["prob_0", "prob_1"]]
    np.testing.assert_allclose(result.predictions["test"], expected, atol=1e-5)


def test_all_models_get_the_same_few_labels(finished):
    plan, _ = finished
    bags, _ = split_bags(plan.dataset, plan.splits[1])
    trials = [trial for trial in plan.trials if trial.split is plan.splits[1]]
    few, full = ([t for t in trials if t.model.grid == f"labelled={part}"] for part in ("0.2", "1"))
    chosen = [
        [bag.slide_id for part in ("train", "val") for bag in few_labels(bags, t, plan.dataset.task)[part]] for t in few
    ]
    assert chosen[0] == chosen[1] == chosen[2]
    assert all(few_labels(bags, trial, plan.dataset.task) == bags for trial in full)


def test_options_and_mistakes(bag_table, tmp_path):
    assert {"backbone", "instances", "views"} <= set(model_options("gigassl"))
    plan = small_plan(
        bag_table,
        models=["gigassl"],
        grid={},
        overrides={"gigassl.backbone": "abmil", "gigassl.backbone_options": {"embed_dim": 8}},
    )
    rows = run_plan(plan, tmp_path / "abmil").trials()
    assert {row["status"] for row in rows} == {"ok"}
    with pytest.raises(InputError, match=r"gigassl\.optimizer: gigassl has no option 'optimizer'"):
        small_plan(bag_table, models=["gigassl"], grid={}, overrides={"gigassl.optimizer": "sgd"})
    plan = small_plan(bag_table, models=["gigassl"], grid={}, overrides={})
    assert "needs a patch size for every slide" in run_plan(plan, tmp_path / "no_step").trials()[0]["reason"]
    with pytest.raises(InputError, match="gigassl has no option 'view'; did you mean 'views'"):
        small_plan(bag_table, overrides={"gigassl.view": 3})


def test_the_last_epoch(bag_table, tmp_path):
    plan = small_plan(bag_table, models=["abmil"], grid={}, overrides={"select": "last"}, epochs=3)
    assert {row["selected_epoch"] for row in run_plan(plan, tmp_path).trials()} == {3}
    assert torch.is_tensor(load_file(next(tmp_path.glob("trials/*/weights.safetensors")))["classifier.weight"])


def test_its_recipe_is_that_of_pretraining_alone():
    """configs/gigassl.yaml states for a benchmark what ``mil-zoo pretrain`` does where nothing is said."""
    recipe, alone = read_shipped("aggregators", "gigassl")["training"], PretrainConfig()
    for name in ("epochs", "learning_rate", "weight_decay"):
        assert recipe[name] == getattr(alone, name), name
    assert recipe["bags_per_step"] == alone.batch_size
