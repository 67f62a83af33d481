"""Labels that are no class end in one sentence, in every aggregator, before they train anything."""

import re

import pytest
import torch
from helpers import make_bag

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.tasks.losses.classification import cross_entropy

SMALLER = {name: {"embed_dim": 64} for name in ("dgrmil", "transmil")}


@pytest.mark.parametrize(("num_classes", "label"), [(1, 2), (1, -1), (2, 2), (3, -1), (3, 3)])
@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_every_loss_refuses_a_label_that_is_no_class(name, num_classes, label):
    aggregator = create_aggregator(name, 8, num_classes, **SMALLER.get(name, {}))
    bags = [make_bag(9, 8, label=0, seed=1), make_bag(12, 8, label=label, seed=2)]
    with pytest.raises(InputError, match=re.escape(f"has the label {label}; classes count from 0, here 0 to ")):
        aggregator.losses(BagBatch.from_bags(bags, graph=type(aggregator).graph))


def test_a_label_between_classes_is_refused():
    with pytest.raises(InputError, match=r"bag 1 of the batch has the label 0\.5"):
        cross_entropy(torch.zeros(2, 1), torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.bfloat16, torch.float16, torch.float64])
def test_labels_may_be_of_any_number_type(dtype):
    logits, labels = torch.tensor([[0.5, -1.0], [2.0, 1.0]]), torch.tensor([0, 1])
    assert cross_entropy(logits, labels.to(dtype)).equal(cross_entropy(logits, labels))


def test_an_unknown_label_is_refused():
    with pytest.raises(InputError, match="bag 1 of the batch has the label nan"):
        cross_entropy(torch.zeros(2, 2), torch.tensor([1.0, torch.nan]))
