"""DTFD-MIL against values computed with its authors' code, and how it deals instances into pseudo-bags."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.dtfd import DTFD
from mil_zoo.testing import check_aggregator

DISTILL = ("maxmins", "maxs", "afs")


@pytest.fixture(params=DISTILL)
def case(request):
    golden = Golden(f"dtfd_{request.param}")
    options = {"embed_dim": 32, "attention_dim": 16, "num_groups": 3, "instances_per_group": 2}
    groups = torch.empty(37, dtype=torch.int64)
    groups[torch.from_numpy(golden["group_order"])] = torch.from_numpy(golden["group"])
    return golden, options | {"distill": request.param}, groups


def test_logits_of_both_tiers_alone_and_inside_a_batch(case):
    golden, options, groups = case
    aggregator = golden.create("dtfd", **options)
    others = [make_bag(n, 24, seed=n) for n in (11, 40)]
    batch = BagBatch.from_bags([others[0], golden.bag(), others[1]])
    # Numbered otherwise: only who shares a pseudo-bag counts.
    everyone = torch.cat([torch.arange(11) % 5, 7 - 3 * groups, torch.arange(40) % 2])
    with torch.no_grad():
        alone = aggregator(BagBatch.from_bags([golden.bag()]), groups)
        tier1 = aggregator.first_tier(BagBatch.from_bags([golden.bag()]), groups)
        inside = aggregator(batch, everyone)
    assert_close(alone.logits, golden["logits_eval"], "logits")
    assert_close(tier1.logits, golden["tier1_logits"], "logits of tier 1")
    assert_close(inside.logits[1:2], golden["logits_eval"], "logits in a batch")
    assert_close(inside.attention[11 : 11 + 37], alone.attention, "attention in a batch")
    assert_close(inside.instance_logits[11 : 11 + 37], alone.instance_logits, "instance logits in a batch")


def test_every_loss_term_and_every_gradient(case):
    golden, options, groups = case
    aggregator = golden.create("dtfd", **options).train()
    losses = aggregator.losses(BagBatch.from_bags([golden.bag()]), groups)
    losses["loss"].backward()
    for ours, theirs in {"loss": "loss", "tier1": "loss_tier1", "tier2": "loss_tier2"}.items():
        assert_close(losses[ours].detach(), golden[theirs], ours)
    assert_gradients(aggregator, golden, "dtfd", **options)


def test_attention_is_the_weight_of_each_instance_in_the_embedding(case):
    golden, options, groups = case
    aggregator, bag = golden.create("dtfd", **options), golden.bag()
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([bag]), groups)
        h = torch.relu(aggregator.embed(bag.features))
    assert_close(output.attention @ h, output.embedding[0], "embedding")
    entering = int((output.attention > 0).sum())
    assert entering == {"maxmins": 12, "maxs": 6, "afs": 37}[options["distill"]]


def test_instance_logits_add_up_to_those_of_the_pseudo_bag(case):
    golden, options, groups = case
    aggregator = golden.create("dtfd", **options)
    with torch.no_grad():
        instance_logits = aggregator(BagBatch.from_bags([golden.bag()]), groups).instance_logits
    added = torch.zeros(3, 2).index_add(0, groups, instance_logits) + aggregator.tier1_classifier.bias
    assert_close(added.detach(), golden["tier1_logits"], "logits of tier 1")


@pytest.mark.parametrize("num_classes", [1, 4])
def test_distilled_instances_are_those_the_last_class_ranks_first_and_last(num_classes):
    torch.manual_seed(0)
    options = {"embed_dim": 16, "num_groups": 2, "instances_per_group": 3, "num_classes": num_classes}
    aggregator = create_aggregator("dtfd", in_dim=8, distill="maxmins", **options).eval()
    batch = make_batch([30, 21], 8, None)
    groups = torch.arange(51) % 2
    output = aggregator(batch, groups)
    score = output.instance_logits.softmax(1)[:, -1] if num_classes > 1 else output.instance_logits[:, 0]
    for bag in range(2):
        for group in range(2):
            rows = ((batch.bag_index == bag) & (groups == group)).nonzero()[:, 0]
            ranked = rows[score[rows].argsort()]
            taken = set(rows[output.attention[rows] > 0].tolist())
            assert taken == {*ranked[:3].tolist(), *ranked[-3:].tolist()}


def test_the_second_tier_does_not_train_the_first():
    aggregator = create_aggregator("dtfd", in_dim=8).train()
    aggregator.losses(make_batch([20, 30], 8, None))["tier2"].backward()
    trained = {name.split(".")[0] for name, p in aggregator.named_parameters() if p.grad is not None}
    assert trained == {"tier2_attention", "tier2_classifier"}


def test_losses_of_a_batch_are_the_mean_over_its_bags():
    aggregator = create_aggregator("dtfd", in_dim=8, num_groups=5).eval()
    bags = [make_bag(n, 8, label=n % 2, seed=n) for n in (20, 3, 33)]  # the second has 3 pseudo-bags only
    alone = [aggregator.losses(BagBatch.from_bags([bag])) for bag in bags]
    for name, value in aggregator.losses(BagBatch.from_bags(bags)).items():
        assert_close(value.detach(), sum(losses[name] for losses in alone).detach() / 3, name)


def test_pseudo_bags_are_random_in_training_and_fixed_in_evaluation():
    aggregator, batch = create_aggregator("dtfd", in_dim=8, num_groups=4), make_batch([3, 1, 33, 10], 8, None)
    fixed, sizes = aggregator.eval()._draw_groups(batch)
    assert fixed.tolist() == [i % 4 for n in (3, 1, 33, 10) for i in range(n)]
    assert sizes == [[1, 1, 1], [1], [9, 8, 8, 8], [3, 3, 2, 2]]
    drawn = [aggregator.train()._draw_groups(batch)[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    for one, expected in zip(drawn[0].split([3, 1, 33, 10]), fixed.split([3, 1, 33, 10]), strict=True):
        assert one.bincount(minlength=4).tolist() == expected.bincount(minlength=4).tolist()


@pytest.mark.parametrize("distill", DISTILL)
def test_every_kind_of_distillation_keeps_the_contract(distill):
    check_aggregator(DTFD, distill=distill, instances_per_group=3)


@pytest.mark.parametrize("drop", ["tier1_drop", "tier2_drop"])
def test_dropout_can_be_switched_off_afterwards(drop):
    aggregator, batch = create_aggregator("dtfd", in_dim=8, **{drop: 0.5}).train(), make_batch([60, 70], 8, None)
    groups = torch.arange(130) % 4

    def loss():
        return aggregator.losses(batch, groups)["loss"]

    assert loss() != loss()
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert loss() == loss()


def test_options_and_groups_are_checked():
    for options, message in [
        ({"num_groups": 0}, "num_groups and instances_per_group must be positive"),
        ({"instances_per_group": 0}, "num_groups and instances_per_group must be positive"),
        ({"distill": "max"}, "distill must be"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("dtfd", in_dim=8, **options)
    aggregator, batch = create_aggregator("dtfd", in_dim=8), make_batch([5], 8, None)
    for groups in (torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.full((5,), -1)):
        with pytest.raises(InputError, match="for each of the 5 instances"):
            aggregator(batch, groups)
