"""The contract of a task, and classification as the first of them."""

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from mil_zoo import Bag, BagBatch, InputError
from mil_zoo.tasks import (
    TASKS,
    Classification,
    MultiLabel,
    Ordinal,
    Regression,
    Survival,
    Task,
    create_task,
    register_task,
    task_of_config,
    task_settings,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.25, -3.0]])


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))

    @register_task("counting")
    @dataclass(frozen=True)
    class Counting(Task):
        unit: str = "cells"
        target_columns: ClassVar = ("count",)

        width: ClassVar = 1
        prediction_columns: ClassVar = ("expected",)

        def loss(self, logits, targets, weights=None):
            return F.poisson_nll_loss(logits[:, 0], targets[:, 0].to(logits.dtype), reduction="none")

        def predict(self, logits):
            return logits.exp()

    return Counting


DAYS, MONTHS = (Survival("nll", time="time", event="event", unit=unit) for unit in ("days", "months"))


@pytest.mark.parametrize(
    ("trained", "tested", "reason"),
    [
        (Classification(2), Ordinal(2), ""),
        (MONTHS, Survival("cox", time="t", event="e", unit="months"), ""),
        (MONTHS, DAYS, "times are in months and in days"),
        (MONTHS, Regression(), "holds no survival times"),
        (Regression("years"), Regression("years"), ""),
        (Regression("years"), Regression(), "targets are in years and in no unit"),
        (Regression("years"), Classification(2), "it states label, not target"),
        (Regression("years"), DAYS, "it states time_days, event, not target"),
        (MultiLabel(["a", "b"]), MultiLabel(["b", "a"]), "it states label_b, label_a, not label_a, label_b"),
    ],
)
def test_who_can_be_tested_on_whom(trained, tested, reason):
    said = trained.refuses(tested)
    assert reason in said
    assert bool(said) == bool(reason)


def test_classification_is_what_it_was():
    task, labels = Classification(3), torch.tensor([[2], [0]])
    torch.testing.assert_close(task.loss(LOGITS, labels), F.cross_entropy(LOGITS, labels[:, 0], reduction="none"))
    torch.testing.assert_close(task.predict(LOGITS), LOGITS.double().softmax(1))
    weighed = task.loss(LOGITS, labels.float(), torch.tensor([1.0, 3.0]))
    assert weighed[1] == 3 * task.loss(LOGITS, labels)[1]
    assert (task.width, task.prediction_columns) == (3, ("prob_0", "prob_1", "prob_2"))
    assert task.criteria == ["accuracy", "balanced_accuracy", "auc", "f1", "loss"]
    assert task.higher_is_better("auc")
    assert not task.higher_is_better("loss")
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        task.higher_is_better("acuracy")


def test_one_logit_tells_two_classes():
    task, logits = Classification(1), torch.tensor([[0.3], [-2.0]])
    labels = torch.tensor([[1], [0]])
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0].float(), reduction="none")
    torch.testing.assert_close(task.loss(logits, labels), expected)
    torch.testing.assert_close(task.predict(logits)[:, 1], logits[:, 0].double().sigmoid())
    assert (task.width, task.prediction_columns) == (1, ("prob_0", "prob_1"))


def test_half_precision_logits_are_scored_in_float32():
    assert Classification(3).loss(LOGITS.bfloat16(), torch.tensor([[2], [0]])).dtype == torch.float32
    assert Classification(3).predict(LOGITS.bfloat16()).dtype == torch.float64


def test_class_weights_are_inverse_frequencies_with_mean_one():
    weights = Classification(2).balanced_weights(np.array([[0], [0], [0], [1]]))
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert weights.mean() == pytest.approx(1)


def test_labels_are_read_by_number_and_by_name():
    table = pd.DataFrame({"slide_id": ["a", "b"], "label": ["tumor", "0"]})
    assert create_task(classes=["normal", "tumor"]).targets(table).tolist() == [[1], [0]]
    with pytest.raises(InputError, match="slide 'a' has label 'tumor', not 0, 1"):
        create_task(settings={"num_classes": 2}).targets(table)
    with pytest.raises(InputError, match="slide 'b' has label 2, the classes are 0 to 1"):
        create_task(classes=["x", "y"]).check(np.array([[0.0], [2.0]]), ["a", "b"], "here")


def test_predictions_go_to_a_table_and_back():
    task = Classification(2, ("normal", "tumor"))
    targets, predictions = np.array([[1.0], [0.0]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    table = pd.DataFrame(task.target_cells(targets) | task.prediction_cells(predictions))
    assert table.to_dict("list") == {"label": [1, 0], "prob_0": [0.25, 0.9], "prob_1": [0.75, 0.1]}
    again = task.read(table)
    assert (again[0] == targets).all()
    assert (again[1] == predictions).all()
    assert task.score(*again) == {"accuracy": 1, "balanced_accuracy": 1, "auc": 1, "f1": 1}
    assert task.describe(predictions[0]) == "tumor"
    assert task.shown_output(predictions[1]) == 0


def test_a_run_names_its_task_unless_it_is_classification(counting):
    assert task_settings(Classification(2)) == {}
    assert task_of_config({"dataset": {"classes": ["x", "y"]}}) == Classification(2, ("x", "y"))
    settings = task_settings(counting(unit="nuclei"))
    assert settings == {"task": {"name": "counting", "unit": "nuclei"}}
    assert task_of_config(settings) == counting(unit="nuclei")
    with pytest.raises(InputError, match="task counting: unknown key 'unti'; did you mean 'unit'"):
        create_task("counting", {"unti": "x"})
    with pytest.raises(InputError, match="unknown task 'countin'; did you mean 'counting'"):
        create_task("countin")


def test_a_task_of_its_own_needs_a_loss_and_predictions_only(counting):
    task = counting()
    table = pd.DataFrame({"slide_id": ["a", "b"], "count": ["3", "0"]})
    targets = task.targets(table)
    assert targets.tolist() == [[3], [0]]
    assert task.strata(targets).tolist() == [0, 0]
    assert task.criteria == ["loss"]
    assert task.metrics == []
    assert task.select == "loss"
    logits = torch.tensor([[1.0], [0.0]])
    assert task.evaluation_loss(logits, targets) == pytest.approx((np.e - 3 + 1) / 2)
    assert task.prediction_cells(task.predict(logits).numpy()) == {"expected": [2.7182817459106445, 1.0]}
    with pytest.raises(InputError, match="slide 'b' has count 'many', which is no number"):
        task.targets(table.assign(count=["3", "many"]))
    with pytest.raises(InputError, match="the column 'count' of the task counting is missing"):
        task.targets(table.drop(columns="count"))


def test_the_name_of_a_task_is_taken_once():
    with pytest.raises(InputError, match="'classification' is already registered"):
        register_task("classification")(type("Mine", (Task,), {}))


def test_bags_hold_a_target_beside_the_label():
    x = torch.ones(2, 3)
    bags = [Bag(features=x, target=(3.0, 1.0)), Bag(features=x, target=np.array([5, 0]), label=1)]
    batch = BagBatch.from_bags(bags)
    assert batch.targets.tolist() == [[3, 1], [5, 0]]
    assert batch.labels is None
    labelled = BagBatch.from_bags([Bag(features=x, label=1), Bag(features=x, label=0)]).to("cpu")
    assert labelled.targets.tolist() == [[1], [0]]
    assert labelled.targets.dtype == torch.int64
    assert BagBatch.from_bags([bags[0], Bag(features=x)]).targets is None
    with pytest.raises(InputError, match="hold 1 and 2 numbers"):
        BagBatch.from_bags([bags[0], Bag(features=x, target=1.0)])


def test_tasks_and_metrics_load_no_torch():
    code = "import sys, mil_zoo.tasks, mil_zoo.metrics; mil_zoo.tasks.TASKS.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("one_logit", [True, False])
def test_saturated_probabilities_still_rank(one_logit):
    """Logit differences of 15 to 60: in float32, or in eight digits, most of these probabilities are 1."""
    gaps = torch.linspace(15, 60, 40)
    logits = gaps[:, None] if one_logit else torch.stack([-gaps / 2, gaps / 2], 1)
    labels = np.arange(40) >= 20
    task = Classification(1 if one_logit else 2)
    predictions = task.predict(logits).numpy()
    assert task.score(labels[:, None], predictions)["auc"] == 1
    table = pd.DataFrame(task.target_cells(labels[:, None]) | task.prediction_cells(predictions))
    targets, again = task.read(table)
    assert (again == predictions).all()
    assert task.score(targets, again) == task.score(labels[:, None], predictions)


def test_saturated_probabilities_of_three_classes_rank():
    gaps, labels = np.linspace(15, 60, 41), np.arange(41) % 3
    logits = np.where(labels[:, None] == np.arange(3), gaps[:, None], 0) + np.array([0, 0, 1.0])
    logits[:, 0] += 20  # biased, but in order
    auc = Classification(3).score(labels[:, None], Classification(3).predict(torch.tensor(logits)).numpy())["auc"]
    odds = (
        logits
        - np.log([[sum(np.exp(row[k] - row.max()) for k in range(3) if k != c) for c in range(3)] for row in logits])
        - logits.max(1, keepdims=True)
    )
    areas = [np.mean(odds[labels == c, c][:, None] > odds[labels != c, c]) for c in range(3)]
    assert auc == pytest.approx(np.mean(areas))
    assert auc > 0.5


def test_the_loss_of_a_part_is_not_clipped():
    logits, targets = torch.tensor([[60.0, 0.0], [0.0, 60.0]]), np.array([[0.0], [0.0]])
    assert Classification(2).evaluation_loss(logits, targets) == pytest.approx(30)
