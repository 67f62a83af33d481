"""ACMIL against values computed with its authors' code, and its masking."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator

GOLDEN = Golden("acmil")
OPTIONS = {"embed_dim": 32, "attention_dim": 16, "n_token": 3, "n_masked_patch": 0}


def check_output(output, start=0, bag=0):
    rows = slice(start, start + len(GOLDEN["feat"]))
    assert_close(output.logits[bag : bag + 1], GOLDEN["logits_eval"], "logits")
    assert_close(output.head_attention[rows], GOLDEN["attention_eval"].T, "attention of the branches")
    assert_close(output.attention[rows], GOLDEN["attention_eval"].mean(0), "attention")


def test_logits_and_attention():
    aggregator, batch = GOLDEN.create("acmil", **OPTIONS), BagBatch.from_bags([GOLDEN.bag()])
    with torch.no_grad():
        check_output(aggregator(batch))
        pooled, _ = aggregator._branches(batch)
        assert_close(aggregator.branch_logits(pooled)[0], GOLDEN["branch_logits"], "logits of the branches")


def test_inside_a_batch():
    aggregator = GOLDEN.create("acmil", **OPTIONS)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], GOLDEN.bag(), others[1]]))
    check_output(output, start=11, bag=1)


def test_every_loss_term_and_every_gradient():
    aggregator = GOLDEN.create("acmil", **OPTIONS).train()
    losses = aggregator.losses(BagBatch.from_bags([GOLDEN.bag()]))
    losses["loss"].backward()
    names = {"loss": "loss", "slide": "loss_slide", "branch": "loss_branch", "diversity": "loss_diversity"}
    for ours, theirs in names.items():
        assert_close(losses[ours].detach(), GOLDEN[theirs], ours)
    assert_gradients(aggregator, GOLDEN, "acmil", **OPTIONS)


def test_losses_of_a_batch_are_the_mean_over_its_bags():
    aggregator = GOLDEN.create("acmil", **OPTIONS)
    bags = [make_bag(n, 24, label=n % 2, seed=n) for n in (1, 20, 33)]
    alone = [aggregator.losses(BagBatch.from_bags([bag])) for bag in bags]
    together = aggregator.losses(BagBatch.from_bags(bags))
    for name, value in together.items():
        assert_close(value.detach(), sum(one[name] for one in alone).detach() / 3, name)


def test_training_masks_a_share_of_the_most_attended_instances_of_each_branch():
    torch.manual_seed(0)
    aggregator = create_aggregator("acmil", in_dim=8, embed_dim=16)
    sizes = [1, 4, 9, 30]
    batch = make_batch(sizes, 8, None)
    with torch.no_grad():
        full = aggregator.eval()(batch).head_attention.split(sizes)
        masked = aggregator.train()(batch).head_attention
        again = aggregator(batch).head_attention
    assert not torch.equal(masked, again), "every step draws anew"
    for before, after in zip(full, masked.split(sizes), strict=True):
        k = min(10, len(before))
        assert ((after == 0).sum(0) == int(0.6 * k)).all()
        for branch in range(5):
            gone = (after[:, branch] == 0).nonzero()[:, 0].tolist()
            assert set(gone) <= set(before[:, branch].topk(k).indices.tolist())
            kept = torch.where(after[:, branch] == 0, 0, before[:, branch])
            assert_close(after[:, branch], kept / kept.sum(), "the others share what the masked ones had")


@pytest.mark.parametrize("attribute", ["mask_drop", "n_masked_patch"])
def test_masking_can_be_switched_off_afterwards(attribute):
    aggregator, batch = create_aggregator("acmil", in_dim=8, embed_dim=16), make_batch([30, 7], 8, None)
    expected = aggregator.eval()(batch).logits
    assert not torch.equal(aggregator.train()(batch).logits, expected)
    setattr(aggregator, attribute, 0)
    assert torch.equal(aggregator(batch).logits, expected)


def test_one_instance_at_least_is_left_and_gradients_are_finite():
    aggregator = create_aggregator("acmil", in_dim=8, embed_dim=16, mask_drop=1.0).train()
    batch = make_batch([10, 3, 1, 40], 8, None)
    left = (aggregator(batch).head_attention > 0).split([10, 3, 1, 40])
    assert [part.sum(0).unique().tolist() for part in left] == [[1], [1], [1], [30]]
    aggregator.losses(batch)["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in aggregator.parameters())


def test_one_branch_is_attention_pooling_without_the_branch_losses():
    options = {"embed_dim": 32, "attention_dim": 16, "n_token": 1}
    shapes = {"attention.attention_weights.weight": (1, 16), "attention.attention_weights.bias": (1,)}
    published = {
        name: value[: shapes[name][0]] if name in shapes else value
        for name, value in GOLDEN.parameters.items()
        if not name.startswith(("classifier.1", "classifier.2"))
    }
    assert "classifier.0.fc.weight" in published, "what the authors carry and do not train is dropped"
    aggregator = create_aggregator("acmil", in_dim=24, **options).eval()
    aggregator.load_published_state_dict(published)
    h = F.relu(torch.from_numpy(GOLDEN["feat"] @ GOLDEN.parameters["dimreduction.fc1.weight"].T))
    weights = aggregator.attention(h).softmax(0)
    losses = aggregator.losses(BagBatch.from_bags([GOLDEN.bag()]))
    expected = F.cross_entropy(aggregator.slide_classifier(weights.T @ h), torch.tensor([int(GOLDEN["label"])]))
    assert set(losses) == {"loss", "slide"}
    assert_close(losses["loss"].detach(), expected.detach())


def test_options_are_checked():
    for options, message in [
        ({"n_token": 0}, "n_token"),
        ({"mask_drop": 1.1}, "mask_drop"),
        ({"n_masked_patch": -1}, "n_masked_patch"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("acmil", in_dim=8, **options)
    with pytest.raises(InputError, match="no place for 'classifier"):
        create_aggregator("acmil", in_dim=8).load_published_state_dict({"classifier.9.fc.bias": np.zeros(2)})
