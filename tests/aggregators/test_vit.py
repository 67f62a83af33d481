"""STAMP's Transformer against values computed with its authors' code, with and without ALiBi."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import Bag, BagBatch, InputError, create_aggregator

NAMES = ["stamp_vit", "stamp_vit_alibi"]


def options_of(golden, **more):
    options = {"num_classes": 3, "embed_dim": 32, "num_heads": int(golden["n_heads"])}
    options |= {"num_layers": int(golden["n_layers"]), "ff_dim": int(golden["dim_feedforward"])}
    return options | {"alibi": bool(golden["use_alibi"]), "class_token_penalty": True, "ff_dropout": 0.0} | more


def bag_of(golden):
    return golden.bag(coords=golden["coords"], patch_size=float(golden["patch_size"]))


def create(name, **more):
    golden = Golden(name)
    return golden, golden.create("vit", **options_of(golden, **more))


@pytest.mark.parametrize("name", NAMES)
def test_logits_tokens_and_attention(name):
    golden, aggregator = create(name)
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([bag_of(golden)]))
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.embedding[0], golden["tokens"][0], "class token")
    heads = torch.from_numpy(golden["class_attention"])[:, 1:].T
    assert_close(output.head_attention, heads / heads.sum(0), "attention of the heads")
    assert_close(output.attention, heads.mean(1) / heads.mean(1).sum(), "attention")


@pytest.mark.parametrize("name", NAMES)
def test_tiles_that_do_not_see_the_class_token(name):
    golden, aggregator = create(name, class_token_penalty=False, tiles_see_class_token=False)
    with torch.no_grad():
        assert_close(aggregator(BagBatch.from_bags([bag_of(golden)])).logits, golden["logits_masked"], "logits")


@pytest.mark.parametrize("name", NAMES)
def test_inside_a_batch(name):
    golden, aggregator = create(name)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    first = [bag_of(golden).subset(torch.arange(int(size))) for size in golden["first_sizes"]]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], bag_of(golden), others[1]]))
        assert_close(aggregator(BagBatch.from_bags(first)).logits, golden["logits_first"], "logits of first instances")
    assert_close(output.logits[1:2], golden["logits_eval"], "logits")


@pytest.mark.parametrize("name", NAMES)
def test_loss_every_gradient_and_the_running_means(name):
    golden, aggregator = create(name)
    batch = BagBatch.from_bags([bag_of(golden)])
    losses = aggregator.train().losses(batch)
    losses["loss"].backward()
    assert_close(losses["loss"].detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "vit", **options_of(golden))
    after = {k.removeprefix("after/"): v for k, v in golden.arrays.items() if k.startswith("after/")}
    assert bool(after) == aggregator.alibi
    if after:
        twin = create_aggregator("vit", aggregator.in_dim, **options_of(golden))
        twin.load_published_state_dict(golden.parameters | after)
        for mine, theirs in zip(aggregator.layers, twin.layers, strict=True):
            assert_close(mine.attention.running_mean, theirs.attention.running_mean, "running mean")
            assert_close(mine.attention.items_so_far, theirs.attention.items_so_far, "count")
        with torch.no_grad():  # with the means of after the step, and no others, evaluation is what training saw
            assert_close(aggregator.eval()(batch).logits, golden["logits_train"], "logits in training mode")


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_heatmap_comes_from_the_gradients_of_the_features(name):
    golden, aggregator = create(name)
    bag, seen = bag_of(golden), golden["gradcam"]
    bag.features.requires_grad_()
    logits = aggregator(BagBatch.from_bags([bag])).logits
    for number in range(3):
        (grad,) = torch.autograd.grad(logits[0, number], bag.features, retain_graph=True)
        assert_close((bag.features * grad).mean(1).abs().softmax(0).detach(), seen[:, number], "heatmap")


def test_a_shifted_slide_gives_the_same_answer_where_the_class_token_has_no_place():
    torch.manual_seed(0)
    bag = make_bag(30, 8)
    moved = bag.changed(coords=bag.coords + 5000)
    for penalty, same in ((False, True), (True, False)):
        aggregator = create_aggregator("vit", 8, embed_dim=16, alibi=True, class_token_penalty=penalty)
        for layer in aggregator.layers:
            layer.attention.running_mean.fill_(1000)
        here, there = (aggregator.eval()(BagBatch.from_bags([b])).logits.detach() for b in (bag, moved))
        assert torch.allclose(here, there, rtol=1e-4, atol=1e-5) == same


def test_the_running_mean_of_a_batch_is_the_mean_over_its_bags():
    aggregator = create_aggregator("vit", 8, embed_dim=16, alibi=True).train()
    bags = [make_bag(n, 8, seed=n) for n in (1, 9, 40)]
    aggregator(BagBatch.from_bags(bags))
    means = [torch.cdist(bag.coords, bag.coords).mean() for bag in bags]
    assert_close(aggregator.layers[1].attention.running_mean, (sum(means) / 3).expand(8), "the first replaces")
    aggregator(BagBatch.from_bags(bags[1:]))
    expected = (sum(means) / 3 + sum(means[1:]) / 2) / 2
    assert_close(aggregator.layers[0].attention.running_mean, expected.expand(8), "the second is averaged in")


@pytest.mark.parametrize("alibi", [False, True])
def test_a_training_step_stores_nothing_of_size_tiles_times_tiles(alibi, monkeypatch):
    n, width = 600, 16
    monkeypatch.setattr("mil_zoo.aggregators.vit.PAIRS", 5000)
    aggregator, stored = create_aggregator("vit", 8, embed_dim=width, ff_dim=16, alibi=alibi).train(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.numel()) or t, lambda t: t):
        aggregator.losses(make_batch([n], 8, None))["loss"].backward()
    assert max(stored) <= 3 * (n + 1) * width


def test_dropouts_draw_anew_and_can_be_switched_off():
    batch = make_batch([30, 7], 8, None)
    for options in ({"dropout": 0.5, "ff_dropout": 0.0}, {"ff_dropout": 0.5}):
        aggregator = create_aggregator("vit", 8, embed_dim=16, **options).train()
        assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    for layer in aggregator.layers:
        layer.ff_dropout = 0.0
    assert_close(aggregator(batch).logits.detach(), aggregator.eval()(batch).logits.detach())


def test_options_are_checked():
    for options, message in [({"num_heads": 7}, "multiple of num_heads"), ({"ff_dropout": 1.0}, "ff_dropout")]:
        with pytest.raises(InputError, match=message):
            create_aggregator("vit", 8, **options)
    with pytest.raises(InputError, match="needs coordinates"):
        create_aggregator("vit", 8, alibi=True)(BagBatch.from_bags([Bag(features=torch.zeros(3, 8))]))
