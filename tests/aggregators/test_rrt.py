"""RRT against values computed with its authors' code, and both attentions against the formulas written out.

The 37 instances of the golden slide "rrt" leave one cell to each region of the cross-region layer, which then adds
nothing; those of "rrt_regions" (300, a grid with empty cells) and "rrt_shortcut" (170) exercise it.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator

NO_DROPOUT = {"dropout": 0.0, "proj_drop": 0.0}
CASES = {
    "rrt": {"n_heads": 4, "region_num": 2, "epeg_k": 5, "pool_act": "relu"},
    "rrt_regions": {"n_heads": 4, "region_num": 3, "epeg_k": 5, "pool_act": "relu"},
    "rrt_shortcut": {"epeg_k": 3, "crmsa_k": 1, "crmsa_heads": 2, "all_shortcut": True, "pool_act": "tanh"},
}


@pytest.fixture(params=CASES)
def case(request):
    golden, options = Golden(request.param), CASES[request.param] | {"embed_dim": 32} | NO_DROPOUT
    return golden, golden.create("rrt", **options), options


def test_logits_and_attention_alone_and_inside_a_batch(case):
    golden, aggregator, _ = case
    others = [make_bag(n, 24, seed=n) for n in (11, 90)]
    with torch.no_grad():
        alone = aggregator(BagBatch.from_bags([golden.bag()]))
        inside = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
    rows = slice(11, 11 + len(golden["feat"]))
    assert_close(alone.logits, golden["logits_eval"], "logits")
    assert_close(inside.logits[1:2], golden["logits_eval"], "logits in a batch")
    if "attention_eval" in golden.arrays:
        assert_close(alone.attention, golden["attention_eval"][0], "attention")
        assert_close(inside.attention[rows], golden["attention_eval"][0], "attention in a batch")
    assert_close(inside.attention[rows], alone.attention, "attention alone and in a batch")


def test_loss_and_every_gradient(case):
    golden, aggregator, options = case
    loss = aggregator.train().losses(BagBatch.from_bags([golden.bag()]))["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "rrt", **options)


def region_of_cell(side, size):
    """int64 ``[side * side]``: the region of each cell of the grid, row by row."""
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    return row // size * (side // size) + column // size


def self_attention(layer, x):
    """``[P, dim]`` of one region, with the logits stored and EPEG as a convolution of them along the queries."""
    q, k, v = layer.qkv(x).view(len(x), 3, layer.heads, -1).permute(1, 2, 0, 3)
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5  # [H, P, P]
    if layer.pe is not None:
        padding = (layer.pe.weight.shape[2] // 2, 0)
        logits = logits + F.conv2d(logits[None], layer.pe.weight, padding=padding, groups=layer.heads)[0]
    return layer.proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))


def by_region(x, num):
    """The normed instances of one bag on their grid, zeros in the empty cells, and the cells of each region."""
    side = math.ceil(math.ceil(math.sqrt(len(x))) / num) * num
    grid = torch.cat([x, x.new_zeros(side * side - len(x), x.shape[1])])
    region = region_of_cell(side, side // num)
    return grid, [(region == r).nonzero()[:, 0] for r in range(num * num)]


def regional(layer, x):
    grid, cells = by_region(layer.norm(x), layer.region_num)
    out = torch.zeros_like(grid)
    for index in cells:
        out[index] = self_attention(layer.attn, grid[index])
    return x + out[: len(x)]


def cross_regional(layer, x):
    grid, cells = by_region(layer.norm(x), 8)
    scores = [grid[index] @ layer.phi for index in cells]  # [P, k] each
    prototypes = torch.stack([s.softmax(0).T @ grid[index] for s, index in zip(scores, cells, strict=True)], dim=1)
    prototypes = torch.stack([self_attention(layer.attn, p) for p in prototypes], dim=1)  # [regions, k, dim]
    out = torch.zeros_like(grid)
    for s, index, of_region in zip(scores, cells, prototypes, strict=True):
        scaled = (s - s.min(0).values) / (s.max(0).values - s.min(0).values + 1e-8)
        out[index] = (scaled * s.softmax(1)) @ of_region
    return x + out[: len(x)]


@pytest.mark.parametrize(("region_num", "pool_act"), [(8, "relu"), (3, "tanh")])
def test_both_attentions_are_the_formulas_written_out(region_num, pool_act):
    torch.manual_seed(0)
    options = {"embed_dim": 16, "n_heads": 2, "region_num": region_num, "epeg_k": 3, "pool_act": pool_act} | NO_DROPOUT
    aggregator = create_aggregator("rrt", in_dim=10, **options)
    batch = make_batch([170, 65, 200], 10, None)
    weights = torch.randn(3, 2)
    output = aggregator(batch)
    (output.logits * weights).sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in aggregator.named_parameters()}
    aggregator.zero_grad()
    expected = []
    for features in batch.features.split([170, 65, 200]):
        h = aggregator.norm(cross_regional(aggregator.cross, regional(aggregator.region, aggregator.embed(features))))
        attention = aggregator.pool[2](getattr(torch, pool_act)(aggregator.pool[0](h))).softmax(0)
        expected.append(aggregator.classifier((attention * h).sum(0)))
    (torch.stack(expected) * weights).sum().backward()
    assert_close(output.logits, torch.stack(expected), "logits")
    for name, parameter in aggregator.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, f"{name} is not exercised"
        assert_close(got[name], parameter.grad, f"gradient of {name}")


def test_the_order_of_instances_matters():
    torch.manual_seed(0)
    aggregator, bag = create_aggregator("rrt", in_dim=8, embed_dim=16).eval(), make_bag(200, 8)
    with torch.no_grad():
        logits = [aggregator(BagBatch.from_bags([b])).logits for b in (bag, bag.with_features(bag.features.flip(0)))]
    assert not torch.allclose(*logits, atol=1e-6)


@pytest.mark.parametrize("drop", NO_DROPOUT)
def test_dropout_can_be_switched_off_afterwards(drop):
    aggregator = create_aggregator("rrt", in_dim=8, embed_dim=16, **NO_DROPOUT | {drop: 0.5}).train()
    batch = make_batch([100], 8, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator(batch).logits)


def test_options_are_checked():
    for options, message in [
        ({"embed_dim": 20, "n_heads": 4}, "multiple of n_heads"),
        ({"crmsa_heads": 7}, "crmsa_heads"),
        ({"epeg_k": 4}, "epeg_k must be odd"),
        ({"region_num": 0}, "region_num and crmsa_k must be positive"),
        ({"pool_act": "gelu"}, "pool_act must be"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("rrt", in_dim=8, **options)


@pytest.mark.parametrize("n", [1, 7, 64, 65])
def test_half_precision_gives_numbers_in_small_bags_too(n):
    torch.manual_seed(0)
    aggregator, batch = create_aggregator("rrt", in_dim=8, embed_dim=16, **NO_DROPOUT), make_batch([n], 8, None)
    with torch.autocast("cpu", torch.float16):
        half = aggregator.losses(batch)["loss"]
    half.backward()
    assert half.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in aggregator.parameters())
    assert (half - aggregator.losses(batch)["loss"]).abs() < 0.02
