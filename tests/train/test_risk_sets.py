"""Steps of a loss about pairs of patients: two passes equal one batch, memory is the loss with constants beside it."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.tasks import Regression, Survival, create_task
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.risk_sets import Memory, backward_in_two_passes, check_risk_sets, spread_events

OUTCOMES = [[5.0, 1], [9.0, 0], [2.0, 1], [30.0, 0], [12.0, 1], [5.0, 1]]


def bags_with(outcomes):
    return [
        replace(make_bag(8 + i, 8, seed=i), label=None, target=target, slide_id=f"s{i}")
        for i, target in enumerate(outcomes)
    ]


@pytest.mark.parametrize("loss", ["cox", "rank"])
@pytest.mark.parametrize("name", ["acmil", "clam_sb", "dtfd"])
def test_two_passes_give_the_gradient_of_one_batch_with_dropout_on(name, loss):
    torch.manual_seed(0)
    aggregator = create_aggregator(name, 8, task=Survival(loss)).double().train()
    batches = [BagBatch.from_bags([bag.with_features(bag.features.double())]) for bag in bags_with(OUTCOMES)]
    torch.manual_seed(1)
    backward_in_two_passes(aggregator, batches, nullcontext)
    found = {key: parameter.grad.clone() for key, parameter in aggregator.named_parameters()}

    # the same bags one by one, with the same random numbers, and all their graphs kept
    calls, others, task = [], [], aggregator.task
    torch.manual_seed(1)
    for batch in batches:
        rows = []
        aggregator.bag_loss = lambda z, y, w=None, to=rows: (to.append((z, y)), z.sum() * 0)[1]
        others.append(aggregator.losses(batch)["loss"])
        calls.append(rows)
        del aggregator.bag_loss
    total = torch.stack(others).mean()
    for same in zip(*calls, strict=True):
        total = total + task.loss(torch.cat([z for z, _ in same]), torch.cat([y for _, y in same])).mean()
    aggregator.zero_grad()
    total.backward()
    for key, parameter in aggregator.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-9, atol=1e-12, msg=key)


def test_memory_adds_the_last_patients_as_constants_and_is_emptied():
    torch.manual_seed(0)
    task = Survival("cox")
    aggregator, memory = create_aggregator("mean", 8, task=task).eval(), Memory(2)
    bags = bags_with(OUTCOMES)
    logits = aggregator(BagBatch.from_bags(bags)).logits
    for i in range(4):
        loss = memory.losses(aggregator, BagBatch.from_bags(bags[i : i + 1]))["loss"]
        own = slice(max(0, i - 2), i + 1)
        expected = task.loss(logits[own], torch.tensor(OUTCOMES)[own]).mean()
        torch.testing.assert_close(loss, expected)
    assert aggregator.task is task
    memory.clear()
    assert len(memory.targets()) == 0


def test_one_patient_a_step_is_refused_with_the_ways_out():
    with pytest.raises(InputError, match=r"survival_cox compares patients.*bags_per_step.*two_pass.*memory:64"):
        check_risk_sets(create_task("survival_cox"), 1, "batch")
    check_risk_sets(Survival("cox"), 1, "memory:8")
    check_risk_sets(Survival("nll"), 1, "batch")
    with pytest.raises(InputError, match="compares no patients; leave risk_set=two_pass out"):
        check_risk_sets(Regression(), 4, "two_pass")
    with pytest.raises(InputError, match="must be batch, two_pass or memory:M"):
        check_risk_sets(Survival("cox"), 4, "memory")


def test_every_step_holds_its_share_of_events():
    rng = np.random.default_rng(0)
    event = np.arange(50) < 12
    order = spread_events(rng.permutation(50), event, 8)
    assert sorted(order.tolist()) == list(range(50))
    assert min(event[order[start : start + 8]].sum() for start in range(0, 48, 8)) >= 1


@pytest.mark.parametrize("risk_set", ["batch", "two_pass", "memory:4"])
def test_training_runs_and_a_batch_of_censored_patients_takes_no_step(risk_set):
    torch.manual_seed(0)
    bags = bags_with(OUTCOMES)
    aggregator = create_aggregator("mean", 8, task=Survival("cox").fit(np.array(OUTCOMES)))
    config = TrainingConfig(epochs=2, bags_per_step=3, risk_set=risk_set, select="partial_likelihood", tie="c_index")
    rows = fit(aggregator, bags, bags, config)
    assert np.isfinite([row["loss"] for row in rows]).all()
    censored = bags_with([[5.0, 0], [9.0, 0], [12.0, 0]])
    before = [parameter.clone() for parameter in aggregator.parameters()]
    with pytest.warns(UserWarning, match="undefined in every epoch; the last one is kept"):
        fit(aggregator, censored, censored, config)
    assert all(torch.equal(a, b) for a, b in zip(before, aggregator.parameters(), strict=True))
