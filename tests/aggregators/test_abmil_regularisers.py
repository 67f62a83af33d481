"""The attention regularisers that ABMIL can be given: entropy maximisation and stochastic top-k masking."""

import re

import pytest
import torch
from helpers import assert_close, make_batch

from mil_zoo import InputError, create_aggregator
from mil_zoo.aggregators.abmil import ABMIL
from mil_zoo.testing import check_aggregator

SIZES = [40, 1, 4, 25]


def created(**options):
    torch.manual_seed(0)
    return create_aggregator("abmil", in_dim=6, embed_dim=8, attention_dim=4, **options).train()


def batch():
    return make_batch(SIZES, 6, None)


def gradients(loss, aggregator):
    return torch.autograd.grad(loss, list(aggregator.parameters()))


def test_without_options_nothing_changes():
    plain, explicit = created(), created(entropy_weight=0.0, topk_mask=0, mask_drop=0.9)
    before = torch.get_rng_state()
    losses = plain.losses(batch())
    assert torch.equal(before, torch.get_rng_state()), "random numbers were drawn"
    assert set(losses) == {"loss"}
    output = plain(batch())
    assert torch.equal(losses["loss"], torch.nn.functional.cross_entropy(output.logits, batch().labels))
    other = explicit.losses(batch())
    for ours, theirs in zip(gradients(losses["loss"], plain), gradients(other["loss"], explicit), strict=True):
        assert torch.equal(ours, theirs)


def test_the_loss_gains_the_negative_entropy_of_each_bag():
    aggregator = created(entropy_weight=0.3)
    losses = aggregator.losses(batch())
    output = aggregator(batch())
    entropies = [torch.special.entr(a).sum() for a in output.attention.split(SIZES)]
    assert_close(losses["negative_entropy"].detach(), -torch.stack(entropies).mean().detach(), "negative entropy")
    plain = created().losses(batch())["loss"]
    assert_close(losses["cross_entropy"].detach(), plain.detach(), "cross-entropy")
    assert_close(losses["loss"].detach(), (plain + 0.3 * losses["negative_entropy"]).detach(), "loss")


def test_training_on_the_entropy_spreads_the_attention():
    aggregator = created(entropy_weight=100.0)
    with torch.no_grad():
        aggregator.attention.w.weight.mul_(5)
    optimizer = torch.optim.Adam(aggregator.parameters(), lr=0.01)
    entropies = []
    for _ in range(30):
        losses = aggregator.losses(batch())
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        entropies.append(-losses["negative_entropy"].item())
    uniform = torch.tensor(SIZES).log().mean().item()
    assert entropies[0] < 0.97 * uniform
    assert entropies[-1] > 0.995 * uniform


def test_some_of_the_most_attended_instances_are_masked_anew_each_time():
    aggregator = created(topk_mask=5, mask_drop=0.6)
    scores = aggregator.attention(aggregator.embed(batch().features))[:, 0]
    draws = []
    for _ in range(2):
        masked = aggregator(batch()).attention == 0
        draws.append(masked)
        for of_bag, attention, count in zip(masked.split(SIZES), scores.split(SIZES), [3, 0, 2, 3], strict=True):
            assert int(of_bag.sum()) == count
            top = attention.argsort(descending=True)[:5]
            assert set(of_bag.nonzero()[:, 0].tolist()) <= set(top.tolist())
    assert not torch.equal(*draws)


def test_a_bag_keeps_an_instance_whatever_the_share():
    attention = created(topk_mask=30, mask_drop=1.0)(batch()).attention
    assert [int((a > 0).sum()) for a in attention.split(SIZES)] == [10, 1, 1, 1]


def test_evaluation_is_not_masked():
    assert torch.equal(created(topk_mask=5).eval()(batch()).logits, created().eval()(batch()).logits)


def test_masking_can_be_switched_off_afterwards():
    aggregator = created(topk_mask=5)
    aggregator.mask_drop = 0.0
    assert torch.equal(aggregator(batch()).logits, created()(batch()).logits)


def test_entropy_of_a_masked_attention_has_finite_gradients():
    aggregator = created(topk_mask=5, entropy_weight=0.1)
    loss = aggregator.losses(batch())["loss"]
    assert all(gradient.isfinite().all() for gradient in gradients(loss, aggregator))


def test_both_keep_the_contract():
    check_aggregator(ABMIL, topk_mask=10, entropy_weight=0.1)


def test_options_are_checked():
    for options in ({"entropy_weight": -1.0}, {"topk_mask": -1}, {"mask_drop": 1.5}):
        with pytest.raises(InputError, match=next(iter(options))):
            create_aggregator("abmil", in_dim=8, **options)


def test_instance_loss_is_clams_on_abmils_attention():
    """With the same weights, ABMIL's term is what CLAM_SB's losses give, and it pulls on the embedding."""
    torch.manual_seed(0)
    clam = create_aggregator("clam_sb", in_dim=6, embed_dim=8, attention_dim=4, k_sample=3, dropout=0.0)
    abmil = created(gated=True, instance_weight=0.5, k_sample=3)
    theirs = clam.state_dict()
    mine = set(abmil.state_dict())
    renamed = {re.sub(r"^classifiers\.", "classifier.", name): value for name, value in theirs.items()}
    assert set(renamed) == mine
    abmil.load_state_dict(renamed)
    got, expected = abmil.losses(batch()), clam.train().losses(batch())
    assert_close(got["instance"], expected["instance"])
    assert_close(got["cross_entropy"], expected["bag"])
    assert_close(got["loss"], expected["bag"] + 0.5 * expected["instance"])
    assert abmil.embed[0].weight.grad is None
    got["instance"].backward()
    assert abmil.embed[0].weight.grad.abs().max() > 0
    assert abmil.attention.w.weight.grad is None  # which instances are asked is not differentiated


def test_instance_loss_passes_the_contract():
    check_aggregator(ABMIL, embed_dim=8, instance_weight=0.3, entropy_weight=0.1)
