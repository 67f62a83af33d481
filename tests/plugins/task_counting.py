"""A task of its own: how many cells a slide holds, by a Poisson loss."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import mil_zoo
from mil_zoo.tasks import Task


@mil_zoo.register_task("counting")
@dataclass(frozen=True)
class Counting(Task):
    """The expected number of cells of a slide, the exponential of its logit."""

    unit: str = "cells"

    target_columns: ClassVar = ("count",)
    select: ClassVar = "count_error"
    width: ClassVar = 1
    prediction_columns: ClassVar = ("expected",)

    def loss(self, logits, targets, weights=None):
        from torch.nn.functional import poisson_nll_loss

        loss = poisson_nll_loss(logits[:, 0], targets[:, 0].to(logits.dtype), reduction="none")
        return loss if weights is None else loss * weights

    def predict(self, logits):
        return logits.exp()

    def strata(self, targets):
        return np.digitize(targets[:, 0], np.median(targets[:, 0], keepdims=True))


@mil_zoo.register_metric("count_error", title="Mean error", higher_is_better=False, task="counting")
def count_error(targets, expected, weights=None):
    return float(np.average(np.abs(targets - expected), weights=weights))
