"""CLAM against values computed with its authors' code, and against a slide-by-slide instance loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.blocks import segments
from mil_zoo.aggregators.blocks.segments import segment_topk

OPTIONS = {"embed_dim": 32, "attention_dim": 16, "k_sample": 4, "bag_weight": 0.7, "dropout": 0.0}
CASES = {
    "clam_sb": ("clam_sb", OPTIONS),
    "clam_mb": ("clam_mb", OPTIONS),
    "clam_mb_subtyping": ("clam_mb", OPTIONS | {"subtyping": True}),
}


@pytest.fixture(params=CASES)
def case(request):
    golden, (name, options) = Golden(request.param), CASES[request.param]
    return golden, golden.create(name, **options), name, options


def check_output(output, golden, bag=0, start=0):
    rows = slice(start, start + len(golden["feat"]))
    assert_close(output.logits[bag : bag + 1], golden["logits_eval"], "logits")
    attention = output.attention[rows]
    assert_close(attention.view(len(attention), -1), golden["attention_eval"].T, "attention")


def test_logits_and_attention(case):
    golden, aggregator, _, _ = case
    with torch.no_grad():
        check_output(aggregator(BagBatch.from_bags([golden.bag()])), golden)


def test_inside_a_batch(case):
    golden, aggregator, _, _ = case
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
    check_output(output, golden, bag=1, start=11)


def test_every_loss_term_and_every_gradient(case):
    golden, aggregator, name, options = case
    losses = aggregator.train().losses(BagBatch.from_bags([golden.bag()]))
    losses["loss"].backward()
    assert_close(losses["loss"].detach(), golden["loss"], "loss")
    assert_close(losses["instance"].detach(), golden["instance_loss"], "instance loss")
    expected = F.cross_entropy(torch.from_numpy(golden["logits_eval"]), torch.tensor([int(golden["label"])]))
    assert_close(losses["bag"].detach(), expected, "bag loss")
    # Without subtyping the authors leave the instance classifier of the other class without a gradient: here it is 0.
    missing = {key: np.zeros_like(value) for key, value in golden.parameters.items() if key not in golden.gradients}
    assert len(missing) == (0 if options.get("subtyping") else 2)
    golden.gradients |= missing
    assert_gradients(aggregator, golden, name, **options)


def slow_instance_loss(aggregator, bag):
    """One slide, one class at a time, as the paper words it."""
    h = aggregator.embed(bag.features)
    scores = aggregator.attention(h)
    k, total = min(aggregator.k_sample, len(bag)), 0.0
    for c, head in enumerate(aggregator.instance_classifiers):
        branch = scores[:, c if scores.shape[1] > 1 else 0]
        top, bottom = head(h[branch.topk(k).indices]), head(h[(-branch).topk(k).indices])
        ones, zeros = torch.ones(k, dtype=torch.int64), torch.zeros(k, dtype=torch.int64)
        if bag.label == (c if aggregator.num_classes > 1 else 1):
            total = total + F.cross_entropy(torch.cat([top, bottom]), torch.cat([ones, zeros]))
        elif aggregator.subtyping:
            total = total + F.cross_entropy(top, zeros)
    return total / aggregator.num_classes if aggregator.subtyping else total


@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_the_instance_loss_of_a_batch_is_the_mean_over_its_bags(name, num_classes, subtyping):
    torch.manual_seed(0)
    options = OPTIONS | {"k_sample": 8, "subtyping": subtyping}
    aggregator = create_aggregator(name, in_dim=6, num_classes=num_classes, **options)
    # Fewer instances than k, fewer than 2 k (top and bottom overlap), and more.
    labels = [0, 1, max(num_classes - 1, 1)]
    bags = [make_bag(n, 6, label=label, seed=n) for n, label in zip((3, 11, 40), labels, strict=True)]
    expected = sum(slow_instance_loss(aggregator, bag) for bag in bags) / 3
    got = aggregator.losses(BagBatch.from_bags(bags))["instance"]
    assert_close(got.detach(), expected.detach())
    parameters = list(aggregator.parameters())
    for mine, slow in zip(
        torch.autograd.grad(got, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        # What the slow loss does not touch has no gradient there and may have a zero one here.
        assert (mine is None and slow is None) or (mine - (0 if slow is None else slow)).abs().max() < 1e-6


def test_a_few_highest_of_many_are_those_of_a_sort():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 40, (500, 3), generator=generator).float()  # many are equal
    scores[7, 2] = scores[300, 2] = torch.nan
    for count in (1, 8, 60, 400):
        rows = segment_topk(scores, torch.tensor([0, 500]), torch.tensor([count]), count)
        assert torch.equal(rows, scores.argsort(dim=0, descending=True, stable=True)[:count])


def test_segment_topk_of_large_bags_is_that_of_all_sorted(monkeypatch):
    scores = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # some are equal
    offsets, k = torch.tensor([0, 40, 45, 90]), torch.tensor([4, 5, 0])
    every = segment_topk(scores, offsets, k)
    monkeypatch.setattr(segments, "LARGE", 30)
    monkeypatch.setattr(torch, "repeat_interleave", None)  # nothing is sorted together
    assert segment_topk(scores, offsets, k).equal(every)


def test_segment_topk_sorts_each_bag_and_column_apart():
    scores = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 0.0], [9.0, 7.0], [0.0, 8.0], [4.0, 1.0]])
    rows = segment_topk(scores, torch.tensor([0, 3, 4, 6]), torch.tensor([2, 1, 0]))
    assert rows.tolist() == [[1, 0], [2, 1], [3, 3]]


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_dropout_can_be_switched_off_afterwards(name):
    aggregator = create_aggregator(name, in_dim=6, embed_dim=16, attention_dim=8, dropout=0.5).train()
    batch = make_batch([30], 6, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator.eval()(batch).logits)


def test_options_are_checked():
    for options in ({"k_sample": 0}, {"bag_weight": 1.5}):
        with pytest.raises(InputError, match="k_sample must be at least 1 and bag_weight lie between 0 and 1"):
            create_aggregator("clam_sb", in_dim=6, **options)
