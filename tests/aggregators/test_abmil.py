"""ABMIL against values computed with its authors' code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag

from mil_zoo import BagBatch, InputError, create_aggregator

CASES = {
    "abmil": {"gated": False, "embed_dim": None, "attention_dim": 32},
    "abmil_gated": {"gated": True, "embed_dim": None, "attention_dim": 32},
}

GOLDEN = {"in_dim": 24, "num_classes": 1, "embed_dim": None}


@pytest.fixture(params=CASES)
def case(request):
    golden, options = Golden(request.param), CASES[request.param] | {"num_classes": 1}
    return golden, golden.create("abmil", **options), options


def test_logits_and_attention(case):
    golden, aggregator, _ = case
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([golden.bag()]))
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.attention, golden["attention_eval"][0], "attention")


def test_inside_a_batch(case):
    golden, aggregator, _ = case
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
    assert_close(output.logits[1:2], golden["logits_eval"], "logits")
    assert_close(output.attention[11 : 11 + len(golden["feat"])], golden["attention_eval"][0], "attention")


def test_loss_and_every_gradient(case):
    golden, aggregator, options = case
    bag = golden.bag()
    bag.label = int(golden["label_binary"][0, 0])
    loss = aggregator.train().losses(BagBatch.from_bags([bag]))["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "abmil", **options)


def test_the_feature_layer_comes_before_the_attention():
    torch.manual_seed(0)
    aggregator, bag = create_aggregator("abmil", in_dim=6, embed_dim=5, attention_dim=4), make_bag(9, 6)
    h = F.relu(bag.features @ aggregator.embed[0].weight.T + aggregator.embed[0].bias)
    weights = torch.softmax(aggregator.attention(h)[:, 0], dim=0)
    output = aggregator(BagBatch.from_bags([bag]))
    assert_close(output.embedding[0].detach(), (weights @ h).detach())
    assert_close(output.attention.detach(), weights.detach())


def test_published_weights_of_other_options_are_refused():
    golden = Golden("abmil_gated")
    with pytest.raises(InputError, match="no place for 'attention_U"):
        create_aggregator("abmil", **GOLDEN, attention_dim=32).load_published_state_dict(golden.parameters)
    gated = create_aggregator("abmil", **GOLDEN, attention_dim=16, gated=True)
    with pytest.raises(InputError, match=r"shape \[32, 24\], here \[16, 24\]"):
        gated.load_published_state_dict(golden.parameters)
    with pytest.raises(InputError, match=r"lack attention\.U\.bias"):
        gated.load_published_state_dict({"classifier.0.bias": np.zeros(1, np.float32)})
