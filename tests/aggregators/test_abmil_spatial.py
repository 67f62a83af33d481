"""ABMIL with masked reconstruction: the loss by its definition, and prediction as ABMIL's."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, make_batch

from mil_zoo import InputError, create_aggregator
from mil_zoo.aggregators.blocks.masking import draw_rows

SIZES = [30, 1, 12]


def created(**options):
    torch.manual_seed(0)
    return create_aggregator("abmil_spatial", in_dim=6, embed_dim=8, attention_dim=4, hidden=8, heads=2, **options)


def test_it_predicts_as_abmil_does_and_needs_no_graph_for_it():
    spatial = created().eval()
    abmil = create_aggregator("abmil", in_dim=6, embed_dim=8, attention_dim=4).eval()
    abmil.load_state_dict({name: value for name, value in spatial.state_dict().items() if name in abmil.state_dict()})
    batch = make_batch(SIZES, 6, None)
    assert torch.equal(spatial(batch).logits, abmil(batch).logits)
    with pytest.raises(InputError, match="needs a graph"):
        spatial.losses(batch)


def test_the_reconstruction_written_out():
    """Dense attention over each masked patch's neighbours, whose masked ones hold the token."""
    spatial = created(attn_drop=0.0)
    batch = make_batch([14], 6, "window:1", labels=[1])
    rows = torch.tensor([2, 3, 9])
    losses = spatial.losses(batch, rows)
    code = spatial.embed(batch.features).clone()
    code[rows] = spatial.mask_token[0]
    z = spatial.gather(code).view(14, 2, 4)
    indptr, indices = batch.graph.csr.indptr, batch.graph.csr.indices
    errors = []
    for row in rows.tolist():
        sources = indices[indptr[row] : indptr[row + 1]].long()
        scores = (z[sources] * spatial.gather_source).sum(-1) + (z[row] * spatial.gather_target[0]).sum(-1)
        weights = F.leaky_relu(scores, 0.2).softmax(0)
        mixed = (weights[..., None] * z[sources]).sum(0).flatten()
        reconstructed = spatial.reconstruct(spatial.activation(spatial.norm(mixed)))
        errors.append(1 - F.cosine_similarity(reconstructed, batch.features[row], dim=0))
    assert_close(losses["reconstruction"], torch.stack(errors).mean())
    assert_close(losses["loss"], 2 * 0.2 * losses["cross_entropy"] + 1.8 * losses["reconstruction"])


def test_each_bag_is_masked_and_counts_alike():
    spatial = created(attn_drop=0.0, mask_rate=0.5)
    batch = make_batch(SIZES, 6, "window:2")
    rows = draw_rows(SIZES, 0.5, batch.features.device)
    assert torch.bincount(batch.bag_index[rows], minlength=3).tolist() == [15, 0, 6]
    assert len(set(rows.tolist())) == 21
    together = spatial.losses(batch, rows)["reconstruction"]
    first = spatial.losses(make_batch(SIZES[:1], 6, "window:2"), rows[rows < 30])["reconstruction"]
    only_first = spatial.losses(batch, rows[rows < 30])["reconstruction"]
    assert_close(only_first, first / 3)
    assert together > only_first


@pytest.mark.parametrize("options", [{"mask_rate": 1.0}, {"w_gen": 2.1}, {"heads": 3}])
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match="abmil_spatial"):
        create_aggregator("abmil_spatial", in_dim=6, **options)
