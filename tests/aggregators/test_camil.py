"""CAMIL against values computed with its authors' code, and its neighbours against sorted distances."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.blocks import neighbours
from mil_zoo.aggregators.blocks.neighbours import nearest
from mil_zoo.kernels import devices

CASES = {
    "camil": ({"num_classes": 1}, None),
    "camil_subtyping": ({"num_classes": 3}, None),
    "camil_window": ({"num_classes": 3, "neighbours": "graph"}, "window:1"),
}
SIZES = {"heads": 4, "head_dim": 8, "landmarks": 8, "neighbour_dim": 9, "pool_dim": 7}


@pytest.fixture(params=CASES)
def case(request):
    golden, (options, graph) = Golden(request.param), CASES[request.param]
    return golden, options | SIZES, graph


@pytest.fixture(params=["on a CPU", "on a GPU"])
def device(request, monkeypatch):
    """A GPU's coordinates are searched otherwise; 200 distances at once are 3 rows of the golden bags."""
    monkeypatch.setattr(devices, "runs_ahead", lambda device: request.param == "on a GPU")
    monkeypatch.setattr(neighbours, "AT_ONCE", 200)


@pytest.mark.usefixtures("device")
def test_the_nearest_are_the_authors():
    for name in ("camil", "camil_subtyping"):
        golden = Golden(name)
        assert nearest(torch.from_numpy(golden["coords"]), 15).equal(
            torch.from_numpy(golden["neighbour_indices"])[:, 1:].long()
        )


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("n", "k"), [(1, 15), (2, 15), (9, 15), (40, 1), (40, 15)])
def test_the_nearest_are_those_of_sorted_distances(n, k):
    coords = np.random.default_rng(n).integers(0, 5, (n, 2)) * 256.0  # twins and ties
    far = ((coords[:, None] - coords) ** 2).sum(2)
    np.fill_diagonal(far, np.inf)
    expected = np.argsort(far, axis=1, kind="stable")[:, : min(k, n - 1)]
    assert nearest(torch.from_numpy(coords).float(), k).tolist() == expected.tolist()


@pytest.mark.usefixtures("device")
def test_outputs_losses_and_every_gradient(case):
    golden, options, graph = case
    aggregator, batch, seen = golden.create("camil", **options), golden.batch(graph), {}
    for key in ("nystrom", "value"):
        module = getattr(aggregator, key)
        module.register_forward_hook(lambda module, inputs, output, key=key: seen.update({key: output}))
    aggregator.u.register_forward_hook(lambda module, inputs, output: seen.update(fused=inputs[0]))
    aggregator.q.register_forward_hook(lambda module, inputs, output: seen.update(encoder=inputs[0]))
    output = aggregator(batch)
    for key, value in seen.items():
        assert_close(value, golden[key], key)
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.embedding, golden["bag_embedding"], "embedding")
    assert_close(output.attention, golden["attention_eval"][0], "attention")
    loss = aggregator.losses(batch)["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "camil", **options)


def test_the_sum_over_neighbours(case):
    golden, options, graph = case
    aggregator, batch = golden.create("camil", **options), golden.batch(graph)
    weights = torch.zeros(len(golden["feat"]), len(golden["feat"]))
    source, target = torch.from_numpy(golden["edges"]).long()
    weights[target, source] = torch.from_numpy(golden["edge_weight"])
    assert_close(aggregator._neighbour_sum(torch.eye(len(weights)), batch), weights, "weights")


def test_inside_a_batch(case):
    golden, options, graph = case
    aggregator, others = golden.create("camil", **options), [make_bag(n, 16, seed=n) for n in (11, 1)]
    bag = golden.bag(coords=golden["coords"], patch_size=224)
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], bag, others[1]], graph=graph))
    assert_close(output.logits[1:2], golden["logits_eval"], "logits in a batch")
    assert_close(output.attention[11 : 11 + len(bag)], golden["attention_eval"][0], "attention in a batch")


def test_where_neighbours_are_missing_that_is_said():
    batch = make_batch([9], 16, None)
    with pytest.raises(InputError, match="camil: slides slide_0 lack coordinates"):
        create_aggregator("camil", 16)(replace(batch, coords=None))
    with pytest.raises(InputError, match="CAMIL needs a graph"):
        create_aggregator("camil", 16, neighbours="graph")(batch)


def test_a_layer_in_front_and_wrong_options():
    output = create_aggregator("camil", 10, embed_dim=6, landmarks=4)(make_batch([9, 20], 10, None))
    assert output.embedding.shape == (2, 6)
    for options, message in {
        ("neighbours", "all"): "neighbours must be one of 'authors', 'graph', not 'all'",
        ("heads", 18): r"heads \(18\) must lie between 1 and 17",
        ("head_dim", 12): r"divide head_dim \(12\)",
    }.items():
        with pytest.raises(InputError, match=message):
            create_aggregator("camil", 16, **dict([options]))
