"""SRMIL against values computed with its authors' code, and the pieces that code restructures."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.kernels import CSR

GOLDEN = Golden("srmil")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = {
    "hidden": 32, "heads": 4, "head_hidden": 19, "feat_drop": 0.0, "attn_drop": 0.0, "cls_drop": 0.0,
    "w_gen": 1.3, "w_ce": 0.7, "alpha": 2.0,
}  # fmt: skip
MASK = torch.from_numpy(GOLDEN["mask_nodes"])


def golden_bag():
    return GOLDEN.bag(coords=GOLDEN["coords"], patch_size=float(GOLDEN["patch_size"]))


def between_others():
    others = [make_bag(n, 24, label=n % 2, seed=n) for n in (11, 40)]
    return BagBatch.from_bags([others[0], golden_bag(), others[1]], graph="window:2"), slice(11, 11 + 64)


def test_the_graph_is_the_authors():
    src, dst = (torch.from_numpy(side).long() for side in GOLDEN["edges"])
    expected = CSR.from_edges(src, dst, 64)
    built = golden_bag().graph("window:2")
    assert built.indptr.equal(expected.indptr)
    assert built.indices.equal(expected.indices)


def test_encoder_logits_and_attention():
    aggregator, batch = GOLDEN.create("srmil", **OPTIONS), BagBatch.from_bags([golden_bag()], graph="window:2")
    with torch.no_grad():
        output = aggregator(batch)
        assert_close(torch.cat(aggregator.encode(batch)), GOLDEN["encoder_eval"], "encoder")
    assert_close(output.logits, GOLDEN["logits_eval"], "logits")
    assert_close(output.head_attention, GOLDEN["global_attention_eval"], "attention of the heads")
    assert_close(output.attention, GOLDEN["global_attention_eval"].mean(1), "attention")


def test_inside_a_batch():
    aggregator = GOLDEN.create("srmil", **OPTIONS)
    batch, rows = between_others()
    with torch.no_grad():
        output = aggregator(batch)
    assert_close(output.logits[1:2], GOLDEN["logits_eval"], "logits")
    assert_close(output.head_attention[rows], GOLDEN["global_attention_eval"], "attention of the heads")


def test_the_attention_readout_alone_and_inside_a_batch():
    aggregator = GOLDEN.create("srmil", readout="attention", **OPTIONS)
    batch, rows = between_others()
    with torch.no_grad():
        alone, inside = aggregator(BagBatch.from_bags([golden_bag()], graph="window:2")), aggregator(batch)
    assert_close(alone.logits, GOLDEN["logits_readout_attention"], "logits")
    assert_close(alone.attention, GOLDEN["attention_readout"], "attention")
    assert_close(inside.logits[1:2], GOLDEN["logits_readout_attention"], "logits in a batch")
    assert_close(inside.attention[rows], GOLDEN["attention_readout"], "attention in a batch")


def test_every_loss_term_and_every_gradient():
    aggregator = GOLDEN.create("srmil", **OPTIONS).train()
    losses = aggregator.losses(BagBatch.from_bags([golden_bag()], graph="window:2"), mask=MASK)
    losses["loss"].backward()
    names = {"loss": "loss", "reconstruction": "loss_recon", "ce_masked": "loss_ce_masked", "ce_full": "loss_ce_full"}
    for ours, theirs in names.items():
        assert_close(losses[ours].detach(), GOLDEN[theirs], ours)
    assert_gradients(aggregator, GOLDEN, "srmil", **OPTIONS)


def test_the_literal_yardstick_of_the_benchmarks_computes_the_same():
    spec = importlib.util.spec_from_file_location("literal_srmil", BENCHMARKS / "literal_srmil.py")
    literal_srmil = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(literal_srmil)
    literal = literal_srmil.LiteralSRMIL(24, 2, **OPTIONS)
    literal.load_published_state_dict(GOLDEN.parameters)
    batch = BagBatch.from_bags([golden_bag()], graph="window:2")
    assert_close(literal(batch).logits.detach(), GOLDEN["logits_eval"], "logits")
    losses = literal.losses(batch, mask=MASK)
    losses["loss"].backward()
    assert_close(losses["loss"].detach(), GOLDEN["loss"], "loss")
    assert_gradients(literal, GOLDEN, "srmil", **OPTIONS)


def test_reconstructed_features():
    aggregator, graph = GOLDEN.create("srmil", **OPTIONS), golden_bag().graph("window:2")
    with torch.no_grad():
        masked = aggregator.reformer(torch.from_numpy(GOLDEN["feat"]))
        masked[MASK] = aggregator.reformer(aggregator.enc_mask_token)
        h = aggregator.encoder.gat_layers[0](masked, graph)
        assert_close(aggregator.reconstruct(h, MASK, graph), GOLDEN["recon"], "reconstruction")


def test_losses_of_a_batch_are_the_mean_over_its_bags():
    aggregator = GOLDEN.create("srmil", **OPTIONS)
    bags = [make_bag(n, 24, label=n % 2, seed=n) for n in (20, 33)]
    masks = [torch.arange(0, 14), torch.arange(3, 26)]
    alone = [
        aggregator.losses(BagBatch.from_bags([bag], graph="window:2"), mask=mask)
        for bag, mask in zip(bags, masks, strict=True)
    ]
    together = aggregator.losses(BagBatch.from_bags(bags, graph="window:2"), mask=torch.cat([masks[0], masks[1] + 20]))
    for name, value in together.items():
        assert_close(value.detach(), ((alone[0][name] + alone[1][name]) / 2).detach(), name)


def test_the_drawn_mask_has_its_share_of_each_bag():
    aggregator, batch = create_aggregator("srmil", in_dim=8), make_batch([1, 10, 33], 8, None)
    drawn = aggregator._draw_mask(batch)
    assert len(set(drawn.tolist())) == len(drawn)
    assert torch.bincount(batch.bag_index[drawn], minlength=3).tolist() == [0, 7, 23]


def test_a_bag_of_one_patch_has_no_reconstruction_loss():
    losses = create_aggregator("srmil", in_dim=8).losses(make_batch([1], 8, "window:2"))
    assert losses["reconstruction"] == 0
    assert losses["loss"].isfinite()


def test_without_masking_both_classifications_agree():
    aggregator = create_aggregator(
        "srmil", in_dim=8, mask_rate=0.0, **{k: 0.0 for k in ("feat_drop", "attn_drop", "cls_drop")}
    )
    losses = aggregator.losses(make_batch([30, 20], 8, "window:2"))
    assert_close(losses["ce_masked"].detach(), losses["ce_full"].detach())


@pytest.mark.parametrize("drop", ["feat_drop", "attn_drop"])
def test_the_three_paths_have_masks_of_their_own(drop):
    rates = {name: 0.0 for name in ("feat_drop", "attn_drop", "cls_drop")} | {drop: 0.3}
    aggregator, batch = (
        create_aggregator("srmil", in_dim=8, readout="attention", **rates),
        make_batch([80], 8, "window:2"),
    )
    same_rows, graphs = torch.arange(80).repeat(3), CSR.concat([batch.graph.csr] * 3)
    offsets = torch.tensor([0, 80, 160, 240])
    with torch.no_grad():
        paths = aggregator.train()._first_layer(batch.features, graphs, offsets, same_rows)[0].split(80)
        assert not any(torch.equal(paths[i], paths[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        paths = aggregator.eval()._first_layer(batch.features, graphs, offsets, same_rows)[0].split(80)
        assert torch.equal(paths[0], paths[1])


def test_the_passes_have_dropout_of_their_own():
    torch.manual_seed(0)
    aggregator = create_aggregator("srmil", in_dim=8, mask_rate=0.0).train()
    losses = aggregator.losses(make_batch([300], 8, "window:2"))
    assert (losses["ce_masked"] - losses["ce_full"]).abs() > 1e-4


@pytest.mark.parametrize("drop", ["feat_drop", "attn_drop"])
def test_dropout_can_be_switched_off_afterwards(drop):
    aggregator = create_aggregator(
        "srmil", in_dim=8, **{name: 0.0 for name in ("feat_drop", "attn_drop", "cls_drop")} | {drop: 0.5}
    )
    batch = make_batch([60], 8, "window:2")
    aggregator.train()
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, drop) and not isinstance(getattr(module, drop), torch.nn.Module):
            setattr(module, drop, 0.0)
    assert torch.equal(aggregator(batch).logits, aggregator(batch).logits)


def test_options_are_checked_and_a_graph_is_needed():
    for options, message in [
        ({"hidden": 30}, "multiple of heads"),
        ({"mask_rate": 1.0}, "mask_rate"),
        ({"w_gen": 3.0}, "w_gen"),
        ({"readout": "mean"}, "readout"),
        ({"mask_ratio": 0.5}, "did you mean 'mask_rate'"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("srmil", in_dim=8, **options)
    with pytest.raises(InputError, match="needs a graph"):
        create_aggregator("srmil", in_dim=8)(make_batch([5], 8, None))
