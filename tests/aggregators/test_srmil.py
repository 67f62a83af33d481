"""SRMIL against values computed with its authors' code, and the pieces that code restructures."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.blocks.gat import Packing
from mil_zoo.aggregators.blocks.masking import draw_rows
from mil_zoo.aggregators.srmil.fast import SRMIL, _cosine_to_map
from mil_zoo.aggregators.srmil.literal import LiteralSRMIL
from mil_zoo.aggregators.srmil.readouts import Paths
from mil_zoo.kernels import CSR

GOLDEN = Golden("srmil")
NO_DROPOUT = {"feat_drop": 0.0, "attn_drop": 0.0, "cls_drop": 0.0}
OPTIONS = {"hidden": 32, "heads": 4, "head_hidden": 19, "w_gen": 1.3, "w_ce": 0.7, "alpha": 2.0} | NO_DROPOUT
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


@pytest.fixture(params=["global_node", "attention"])
def pair(request):
    """What runs and what reads like the paper, with the same random weights."""
    options = OPTIONS | {"readout": request.param}
    torch.manual_seed(0)
    literal = LiteralSRMIL(24, 3, **options)
    torch.manual_seed(0)
    return SRMIL(24, 3, **options), literal


def batch_of_three():
    return BagBatch.from_bags(
        [make_bag(n, 24, label=label, seed=n) for label, n in enumerate((40, 1, 23))], graph="window:2"
    )


def test_the_literal_computes_the_golden_values():
    literal = LiteralSRMIL(24, 2, **OPTIONS)
    twin = GOLDEN.create("srmil", **OPTIONS)
    literal.load_state_dict(twin.state_dict())
    batch = BagBatch.from_bags([golden_bag()], graph="window:2")
    output = literal(batch)
    assert_close(output.logits.detach(), GOLDEN["logits_eval"], "logits")
    assert_close(output.head_attention.detach(), GOLDEN["global_attention_eval"], "attention")
    losses = literal.losses(batch, mask=MASK)
    losses["loss"].backward()
    assert_close(losses["loss"].detach(), GOLDEN["loss"], "loss")
    twin.load_published_state_dict(GOLDEN.gradients)
    expected = dict(twin.named_parameters())
    for name, parameter in literal.named_parameters():
        assert_close(parameter.grad, expected[name].detach(), name)


def test_one_seed_gives_the_literal_and_the_fast_the_same_weights(pair):
    fast, literal = (model.state_dict() for model in pair)
    assert list(fast) == list(literal)
    assert all(torch.equal(fast[name], literal[name]) for name in fast)


def test_the_fast_predicts_what_the_literal_does(pair):
    with torch.no_grad():
        fast, literal = (model.eval()(batch_of_three()) for model in pair)
    for name in ("logits", "embedding", "attention"):
        assert_close(getattr(fast, name), getattr(literal, name), name)
    if literal.head_attention is not None:
        assert_close(fast.head_attention, literal.head_attention, "attention of the heads")


def test_the_fast_has_every_loss_and_gradient_of_the_literal(pair):
    batch, mask = batch_of_three(), torch.tensor([0, 3, 5, 11, 39, 41, 50, 60])
    fast, literal = (model.train().losses(batch, mask=mask) for model in pair)
    for name in literal:
        assert_close(fast[name].detach(), literal[name].detach(), name)
    fast["loss"].backward()
    literal["loss"].backward()
    expected = dict(pair[1].named_parameters())
    for name, parameter in pair[0].named_parameters():
        if expected[name].grad.abs().max() > 1e-7:  # else it vanishes, up to rounding
            assert_close(parameter.grad, expected[name].grad, name)


def test_many_masked_patches_of_wide_features_lose_what_they_do_in_the_literal():
    models = []
    for kind in (SRMIL, LiteralSRMIL):
        torch.manual_seed(0)
        models.append(kind(24, 3, **OPTIONS | {"hidden": 8}).train())
    mask, losses = torch.tensor([*range(20), *range(42, 55)]), []
    for model in models:
        losses.append(model.losses(batch_of_three(), mask=mask)["reconstruction"])
        losses[-1].backward()
    assert_close(losses[0].detach(), losses[1].detach(), "reconstruction")
    ours, theirs = (model.decoder.gat_layers[1] for model in models)
    assert_close(ours.fc.weight.grad, theirs.fc.weight.grad, "its last weight")
    assert_close(ours.bias.grad, theirs.bias.grad, "its last bias")


@pytest.mark.parametrize("rows", [40, 300])
def test_the_error_of_what_is_nearly_reconstructed_survives_bfloat16(rows):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(128, 32, generator=generator) / 5, torch.randn(128, generator=generator)
    h = torch.randn(rows, 32, generator=generator) * 0.3
    x = h @ weight.T + bias + 0.1 * torch.randn(rows, 128, generator=generator)
    exact = 1 - torch.nn.functional.cosine_similarity(h.double() @ weight.double().T + bias, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        error = 1 - _cosine_to_map(h, weight, bias, x)
    assert abs(error.mean() / exact.mean() - 1) < 0.01
    assert 0 <= error.min() <= error.max() <= 2


def test_a_seed_masks_the_same_patches_in_both(pair):
    drawn = []
    for model in pair:
        torch.manual_seed(3)
        drawn.append(model.train().losses(batch_of_three())["loss"].detach())
    assert_close(*drawn, "loss")


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
    drawn = draw_rows([1, 10, 33], 0.7, torch.device("cpu"))
    assert len(set(drawn.tolist())) == len(drawn)
    assert torch.bincount(make_batch([1, 10, 33], 8, None).bag_index[drawn], minlength=3).tolist() == [0, 7, 23]


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
    same_rows = Packing(torch.arange(80).repeat(3), aggregator.enc_mask_token[0])
    paths = Paths(CSR.concat([batch.graph.csr] * 3), torch.tensor([0, 80, 160, 240]), packing=same_rows)
    with torch.no_grad():
        trained = aggregator.train()._first_layer(batch.features, paths)[0].split(80)
        assert not any(torch.equal(trained[i], trained[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        evaluated = aggregator.eval()._first_layer(batch.features, paths)[0].split(80)
        assert torch.equal(evaluated[0], evaluated[1])


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
