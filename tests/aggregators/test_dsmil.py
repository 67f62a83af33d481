"""DSMIL against values computed with its authors' code."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator

CASES = {"dsmil": {}, "dsmil_v": {"passing_v": True}, "dsmil_linear": {"nonlinear": False}}


@pytest.fixture(params=CASES)
def case(request):
    golden, options = Golden(request.param), CASES[request.param]
    return golden, golden.create("dsmil", **options), options


def check_output(output, golden, bag=0, start=0):
    rows = slice(start, start + len(golden["feat"]))
    assert_close(output.logits[bag : bag + 1], golden["logits_eval"], "logits")
    assert_close(output.embedding[bag].view(2, -1), golden["bag_embedding"], "embedding")
    assert_close(output.attention[rows], golden["attention_eval"].T, "attention")
    assert_close(output.instance_logits[rows], golden["instance_logits"], "instance logits")


def test_outputs(case):
    golden, aggregator, _ = case
    with torch.no_grad():
        check_output(aggregator(BagBatch.from_bags([golden.bag()])), golden)


def test_inside_a_batch(case):
    golden, aggregator, _ = case
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
    check_output(output, golden, bag=1, start=11)


def test_loss_and_every_gradient(case):
    golden, aggregator, options = case
    losses = aggregator.train().losses(BagBatch.from_bags([golden.bag()]))
    losses["loss"].backward()
    assert_close(losses["loss"].detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "dsmil", **options)
    one_hot = F.one_hot(torch.tensor(int(golden["label"])), 2).float()
    for term, logits in (("bag", golden["logits_eval"][0]), ("instance", golden["instance_logits"].max(0))):
        expected = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), one_hot)
        assert_close(losses[term].detach(), expected, term)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_losses_of_a_batch_are_the_mean_over_its_bags(num_classes):
    aggregator = create_aggregator("dsmil", in_dim=6, num_classes=num_classes, passing_v=True)
    bags = [make_bag(n, 6, label=n % max(num_classes, 2), seed=n) for n in (9, 20, 31)]
    alone = [aggregator.losses(BagBatch.from_bags([bag])) for bag in bags]
    together = aggregator.losses(BagBatch.from_bags(bags))
    for name, value in together.items():
        assert_close(value.detach(), sum(one[name] for one in alone).detach() / 3, name)


def test_weights_weigh_the_loss_of_a_slide():
    aggregator, batch = create_aggregator("dsmil", in_dim=6), make_batch([9, 20], 6, None, labels=[0, 1])
    first = aggregator.losses(make_batch([9], 6, None, labels=[0]))["loss"]
    batch.weights = torch.tensor([2.0, 0.0])
    assert_close(aggregator.losses(batch)["loss"].detach(), first.detach())


@pytest.mark.parametrize("passing_v", [False, True])
def test_dropout_can_be_switched_off_afterwards(passing_v):
    aggregator = create_aggregator("dsmil", in_dim=6, passing_v=passing_v, dropout=0.5).train()
    batch = make_batch([30], 6, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator.eval()(batch).logits)


def test_probabilities_are_the_sigmoids_that_the_loss_trains():
    logits = torch.tensor([[-1.5, 1.5], [0.4, -0.4]])
    sigmoid, softmax = (
        create_aggregator("dsmil", in_dim=6, probability=p).predict(logits) for p in ("sigmoid", "softmax")
    )
    assert_close(sigmoid, logits.sigmoid())
    assert_close(softmax, (2 * logits).sigmoid(), "what a softmax makes of x and -x")
    three = torch.randn(4, 3)
    expected = three.sigmoid() / three.sigmoid().sum(1, keepdim=True)
    assert_close(create_aggregator("dsmil", in_dim=6, num_classes=3).predict(three), expected)
    one = create_aggregator("dsmil", in_dim=6, num_classes=1).predict(torch.tensor([[0.3]]))
    assert_close(one[0, 1], torch.tensor(0.3).sigmoid())
    with pytest.raises(InputError, match="probability must be"):
        create_aggregator("dsmil", in_dim=6, probability="tanh")
