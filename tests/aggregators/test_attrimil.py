"""AttriMIL against values computed with its authors' code, and its queues against lists."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit

GOLDEN = Golden("attrimil")
OPTIONS = {"num_classes": 3}
QUEUES = torch.from_numpy(GOLDEN["queue_pos"]), torch.from_numpy(GOLDEN["queue_neg"])


def create():
    return GOLDEN.create("attrimil", **OPTIONS)


def test_the_graph_is_the_authors_table():
    graph, table = GOLDEN.batch("window:1").graph.csr, np.asarray(GOLDEN["nearest"])
    for i, row in enumerate(graph.indices.split(graph.indptr.diff().tolist())):
        assert row.tolist() == sorted(set(table[i].tolist()))


def check(output, start=0):
    rows = slice(start, start + len(GOLDEN["feat"]))
    assert_close(output.logits[start and 1 :][:1], GOLDEN["logits_eval"], "logits")
    assert_close(output.attention[rows], GOLDEN["attention_eval"].T, "attention")
    assert_close(output.attention_logits[rows], GOLDEN["attention_logits"].T, "attention logits")
    assert_close(output.instance_logits[rows], GOLDEN["attribute_score"].T, "attribute scores")


def test_outputs_need_no_graph():
    with torch.no_grad():
        check(create()(BagBatch.from_bags([GOLDEN.bag()])))


def test_inside_a_batch():
    others = [make_bag(n, 24, seed=n) for n in (11, 1)]
    with torch.no_grad():
        check(create()(BagBatch.from_bags([others[0], GOLDEN.bag(), others[1]])), start=11)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_losses_and_every_gradient_with_given_queues(mode):
    aggregator = getattr(create(), mode)()
    before = {key: value.clone() for key, value in aggregator.named_buffers()}
    losses = aggregator.losses(GOLDEN.batch("window:1"), queues=QUEUES)
    losses["loss"].backward()
    for name in ("bag", "spatial", "rank"):
        assert_close(losses[name].detach(), GOLDEN[f"loss_{name}"], name)
    assert_close(losses["loss"].detach(), GOLDEN["loss"], "loss")
    assert_gradients(aggregator, GOLDEN, "attrimil", **OPTIONS)
    assert all(value.equal(before[key]) for key, value in aggregator.named_buffers())


def test_the_ranking_of_each_label():
    batch = GOLDEN.batch("window:1")
    with torch.no_grad():
        ranks = [
            create().losses(replace(batch, labels=torch.tensor([label]), targets=torch.tensor([[label]])), QUEUES)[
                "rank"
            ]
            for label in range(3)
        ]
    assert_close(torch.stack(ranks), GOLDEN["loss_rank_by_label"], "rank by label")


def test_the_queues_after_a_step():
    aggregator = create().train()
    for kind, rows in zip(("positive", "negative"), QUEUES, strict=True):
        getattr(aggregator, f"{kind}_rows")[:, : rows.shape[1]] = rows
        getattr(aggregator, f"{kind}_count").fill_(rows.shape[1])
    losses = aggregator.losses(GOLDEN.batch("window:1"))
    assert_close(losses["rank"].detach(), GOLDEN["loss_rank"], "rank")
    for kind, key in (("positive", "pos"), ("negative", "neg")):
        for c in range(3):
            rows = getattr(aggregator, f"{kind}_rows")[c, : getattr(aggregator, f"{kind}_count")[c]]
            assert_close(rows, GOLDEN[f"queue_{key}_after/{c}"], f"{kind} queue")


def test_several_slides_of_a_step_are_taken_in_order():
    torch.manual_seed(0)
    aggregator = create_aggregator("attrimil", 6, 3, queue_size=2).train()
    labels = [0, 2, 2, 1, 0, 2, 2]
    bags = [make_bag(8 + i, 6, label, seed=i) for i, label in enumerate(labels)]
    with torch.no_grad():
        together = aggregator.losses(BagBatch.from_bags(bags, graph="window:1"))["rank"]
        alone, queues = [], {(kind, c): deque(maxlen=2) for kind in "PN" for c in range(3)}
        for bag in bags:
            scores = aggregator(BagBatch.from_bags([bag])).instance_logits
            rank = 0
            for c in range(3):
                own, other = ("P", "N") if bag.label == c else ("N", "P")
                queues[own, c].append(bag.features[scores[:, c].argmax()])
                if not queues[other, c]:
                    continue
                oldest = queues[other, c].popleft()
                queues[other, c].append(oldest)
                u = aggregator._scores(oldest[None]).attribute[0, c]
                v, sign = scores[:, c].max(), 1 if own == "P" else -1
                rank += (sign * (u - v)).relu() * (c > 0) + (-sign * v).relu()
                rank += u.relu() if own == "P" else (-u).relu() * (c == 0)
            alone.append(rank / 3)
    assert_close(together, sum(alone) / len(bags), "rank")
    assert_close(aggregator.negative_rows[1], torch.stack(list(queues["N", 1])), "queue")
    assert aggregator.positive_count.tolist() == [2, 1, 2]


def test_queues_are_emptied_when_an_epoch_begins():
    aggregator, counts = create_aggregator("attrimil", 6, queue_size=9), []
    aggregator.start_epoch = lambda: (
        counts.append(int(aggregator.positive_count.sum())),
        type(aggregator).start_epoch(aggregator),
    )
    bags = [make_bag(9, 6, i % 2, seed=i) for i in range(4)]
    fit(aggregator, bags, bags, TrainingConfig(epochs=3, select="last"), graph="window:1")
    assert counts == [0, 4, 4]
    assert aggregator.positive_count.tolist() == [2, 2]


def test_evaluation_needs_no_queues():
    aggregator, batch = create_aggregator("attrimil", 6).train(), make_batch([20, 9], 6, "window:1")
    assert aggregator.losses(batch)["rank"] > 0
    assert aggregator.eval().losses(batch)["rank"] == 0


def test_neighbours_by_hand():
    aggregator, batch = create_aggregator("attrimil", 6, rank_weight=0.0), make_batch([25, 14], 6, "window:1")
    u = aggregator(batch).instance_logits[:, 1]
    graph, away = batch.graph.csr, []
    for i, row in enumerate(graph.indices.split(graph.indptr.diff().tolist())):
        near = u[row.long()]
        away.append((u[i] - near[near.abs().argmax()]).tanh().abs())
    expected = (torch.stack(away[:25]).mean() + torch.stack(away[25:]).mean()) / 2
    assert_close(aggregator.losses(batch)["spatial"], expected, "spatial")


def test_a_score_that_is_not_finite_is_refused():
    aggregator, batch = create_aggregator("attrimil", 6), make_batch([9], 6, "window:1")
    torch.nn.init.constant_(aggregator.attentions[0].w.bias, 100.0)
    with pytest.raises(InputError, match="an attribute score of the slides slide_0 is not finite"):
        aggregator.losses(batch)


def test_options_and_queues_are_checked():
    with pytest.raises(InputError, match=r"queue_size \(0\) must be positive"):
        create_aggregator("attrimil", queue_size=0)
    batch = make_batch([9], 6, "window:1")
    with pytest.raises(InputError, match=r"a queue must be \[2, at most 4, 6\], not \[2, 5, 6\]"):
        create_aggregator("attrimil", 6).losses(batch, queues=(torch.zeros(2, 5, 6), torch.zeros(2, 4, 6)))
