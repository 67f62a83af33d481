"""Every aggregator trains on every task, and learns of each bag what the task has to teach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo import BagBatch, create_aggregator
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.tasks import MultiLabel, Ordinal, Regression, Survival

SMALLER = {"camil": {"landmarks": 16}, "dgrmil": {"embed_dim": 64}, "transmil": {"embed_dim": 64}}
OUTCOMES = np.array([[5.0, 1], [9.0, 0], [2.0, 1], [30.0, 0], [12.0, 1]])
TASKS = {
    "regression": (Regression(), OUTCOMES[:, :1]),
    "ordinal": (Ordinal(3), np.array([[0.0], [2], [1], [1], [0]])),
    "ordinal_coral": (Ordinal(3, "coral"), np.array([[0.0], [2], [1], [1], [0]])),
    "multilabel": (MultiLabel(("a", "b")), np.array([[0, 1], [1, np.nan], [np.nan, 0], [1, 1], [0, 0]])),
    "survival": (Survival(bins=2), OUTCOMES),
    "survival_cox": (Survival("cox"), OUTCOMES),
    "survival_rank": (Survival("rank"), OUTCOMES),
}


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_every_aggregator_trains_on_every_task(name, task_name):
    task, targets = TASKS[task_name]
    task = task.fit(targets)
    torch.manual_seed(0)
    aggregator = create_aggregator(name, 8, task=task, **SMALLER.get(name, {}))
    bags = [
        replace(make_bag(n, 8, seed=n), label=None, target=target, slide_id=f"s{n}")
        for n, target in zip((30, 12, 5, 18, 9), targets, strict=True)
    ]
    batch = BagBatch.from_bags(bags, graph=type(aggregator).graph)
    aggregator.train()
    losses = aggregator.losses(batch)
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    for key, parameter in aggregator.named_parameters():
        assert parameter.grad is not None, f"no gradient for {key}"
        assert parameter.grad.isfinite().all(), key
    output = aggregator.eval()(batch)
    predictions = aggregator.predict(output.logits)
    assert predictions.shape == (5, len(task.prediction_columns))
    assert predictions[:, 0].isfinite().all()
    # a bag's prediction is its own: others beside it change nothing
    alone = aggregator(BagBatch.from_bags(bags[:1], graph=type(aggregator).graph))
    torch.testing.assert_close(aggregator.predict(alone.logits)[:, 0], predictions[:1, 0], atol=1e-5, rtol=1e-4)
