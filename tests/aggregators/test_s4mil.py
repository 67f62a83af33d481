"""S4MIL against values computed with its authors' code, and its blocks against one long convolution."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.s4mil import S4D

GOLDEN = Golden("s4mil")
OPTIONS = {"num_classes": 3, "embed_dim": 32, "act": str(GOLDEN["act"])}


def test_every_step_and_the_logits():
    aggregator = GOLDEN.create("s4mil", **OPTIONS)
    with torch.no_grad():
        h = torch.nn.functional.gelu(aggregator.embed(torch.from_numpy(GOLDEN["feat"])))
        assert_close(h, GOLDEN["fc1"], "embedding")
        assert_close(aggregator.s4d.kernel(len(h)), GOLDEN["kernel"], "kernel")
        assert_close(aggregator.s4d(aggregator.norm(h), (len(h),)), GOLDEN["block"], "layer")
        output = aggregator(BagBatch.from_bags([GOLDEN.bag()]))
    assert_close(output.logits, GOLDEN["logits_eval"], "logits")
    shares = torch.bincount(torch.from_numpy(GOLDEN["pool_argmax"]), minlength=len(h)) / 32
    assert_close(output.attention, shares, "share of channels won")


def test_inside_a_batch():
    aggregator = GOLDEN.create("s4mil", **OPTIONS)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 150)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], GOLDEN.bag(), others[1]]))
        first = aggregator(BagBatch.from_bags(GOLDEN.first_bags()))
    assert_close(output.logits[1:2], GOLDEN["logits_eval"], "logits")
    assert_close(first.logits, GOLDEN["logits_first"], "logits of 1, 3 and N / 2 instances")


def test_loss_and_every_gradient():
    aggregator = GOLDEN.create("s4mil", **OPTIONS).train()
    loss = aggregator.losses(BagBatch.from_bags([GOLDEN.bag()]))["loss"]
    loss.backward()
    assert_close(loss.detach(), GOLDEN["loss"], "loss")
    assert_gradients(aggregator, GOLDEN, "s4mil", **OPTIONS)


def test_the_names_of_the_authors_repository_load_too():
    names = {"_fc1.0.": "fc1.0.", "classifier.": "fc2."}
    theirs = {}
    for name, value in GOLDEN.parameters.items():
        for old, new in names.items():
            name = name.replace(old, new)
        theirs[name] = torch.from_numpy(value)
    aggregator = create_aggregator("s4mil", GOLDEN["feat"].shape[1], **OPTIONS).eval()
    aggregator.load_published_state_dict({"state_dict": theirs})
    with torch.no_grad():
        assert_close(aggregator(BagBatch.from_bags([GOLDEN.bag()])).logits, GOLDEN["logits_eval"], "logits")


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 500])
def test_blocks_are_one_long_convolution(length):
    torch.manual_seed(0)
    layer, u = S4D(6, 4).double(), torch.randn(length, 6, dtype=torch.float64, requires_grad=True)
    inputs = [u, *(p for name, p in layer.named_parameters() if not name.startswith("output"))]
    kernel = layer.kernel(length)
    lag = torch.arange(length)[:, None] - torch.arange(length)
    direct = torch.einsum("wij,jw->iw", kernel[:, lag.clamp(min=0)] * (lag >= 0), u) + layer.D * u
    got = layer.convolve(u)
    assert_close(got, direct.detach(), "output")
    weight = torch.randn(length, 6, dtype=torch.float64)
    expected = torch.autograd.grad((direct * weight).sum(), inputs, retain_graph=True)
    for one, other in zip(torch.autograd.grad((got * weight).sum(), inputs), expected, strict=True):
        assert_close(one, other, "gradient")


def test_a_training_step_stores_nothing_of_instances_times_channels_times_states():
    n, width = 3000, 32
    aggregator, stored = create_aggregator("s4mil", 8, embed_dim=width).train(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.numel()) or t, lambda t: t):
        aggregator.losses(make_batch([n], 8, None))["loss"].backward()
    assert max(stored) <= 2.1 * n * width, "the layer's 2 W outputs; n x W x 16 complex numbers are 15 times as many"


def test_options_are_checked():
    for options, message in [
        ({"act": "tanh"}, "act must be"),
        ({"state_dim": 3}, "state_dim"),
        ({"dropout": 1}, "dropout"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("s4mil", 8, **options)
