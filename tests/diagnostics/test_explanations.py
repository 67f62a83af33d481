"""Explainers give every instance its part in a prediction, and flipping tells the right ones from chance."""

import numpy as np
import pytest
import torch

from mil_zoo import Bag, create_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.diagnostics.explanations import (
    EXPLAINERS,
    Question,
    by_attention,
    by_gradient,
    by_integrated_gradients,
    by_occlusion,
    explain,
    flip,
    regions,
)
from mil_zoo.tasks import Ordinal, Regression, Survival
from mil_zoo.train.predict import predict


def question_of(aggregator, bag, **more):
    aggregator = aggregator.eval()

    def outputs(bags):
        return [(output, prediction) for _, output, prediction in predict(aggregator, bags, more.get("graph"))]

    (output, prediction), *_ = outputs([bag])
    shown = aggregator.task.shown_output(prediction.numpy())
    return Question(bag, aggregator, output, prediction, shown, more.get("graph"), "cpu", outputs)


def bag_of(n, dim=6, seed=0, **more):
    torch.manual_seed(seed)
    coords = torch.stack([torch.arange(n) % 8, torch.arange(n) // 8], dim=1) * 256.0
    return Bag(features=torch.randn(n, dim), coords=coords, patch_size=256, label=1, slide_id="s", **more)


def linear_model(dim=6):
    """The mean of the features through one linear layer: what every instance contributes is known."""
    torch.manual_seed(3)
    return create_aggregator("mean", in_dim=dim, num_classes=2, embed_dim=None)


@pytest.mark.parametrize("explainer", [by_gradient, by_integrated_gradients])
def test_gradients_of_a_linear_model_are_its_instances_contributions(explainer):
    # One logit: f is linear in x, so every instance contributes w.x / N whatever the path.
    torch.manual_seed(3)
    model, bag = create_aggregator("mean", in_dim=6, num_classes=1, embed_dim=None), bag_of(9)
    question = question_of(model, bag)
    sign = 1 if question.shown else -1
    expected = sign * (bag.features @ model.classifier.weight[0]).detach().double().numpy() / 9
    found = explainer(question)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-7)
    if "completeness_error" in found.numbers:
        assert found.numbers["completeness_error"] < 1e-5


def test_integrated_gradients_add_up_for_a_model_that_is_not_linear():
    torch.manual_seed(0)
    question = question_of(
        create_aggregator("abmil", in_dim=6, num_classes=2, embed_dim=8, attention_dim=4), bag_of(20)
    )
    for name in ("integrated_gradients", "integrated_gradients_mean"):
        assert EXPLAINERS.get(name)(question).numbers["completeness_error"] < 0.02


@pytest.mark.parametrize(
    ("name", "options"), [("mean", {"embed_dim": 8}), ("abmil", {"embed_dim": 8, "attention_dim": 4})]
)
@pytest.mark.parametrize("sharp", [False, True])
def test_one_pass_tells_what_removing_each_instance_does(name, options, sharp):
    torch.manual_seed(1)
    model, bag = create_aggregator(name, in_dim=6, num_classes=3, **options).eval(), bag_of(13)
    if sharp and name == "abmil":  # one instance takes all of the attention
        with torch.no_grad():
            model.attention.w.weight.mul_(200)
    with torch.inference_mode():
        told = model.without_each(BagBatch.from_bags([bag]))
        keep = [torch.arange(13) != i for i in range(13)]
        done = torch.cat([model(BagBatch.from_bags([bag.subset(rows)])).logits for rows in keep])
    torch.testing.assert_close(told, done, rtol=1e-4, atol=1e-5)


def test_occlusion_by_regions_is_the_fall_without_each_region(monkeypatch):
    torch.manual_seed(1)
    model, bag = create_aggregator("dsmil", in_dim=6, num_classes=2).eval(), bag_of(24)
    monkeypatch.setattr("mil_zoo.diagnostics.explanations.REGIONS", 4)
    question = question_of(model, bag)
    found = by_occlusion(question).values
    of = regions(bag.coords.double().numpy(), 24, 4)
    assert sorted(np.bincount(of)) == [6, 6, 6, 6]
    for region in range(4):
        (output, _), *_ = question.outputs([bag.subset(torch.from_numpy(of != region))])
        fall = float(question.value(question.output.logits)[0] - question.value(output.logits)[0])
        np.testing.assert_allclose(found[of == region], fall, rtol=1e-5)


def test_regions_hold_near_instances():
    coords = np.random.default_rng(0).random((1000, 2)) * [4000, 500]
    of = regions(coords, 1000, 10)
    assert np.bincount(of).tolist() == [100] * 10
    within = np.mean([coords[of == region].std(0) for region in range(10)], axis=0)
    assert (within < coords.std(0) / 2).any()
    assert regions(None, 5, 10).tolist() == [0, 1, 2, 3, 4]


def test_flipping_rewards_the_right_scores_and_no_others():
    model, labels = linear_model(), torch.zeros(40, dtype=torch.int64)
    labels[:10] = 1
    bag = bag_of(40, instance_labels=labels)
    bag.features[:10] += 3 * (model.classifier.weight[1] - model.classifier.weight[0]).detach().sign()
    question = question_of(model, bag)
    assert question.shown == 1
    right = by_gradient(question).values
    areas = [flip(question, values)["area"] for values in (right, -right, np.zeros(40))]
    assert areas[0] > 0.1
    assert areas[1] == pytest.approx(-areas[0])
    assert abs(areas[2]) < areas[0]
    scores, rows = explain(question, list(EXPLAINERS))
    assert "attention" not in scores, "mean pooling has none"
    table = {(name, number): value for name, number, value in rows}
    assert table["gradient", "auroc"] > 0.95
    assert table["occlusion", "auroc"] > 0.95
    assert 0.2 < table["random", "auroc"] < 0.8
    assert table["gradient", "flip_most_0.05"] > table["gradient", "flip_least_0.05"]


def test_attention_of_the_predicted_class_is_the_one_that_explains():
    torch.manual_seed(0)
    model = create_aggregator("clam_mb", in_dim=6, num_classes=2, embed_dim=8, attention_dim=4)
    question = question_of(model, bag_of(12))
    np.testing.assert_allclose(
        by_attention(question).values, question.output.attention[:, question.shown].double().numpy()
    )


def test_a_slide_of_one_instance_has_no_explanation_and_a_graph_is_kept():
    torch.manual_seed(0)
    model = create_aggregator("srmil", in_dim=6, num_classes=2, hidden=8, head_hidden=8, heads=2)
    assert explain(question_of(model, bag_of(1), graph="window:2"), ["random"]) == ({}, [])
    scores, rows = explain(question_of(model, bag_of(30), graph="window:2"), ["attention", "gradient", "occlusion"])
    assert set(scores) == {"attention", "gradient", "occlusion"}
    assert all(np.isfinite(value) for _, _, value in rows)


def test_the_risk_of_a_survival_task_is_explained():
    torch.manual_seed(0)
    task = Survival(bins=4)
    task = task.fit(np.array([[10.0, 1], [20, 1], [30, 1], [40, 1], [50, 0]]))
    model, bag = create_aggregator("mean", in_dim=6, task=task, embed_dim=None), bag_of(10)
    model.task = task.finished(np.array([[10.0, 1], [20, 1]]), np.zeros((2, 4))) if task.finishes else task
    question = question_of(model, bag)
    weights = model.classifier.weight.mean(0).detach()
    np.testing.assert_allclose(
        by_gradient(question).values, (bag.features @ weights).double().numpy() / 10, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("task", [Ordinal(4), Ordinal(4, loss="coral"), Ordinal(4, loss="ce"), Regression()], ids=repr)
def test_scores_of_a_number_speak_for_a_higher_one(task):
    """What is removed first lowers the expected class, and not the probability of the lowest one."""
    torch.manual_seed(1)
    question = question_of(create_aggregator("mean", in_dim=6, task=task, embed_dim=None), bag_of(40))
    for explainer in (by_gradient, by_integrated_gradients, by_occlusion):
        scores = explainer(question).values
        numbers = flip(question, scores)
        assert numbers["flip_most_0.5"] > 0 > numbers["flip_least_0.5"]
        held = question.bag.subset(torch.from_numpy(np.argsort(-scores, kind="stable")[20:].copy()).sort().values)
        ((_, left),) = question.outputs([held])
        assert float(question.prediction[-1] - left[-1]) == pytest.approx(numbers["flip_most_0.5"])
        random = flip(question, np.random.default_rng(0).random(40))
        assert abs(random["area"]) < numbers["area"]
