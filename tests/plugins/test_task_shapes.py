"""A task of a plugin that returns arrays of other shapes than it promises: one sentence, where it happens."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import mil_zoo
from mil_zoo.errors import InputError
from mil_zoo.tasks import Task


@dataclass(frozen=True)
class Odd(Task):
    """A number a bag, by a loss and a prediction of given shapes."""

    of_loss: tuple[int, ...] = (4,)
    of_prediction: tuple[int, ...] = (4, 1)

    name = "odd"
    target_columns = ("cells",)
    prediction_columns = ("cells <b>",)
    width = 1

    def loss(self, logits, targets, weights=None):
        return (logits.sum() - targets.sum()).expand(self.of_loss)

    def predict(self, logits):
        return logits.sum().expand(self.of_prediction)


def aggregator(**shapes):
    return mil_zoo.create_aggregator("mean", 3, task=Odd(**shapes), embed_dim=4)


@pytest.mark.parametrize("shape", [(), (1,), (12,), (4, 1)])
def test_losses(shape):
    bags = [mil_zoo.Bag(features=np.ones((2, 3)), target=[i], slide_id=str(i)) for i in range(4)]
    batch = mil_zoo.BagBatch.from_bags(bags)
    assert aggregator().losses(batch)["loss"].ndim == 0
    with pytest.raises(InputError, match=r"loss of the task odd must return one number a bag, \[4\], not \["):
        aggregator(of_loss=shape).losses(batch)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 1, 1)])
def test_predictions(shape):
    assert aggregator().predict(torch.zeros(4, 1)).shape == (4, 1)
    with pytest.raises(InputError, match=r"predict of the task odd must return .* cells <b>, \[4, 1\], not"):
        aggregator(of_prediction=shape).predict(torch.zeros(4, 1))
