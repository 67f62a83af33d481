"""Patch-GCN and its repository's DeepGraphConv against values computed with their authors' code."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag

from mil_zoo import BagBatch, InputError, create_aggregator

CASES = {
    "patchgcn": ("patchgcn", {"hidden_dim": 8, "dropout": 0.0}, "knn:8"),
    "patchgcn_directed": ("patchgcn", {"hidden_dim": 8, "dropout": 0.0}, None),
    "deepgraphsurv": ("deepgraphsurv", {"hidden_dim": 16, "dropout": 0.0}, "feature_knn:8"),
}


@pytest.fixture(params=CASES)
def case(request):
    golden, (name, options, graph) = Golden(request.param), CASES[request.param]
    options = options | {"num_classes": 3}
    return golden, name, options, golden.batch(graph or golden.edges)


def test_the_graph_is_the_authors_without_self_loops(case):
    golden, _, _, batch = case
    got, expected = batch.graph.csr.without_self_loops, golden.edges
    assert got.indptr.equal(expected.indptr)
    assert got.indices.equal(expected.indices)


def test_outputs_losses_and_every_gradient(case):
    golden, name, options, batch = case
    aggregator = golden.create(name, **options).train()
    output = aggregator(batch)
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.embedding, golden["bag_embedding"], "embedding")
    assert_close(output.attention, golden["attention_eval"][0], "attention")
    assert_close(output.attention_logits, golden["attention_logits"][0], "attention logits")
    loss = aggregator.losses(batch)["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, name, **options)


def test_layers():
    golden = Golden("patchgcn_directed")
    aggregator, graph = golden.create("patchgcn", num_classes=3, hidden_dim=8), golden.edges
    assert (graph.indptr.diff() == 0).any(), "a patch that no other counts among its nearest"
    seen = {}
    first = aggregator.convolutions[0].mlp
    first.register_forward_hook(lambda module, inputs, output: seen.update(summed=inputs[0], layer0=output))
    aggregator.embed.register_forward_hook(lambda module, inputs, output: seen.update(embed=output))
    aggregator.phi.register_forward_hook(lambda module, inputs, output: seen.update(layers=inputs[0], phi=output))
    with torch.no_grad():
        aggregator(golden.batch(graph))
    assert_close(seen["embed"], golden["embed"], "embed")
    assert_close(seen["summed"] - seen["embed"], golden["aggregated0"], "aggregated0")
    for i, layer in enumerate(seen["layers"].split(8, dim=1)[1:]):
        assert_close(layer, golden[f"layer{i}"], f"layer{i}")
    assert_close(seen["phi"], golden["phi"], "phi")


@pytest.mark.parametrize("name", ["patchgcn", "deepgraphsurv"])
def test_inside_a_batch(name):
    golden = Golden(name)
    aggregator = golden.create(name, **CASES[name][1], num_classes=3)
    bag = golden.bag(coords=golden["coords"], patch_size=224)
    others = [make_bag(n, 24, seed=n) for n in (11, 1)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], bag, others[1]], graph=type(aggregator).graph))
    assert_close(output.logits[1:2], golden["logits_eval"], "logits in a batch")
    assert_close(output.attention[11 : 11 + len(bag)], golden["attention_eval"][0], "attention in a batch")


@pytest.mark.parametrize(("name", "drop"), [("patchgcn", "dropout"), ("deepgraphsurv", "resample")])
def test_dropout_acts_in_training_alone(name, drop):
    torch.manual_seed(0)
    aggregator = create_aggregator(name, 8, **{"hidden_dim": 8, "dropout": 0.0, drop: 0.5})
    batch = BagBatch.from_bags([make_bag(30, 8)], graph=type(aggregator).graph)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    aggregator.eval()
    assert torch.equal(aggregator(batch).logits, aggregator(batch).logits)


def test_other_depths_and_wrong_options():
    aggregator = create_aggregator("patchgcn", 8, hidden_dim=4, num_layers=3)
    batch = BagBatch.from_bags([make_bag(30, 8)], graph="knn:8")
    assert aggregator(batch).embedding.shape == (1, 12)
    with pytest.raises(InputError, match=r"num_layers \(1\) must be at least 2"):
        create_aggregator("patchgcn", num_layers=1)
    with pytest.raises(InputError, match="PatchGCN needs a graph"):
        aggregator(BagBatch.from_bags([make_bag(30, 8)]))
