"""GTP against values computed with its authors' code, in evaluation and in training, alone and with another bag."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import Bag, BagBatch, InputError, create_aggregator

GOLDEN = Golden("gtp")
OPTIONS = {"num_classes": 3, "embed_dim": 16, "num_clusters": 7}


def both_bags():
    first = GOLDEN.bag(coords=GOLDEN["coords"], patch_size=224)
    features, coords, label = (GOLDEN[f"{key}_b"] for key in ("feat", "coords", "label"))
    return [first, Bag(features=features, coords=coords, patch_size=224, label=int(label))]


def test_the_graph_is_the_authors_without_self_loops():
    got = GOLDEN.batch("window:1").graph.csr.without_self_loops
    assert got.indices.equal(GOLDEN.edges.indices)
    assert got.indptr.equal(GOLDEN.edges.indptr)


def test_outputs_losses_and_every_gradient():
    aggregator, batch, seen = GOLDEN.create("gtp", **OPTIONS), GOLDEN.batch("window:1"), {}
    for key in ("convolution", "assign", "norm"):
        module = getattr(aggregator, key)
        module.register_forward_hook(lambda module, inputs, output, key=key: seen.update({key: output}))
    for i, block in enumerate(aggregator.blocks):
        block.register_forward_hook(lambda module, inputs, output, i=i: seen.update({f"block{i}": output[0]}))
    output = aggregator(batch)
    assert_close(output.logits, GOLDEN["logits_eval"], "logits")
    assert_close(output.attention, GOLDEN["attention_derived"][0], "attention")
    assert_close(output.embedding, GOLDEN["tokens"][:1], "embedding")
    assert_close(seen["convolution"], GOLDEN["gcn"], "h")
    assert_close(seen["assign"], GOLDEN["assignment_logits"], "assignment logits")
    for i in range(3):
        assert_close(seen[f"block{i}"], GOLDEN[f"block{i}"], f"block{i}")
    losses = aggregator.losses(batch)
    losses["loss"].backward()
    for name in ("ce", "mincut", "ortho"):
        assert_close(losses[name].detach(), GOLDEN[f"loss_{name}"], name)
    assert_close(losses["loss"].detach(), GOLDEN["loss"], "loss")
    assert_gradients(aggregator, GOLDEN, "gtp", **OPTIONS)


@pytest.mark.parametrize("suffix", ["train", "train_batch"])
def test_training_normalises_the_patches_of_a_step_together(suffix):
    aggregator = GOLDEN.create("gtp", **OPTIONS).train()
    batch = BagBatch.from_bags(both_bags()[: 1 + (suffix == "train_batch")], graph="window:1")
    losses = aggregator.losses(batch)
    losses["loss"].backward()
    for name in ("loss", "mincut", "ortho"):
        assert_close(losses[name].detach(), GOLDEN[f"{name}_{suffix}"], name)
    norm = aggregator.convolution.norm
    assert_close(norm.running_mean, GOLDEN[f"running_mean_{suffix}"], "running mean")
    assert_close(norm.running_var, GOLDEN[f"running_var_{suffix}"], "running variance")
    for key, parameter in {  # that of conv1.bias is the small remainder of sums that cancel
        "cls_token": aggregator.cls_token,
        "conv1.weight": aggregator.convolution.weight,
        "conv1.bn_layer.weight": norm.weight,
        "conv1.bn_layer.bias": norm.bias,
        "pool1.weight": aggregator.assign.weight,
        "pool1.bias": aggregator.assign.bias,
    }.items():
        assert_close(parameter.grad, GOLDEN[f"grad_{suffix}/{key}"], key)
    aggregator = GOLDEN.create("gtp", **OPTIONS).train()
    with torch.no_grad():
        assert_close(aggregator(batch).logits, GOLDEN[f"logits_{suffix}"], "logits")


def test_inside_a_batch():
    aggregator, others = GOLDEN.create("gtp", **OPTIONS), [make_bag(n, 24, seed=n) for n in (11, 1)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], both_bags()[0], others[1]], graph="window:1"))
    assert_close(output.logits[1:2], GOLDEN["logits_eval"], "logits in a batch")
    assert_close(output.attention[11 : 11 + 68], GOLDEN["attention_derived"][0], "attention in a batch")


def test_terms_are_those_of_dense_matrices():
    torch.manual_seed(0)
    aggregator, batch = create_aggregator("gtp", 6, embed_dim=8, num_clusters=5).eval(), make_batch([23], 6, "window:1")
    losses = aggregator.losses(batch)
    graph, share = batch.graph.csr.without_self_loops, aggregator._assigned(batch)[1]
    a = torch.zeros(23, 23)
    a[graph.destinations, graph.indices.long()] = 1
    assert_close(losses["mincut"], -(share.T @ a @ share).trace() / (share.T @ a.sum(1).diag() @ share).trace())
    gram = share.T @ share
    assert_close(losses["ortho"], (gram / gram.norm() - torch.eye(5) / 5**0.5).norm())


def test_a_bag_without_an_edge_has_no_cut():
    aggregator = create_aggregator("gtp", 6).train()
    losses = aggregator.losses(make_batch([1, 30], 6, "window:1"))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert aggregator.eval().losses(make_batch([1], 6, "window:1"))["mincut"] == 0


def test_a_step_of_one_patch_is_refused_and_names_the_slide():
    aggregator, batch = (
        create_aggregator("gtp", 6).train(),
        BagBatch.from_bags([make_bag(1, 6, name="tiny")], "window:1"),
    )
    with pytest.raises(InputError, match="slide 'tiny' has a single patch and is alone in its training step"):
        aggregator.losses(batch)
    assert aggregator.eval()(batch).attention.tolist() == pytest.approx([1])


def test_options_are_checked():
    with pytest.raises(InputError, match=r"embed_dim \(20\) a multiple of heads"):
        create_aggregator("gtp", 8, embed_dim=20)
