"""MambaMIL against values computed with its authors' code, and its orders."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import Bag, BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.blocks.order import sequence_order

MIXERS = ["mamba", "bimamba", "srmamba"]


def options_of(mixer):
    return {"num_classes": 3, "embed_dim": 24, "attention_dim": 12, "mixer": mixer}


def golden_of(mixer):
    golden = Golden(f"mambamil_{mixer}")
    assert (str(golden["act"]), int(golden["rate"]), int(golden["n_layers"])) == ("gelu", 5, 2), "the defaults"
    return golden, golden.create("mambamil", **options_of(mixer))


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_step_and_the_logits(mixer):
    golden, aggregator = golden_of(mixer)
    seen = {}
    for name in ("mixers.0", "mixers.1", "norm", "embed"):
        aggregator.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([golden.bag()]))
        assert_close(torch.nn.functional.gelu(seen["embed"]), golden["fc1"], "embedding")
    assert_close(seen["mixers.0"], golden["mixer0"], "first layer")
    assert_close(seen["mixers.1"], golden["mixer1"], "second layer")
    assert_close(seen["norm"], golden["normed"], "last norm")
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.attention, golden["attention_eval"][0], "attention")


@pytest.mark.parametrize("mixer", MIXERS)
def test_inside_a_batch(mixer):
    golden, aggregator = golden_of(mixer)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
        first = aggregator(BagBatch.from_bags(golden.first_bags()))
    assert_close(output.logits[1:2], golden["logits_eval"], "logits")
    assert_close(output.attention[11 : 11 + len(golden["feat"])], golden["attention_eval"][0], "attention")
    assert_close(first.logits, golden["logits_first"], "logits of 1, 3 and 10 instances")


@pytest.mark.parametrize("mixer", MIXERS)
def test_loss_and_every_gradient(mixer):
    golden, aggregator = golden_of(mixer)
    loss = aggregator.train().losses(BagBatch.from_bags([golden.bag()]))["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "mambamil", **options_of(mixer))


def test_the_second_scan_sees_the_reordered_sequence_with_its_zeros():
    golden, aggregator = golden_of("srmamba")
    second, seen = aggregator.mixers[0].second, []
    second.register_forward_hook(lambda module, arguments, out: seen.append((arguments, out)))
    with torch.no_grad():
        aggregator(BagBatch.from_bags([golden.bag()]))
        (u, _, sequences), out = seen[0]
        assert list(sequences.lengths) == [50], "47 instances and 3 rows of zeros"
        assert (u == 0).all(1).sum() == 3
        assert_close(torch.nn.functional.silu(second.convolve(u, sequences)), golden["second_scan_input"].T, "in")
    assert_close(out, golden["second_scan_output"].T, "out")


@pytest.mark.parametrize("mixer", MIXERS)
def test_orders_go_there_and_back(mixer):
    module = create_aggregator("mambamil", 8, embed_dim=16, mixer="mamba").mixers[0]
    module.mixer, module.rate = mixer, 3
    if mixer == "mamba":
        return
    lengths = (1, 2, 7, 9)
    order = module.reorder(lengths, torch.device("cpu"))
    values = torch.cat([torch.arange(19), torch.tensor([-1])])[order.rows]
    assert values[order.back].tolist() == list(range(19))
    bags = values.split(list(order.sequences.lengths))
    assert bags[2].tolist() == ([9, 8, 7, 6, 5, 4, 3] if mixer == "bimamba" else [3, 6, 9, 4, 7, -1, 5, 8, -1])
    assert order.sequences.offsets.tolist() == [0, *torch.tensor([len(b) for b in bags]).cumsum(0).tolist()]


def test_an_order_by_coordinates_does_not_depend_on_the_stored_one():
    torch.manual_seed(0)
    bag = make_bag(50, 8)
    mixed = bag.subset(torch.randperm(50))
    for order in ("raster", "hilbert"):
        aggregator = create_aggregator("mambamil", 8, embed_dim=16, order=order).eval()
        with torch.no_grad():
            one, other = (aggregator(BagBatch.from_bags([make_bag(9, 8, seed=3), b])) for b in (bag, mixed))
        assert_close(other.logits, one.logits, "logits")
        place = {tuple(xy): a for xy, a in zip(bag.coords.tolist(), one.attention[9:].tolist(), strict=True)}
        assert_close(other.attention[9:], [place[tuple(xy)] for xy in mixed.coords.tolist()], "attention")
    stored = create_aggregator("mambamil", 8, embed_dim=16).eval()
    assert not torch.allclose(*(stored(BagBatch.from_bags([b])).logits for b in (bag, mixed)))


def test_neighbours_on_the_hilbert_curve_are_neighbours_in_place():
    x, y = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], 1)[torch.randperm(256)].float()
    batch = BagBatch.from_bags([Bag(features=torch.zeros(256, 1), coords=grid * 224, patch_size=224.0)])
    along = grid[sequence_order(batch, "hilbert")]
    assert (along.diff(dim=0).abs().sum(1) == 1).all()
    raster = grid[sequence_order(batch, "raster")]
    assert raster[:3].tolist() == [[0, 0], [1, 0], [2, 0]]


def test_dropout_draws_anew_and_can_be_switched_off():
    aggregator, batch = create_aggregator("mambamil", 8, embed_dim=16, dropout=0.5).train(), make_batch([30], 8, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    aggregator.dropout = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator.eval()(batch).logits)


def test_steps_of_time_start_as_the_authors_or_as_mamba():
    authors = create_aggregator("mambamil", 8, embed_dim=16).mixers[0].first.dt_proj.bias
    mamba = create_aggregator("mambamil", 8, embed_dim=16, dt_init="mamba").mixers[0].first.dt_proj.bias
    assert (authors == 0).all()
    steps = torch.nn.functional.softplus(mamba)
    assert ((steps > 0.00099) & (steps < 0.1001)).all()


def test_options_are_checked():
    for options, message in [
        ({"mixer": "vim"}, "mixer must be one of 'srmamba'"),
        ({"rate": 0}, "rate"),
        ({"dropout": 1.0}, "dropout"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("mambamil", 8, **options)
    with pytest.raises(InputError, match="needs coordinates"):
        create_aggregator("mambamil", 8, order="raster")(BagBatch.from_bags([Bag(features=torch.zeros(3, 8))]))
