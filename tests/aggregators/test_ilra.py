"""ILRA against values computed with its authors' code, and against plain multi-head attention for a higher rank."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator

GOLDEN = Golden("ilra")
OPTIONS = {"embed_dim": 32, "num_heads": 4, "topk": 1}


def test_logits_alone_and_inside_a_batch():
    aggregator = GOLDEN.create("ilra", **OPTIONS)
    others = [make_bag(n, 24, seed=n) for n in (11, 40)]
    with torch.no_grad():
        alone = aggregator(BagBatch.from_bags([GOLDEN.bag()]))
        inside = aggregator(BagBatch.from_bags([others[0], GOLDEN.bag(), others[1]]))
    assert_close(alone.logits, GOLDEN["logits_eval"], "logits")
    assert_close(inside.logits[1:2], GOLDEN["logits_eval"], "logits in a batch")
    assert_close(inside.head_attention[11 : 11 + 37], alone.head_attention, "attention in a batch")


def test_loss_and_every_gradient():
    aggregator = GOLDEN.create("ilra", **OPTIONS).train()
    loss = aggregator.losses(BagBatch.from_bags([GOLDEN.bag()]))["loss"]
    loss.backward()
    assert_close(loss.detach(), GOLDEN["loss"], "loss")
    assert_gradients(aggregator, GOLDEN, "ilra", **OPTIONS)


def cross_attention(layer, query, key):
    """A layer of the aggregator by torch's own multi-head attention, for one bag; also the weights of each head."""
    q, k, v = (fc(x) for fc, x in ((layer.fc_q, query), (layer.fc_k, key), (layer.fc_v, key)))
    torch_layer = torch.nn.MultiheadAttention(q.shape[1], layer.heads)
    torch_layer.load_state_dict(
        {
            "in_proj_weight": layer.in_proj.weight,
            "in_proj_bias": layer.in_proj.bias,
            "out_proj.weight": layer.out_proj.weight,
            "out_proj.bias": layer.out_proj.bias,
        }
    )
    attended, weights = torch_layer(q[:, None], k[:, None], v[:, None], average_attn_weights=False)
    out = layer.ln0(q + attended[:, 0])
    out = layer.ln1(out + F.relu(layer.fc_o(out)))
    return (out if layer.gate is None else out * F.silu(layer.gate(query))), weights[0]  # [H, queries, keys]


def test_rank_three_is_attention_through_three_tokens():
    torch.manual_seed(0)
    aggregator = create_aggregator("ilra", in_dim=10, num_classes=3, embed_dim=12, num_heads=2, topk=3)
    torch.nn.init.normal_(aggregator.pooling.mha.in_proj.bias)
    batch = make_batch([20, 1, 33], 10, None)
    output = aggregator(batch)
    for i, x in enumerate(batch.features.split([20, 1, 33])):
        for block in aggregator.gab_blocks:
            summary, _ = cross_attention(block.project_forward, block.latent[0], x)
            x, _ = cross_attention(block.project_backward, x, summary)
        seeds, weights = cross_attention(aggregator.pooling.mha, aggregator.pooling.S[0], x)
        assert_close(output.logits[i], aggregator.classifier(seeds).mean(0), "logits")
        heads = output.head_attention.split([20, 1, 33])[i]
        assert_close(heads, weights.permute(2, 1, 0).flatten(1), "attention of each seed and head")
        assert_close(output.attention.split([20, 1, 33])[i], weights.mean((0, 1)), "attention")


def test_options_are_checked():
    for options, message in [({"embed_dim": 30}, "multiple of num_heads"), ({"topk": 0}, "topk must be positive")]:
        with pytest.raises(InputError, match=message):
            create_aggregator("ilra", in_dim=8, **options)
