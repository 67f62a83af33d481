"""DGR-MIL against values computed with its authors' code, and its centres."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.base import Progress

NAMES = ["dgrmil_normal", "dgrmil_abnormal"]
OPTIONS = {"embed_dim": 32, "warmup_epochs": 0, "instance_drop": 0.0, "attn_out_drop": 0.0}


@pytest.mark.parametrize("name", NAMES)
def test_every_step_and_the_logits(name):
    golden = Golden(name)
    aggregator = golden.create("dgrmil", **OPTIONS)
    assert aggregator.global_vectors.shape[1] == golden["n_lesion"]
    seen = {}
    aggregator.instance_norm.register_forward_hook(lambda m, i, out: seen.update(encoded=out))
    with torch.no_grad():
        output, x, g = aggregator._score(BagBatch.from_bags([golden.bag()]))
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.attention, golden["attention_eval"][0], "attention of the token")
    assert_close(seen["encoded"], golden["encoded"], "instances after self-attention")
    assert_close(g, golden["globals"], "global vectors")
    assert_close(torch.nn.functional.normalize(g, dim=1), golden["normalised_rows"], "their directions")
    assert_close(x.mean(0), golden["instance_mean"], "mean instance")


@pytest.mark.parametrize("name", NAMES)
def test_inside_a_batch(name):
    golden = Golden(name)
    aggregator = golden.create("dgrmil", **OPTIONS)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
        assert_close(aggregator(BagBatch.from_bags(golden.first_bags())).logits, golden["logits_first"], "first ones")
    assert_close(output.logits[1:2], golden["logits_eval"], "logits")
    assert_close(output.attention[11 : 11 + len(golden["feat"])], golden["attention_eval"][0], "attention")


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_term_every_gradient_and_the_centres(name):
    golden = Golden(name)
    aggregator = golden.create("dgrmil", **OPTIONS).train()
    losses = aggregator.losses(BagBatch.from_bags([golden.bag()]))
    losses["loss"].backward()
    for ours, theirs in {"bag": "loss_bag", "diversity": "loss_diversity", "triplet": "loss_triplet"}.items():
        assert_close(losses[ours].detach(), golden[theirs], ours)
    assert_close(losses["loss"].detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "dgrmil", **OPTIONS)
    assert_close(aggregator.negative_centre, golden["after/normalcenter"], "negative centre")
    assert_close(aggregator.positive_centre, golden["after/postivecenter"], "positive centre")


def test_the_first_epochs_train_on_the_bag_alone():
    golden = Golden("dgrmil_abnormal")
    aggregator = golden.create("dgrmil", **OPTIONS | {"warmup_epochs": 9})
    batch = BagBatch.from_bags([golden.bag()])
    for epoch, key in ((1, "loss_warmup"), (9, "loss_warmup"), (10, "loss")):
        aggregator.progress = Progress(step=4 * (epoch - 1), steps_per_epoch=4, epochs=200)
        aggregator.load_published_state_dict(golden.parameters)
        assert_close(aggregator.train().losses(batch)["loss"].detach(), golden[key], f"epoch {epoch}")


def test_each_bag_of_a_batch_moves_the_centre_of_its_kind_in_order():
    torch.manual_seed(0)
    one = create_aggregator("dgrmil", 8, 3, **OPTIONS | {"embed_dim": 16}).train()
    other = create_aggregator("dgrmil", 8, 3, **OPTIONS | {"embed_dim": 16}).train()
    other.load_state_dict(one.state_dict())
    bags = [make_bag(n, 8, label=n % 3, seed=n) for n in (5, 6, 7, 9)]
    together = one.losses(BagBatch.from_bags(bags))
    alone = [other.losses(BagBatch.from_bags([bag])) for bag in bags]
    for name, value in together.items():
        assert_close(value.detach(), sum(losses[name] for losses in alone).detach() / 4, name)
    assert_close(one.negative_centre, other.negative_centre)
    assert_close(one.positive_centre, other.positive_centre)
    before = one.positive_centre.clone()
    one.eval().losses(BagBatch.from_bags(bags))
    assert torch.equal(one.positive_centre, before), "evaluation moves nothing"


def test_dropouts_drop_whole_instances():
    torch.manual_seed(0)
    aggregator = create_aggregator("dgrmil", 8, embed_dim=16, instance_drop=0.5, attn_out_drop=0.0).train()
    _, x, _ = aggregator._score(make_batch([200], 8, None))
    dropped = (x == 0).all(1).float().mean()
    assert 0.4 < dropped < 0.6
    batch = make_batch([30], 8, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    aggregator.instance_drop = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator(batch).logits)


def test_global_vectors_that_are_the_same_are_an_error():
    aggregator = create_aggregator("dgrmil", 8, embed_dim=16).train()
    with torch.no_grad():
        aggregator.global_vectors[:] = 1e30
    with pytest.raises(InputError, match="global vectors have become the same"):
        aggregator.losses(make_batch([5], 8, None))


def test_options_are_checked():
    for options, message in [
        ({"embed_dim": 20}, "multiple of 8"),
        ({"num_globals": 600}, "num_globals"),
        ({"triplet_weight": -1}, "triplet_weight"),
        ({"instance_drop": 1.0}, "instance_drop"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("dgrmil", 8, **options)
