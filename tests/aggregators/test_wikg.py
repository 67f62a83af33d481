"""WiKG against values computed with its authors' code, and its sliced search against all pairs."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators import wikg

GOLDEN = Golden("wikg")
OPTIONS = {"embed_dim": 32, "topk": 6, "dropout": 0.0}


@pytest.fixture(params=[wikg.AT_ONCE, 700], ids=["one slice", "many slices"])
def sliced(request, monkeypatch):
    """700 numbers at once: 18 heads in the search of the golden bag, 3 rows in its messages."""
    monkeypatch.setattr(wikg, "AT_ONCE", request.param)


@pytest.mark.usefixtures("sliced")
def test_logits_alone_and_inside_a_batch():
    aggregator = GOLDEN.create("wikg", **OPTIONS)
    others = [make_bag(n, 24, seed=n) for n in (11, 40)]
    with torch.no_grad():
        alone = aggregator(BagBatch.from_bags([GOLDEN.bag()]))
        inside = aggregator(BagBatch.from_bags([others[0], GOLDEN.bag(), others[1]]))
    assert_close(alone.logits, GOLDEN["logits_eval"], "logits")
    assert_close(inside.logits[1:2], GOLDEN["logits_eval"], "logits in a batch")
    assert_close(inside.attention[11 : 11 + 37], alone.attention, "attention in a batch")


@pytest.mark.usefixtures("sliced")
def test_loss_and_every_gradient():
    aggregator = GOLDEN.create("wikg", **OPTIONS).train()
    loss = aggregator.losses(BagBatch.from_bags([GOLDEN.bag()]))["loss"]
    loss.backward()
    assert_close(loss.detach(), GOLDEN["loss"], "loss")
    assert_gradients(aggregator, GOLDEN, "wikg", **OPTIONS)


def all_pairs(aggregator, features):
    """The slide embedding of one bag by the formulas of the class, with every pair of instances at hand."""
    x = aggregator.embed(features)
    x = (x + x.mean(0)) / 2
    head, tail = aggregator.W_head(x), aggregator.W_tail(x)
    top, index = (head @ tail.T / head.shape[1] ** 0.5).topk(min(aggregator.topk, len(x)), dim=1)
    p, tails = top.softmax(1)[:, :, None], tail[index]
    edges = p * tails + (1 - p) * head[:, None]
    weights = (tails.sum(2) * torch.tanh(head[:, None] + edges).sum(2)).softmax(1)
    message = (weights[:, :, None] * tails).sum(1)
    g = F.leaky_relu(aggregator.linear1(head + message)) + F.leaky_relu(aggregator.linear2(head * message))
    attention = aggregator.readout(g).softmax(0)
    return aggregator.norm((attention * g).sum(0)), attention[:, 0]


@pytest.mark.usefixtures("sliced")
def test_small_bags_have_the_neighbours_there_are():
    torch.manual_seed(0)
    aggregator = create_aggregator("wikg", in_dim=10, embed_dim=16, dropout=0.0).train()
    batch = make_batch([3, 25, 1, 6], 10, None)
    output = aggregator(batch)
    for i, features in enumerate(batch.features.split([3, 25, 1, 6])):
        embedding, attention = all_pairs(aggregator, features)
        assert_close(output.embedding[i], embedding, "embedding")
        assert_close(output.attention.split([3, 25, 1, 6])[i], attention, "attention")
    output.logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in aggregator.parameters())


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t))])
        return out


def test_a_training_step_holds_no_matrix_of_all_pairs():
    aggregator, batch = create_aggregator("wikg", in_dim=4, embed_dim=8).train(), make_batch([3000], 4, None)
    with LargestTensor() as largest:
        aggregator.losses(batch)["loss"].backward()
    assert 3000 * 1000 < largest.numel <= wikg.AT_ONCE < 3000**2


def test_dropout_can_be_switched_off_afterwards():
    aggregator, batch = create_aggregator("wikg", in_dim=8, embed_dim=16).train(), make_batch([60], 8, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    aggregator.message_dropout.p = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator(batch).logits)


def test_options_are_checked():
    with pytest.raises(InputError, match="topk must be positive"):
        create_aggregator("wikg", in_dim=8, topk=0)
