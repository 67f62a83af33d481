"""Aggregators under a task without classes: each trains on the task's loss, or says which term needs classes."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from helpers import make_bag

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.tasks import Classification, Task

LEFT_OUT = {
    "attrimil": "ranking of slides",
    "clam_mb": "instance loss",
    "clam_sb": "instance loss",
    "dgrmil": "triplet loss",
}
SMALLER = {"camil": {"landmarks": 16}, "dgrmil": {"embed_dim": 64}, "transmil": {"embed_dim": 64}}


@dataclass(frozen=True)
class Amounts(Task):
    """Two amounts, by their squared errors; it counts how often an aggregator asks for its loss."""

    name: ClassVar[str] = "amounts"
    target_columns: ClassVar[tuple[str, ...]] = ("first", "second")
    calls: ClassVar[list[int]] = []

    @property
    def width(self):
        return 2

    @property
    def prediction_columns(self):
        return "first", "second"

    def loss(self, logits, targets, weights=None):
        self.calls.append(len(logits))
        errors = (logits - targets).square().sum(1)
        return errors if weights is None else errors * weights

    def predict(self, logits):
        return logits


def batch_for(aggregator):
    bags = [replace(make_bag(n, 8, seed=n), label=None, target=torch.tensor([n, -1.0])) for n in (30, 12, 5)]
    return BagBatch.from_bags(bags, graph=type(aggregator).graph)


def options_of(name):
    return SMALLER.get(name, {})


@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_every_aggregator_trains_on_the_task_s_loss(name):
    torch.manual_seed(0)
    aggregator = create_aggregator(name, 8, task=Amounts(), **options_of(name)).train()
    Amounts.calls.clear()
    losses = aggregator.losses(batch_for(aggregator))
    assert Amounts.calls, "the loss is not the task's"
    losses["loss"].backward()
    unused = [key for key, parameter in aggregator.named_parameters() if parameter.grad is None]
    assert not unused, f"no gradient for {', '.join(unused)}"
    assert aggregator.eval()(batch_for(aggregator)).logits.shape == (3, 2)
    with pytest.raises(InputError, match="training needs a first for every bag"):
        aggregator.losses(BagBatch.from_bags([make_bag(9, 8, label=None)], graph=type(aggregator).graph))


@pytest.mark.parametrize(
    ("name", "further"), [("acmil", 3 * 5), ("dsmil", 3), ("dtfd", 4), ("srmil", 3)], ids=lambda value: str(value)
)
def test_what_a_paper_trains_besides_the_bag_is_the_task_s_too(name, further):
    aggregator = create_aggregator(name, 8, task=Amounts())
    Amounts.calls.clear()
    aggregator.losses(batch_for(aggregator))
    assert 3 in Amounts.calls
    assert further in Amounts.calls
    assert len(Amounts.calls) >= 2


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_term_that_needs_classes_is_left_out_and_said(name):
    aggregator = create_aggregator(name, 8, task=Amounts())
    assert aggregator.left_out == LEFT_OUT[name]
    terms = set(aggregator.losses(batch_for(aggregator)))
    assert not terms & {"instance", "triplet"}
    assert create_aggregator(name, 8).left_out == ""


def test_the_instance_loss_of_abmil_needs_classes():
    with pytest.raises(InputError, match="abmil: its instance loss needs classes"):
        create_aggregator("abmil", 8, task=Amounts(), instance_weight=0.5)


def test_a_task_of_another_width_is_refused():
    with pytest.raises(InputError, match="has 2 outputs, the aggregator 3"):
        create_aggregator("mean", 8, 3).set_task(Amounts())


def test_num_classes_is_short_for_classification():
    assert create_aggregator("mean", 8, 3).task == Classification(3)
    assert create_aggregator("mean", 8, task=Classification(1)).classifier.out_features == 1
