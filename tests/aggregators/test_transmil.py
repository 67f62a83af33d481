"""TransMIL against values computed with its authors' code, and against dense attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.blocks.nystrom import pseudo_inverse
from mil_zoo.aggregators.transmil import PPEG, NystromAttention

GOLDEN = Golden("transmil")
OPTIONS = {"embed_dim": 32, "landmarks": 16, "heads": 8, "dropout": 0.0}


def test_logits():
    aggregator = GOLDEN.create("transmil", **OPTIONS)
    with torch.no_grad():
        assert_close(aggregator(BagBatch.from_bags([GOLDEN.bag()])).logits, GOLDEN["logits_eval"], "logits")


def test_inside_a_batch():
    aggregator = GOLDEN.create("transmil", **OPTIONS)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], GOLDEN.bag(), others[1]]))
        alone = aggregator(BagBatch.from_bags([GOLDEN.bag()]))
    assert_close(output.logits[1:2], GOLDEN["logits_eval"], "logits")
    rows = slice(11, 11 + len(GOLDEN["feat"]))
    assert_close(output.attention[rows], alone.attention, "attention")
    assert_close(output.head_attention[rows], alone.head_attention, "attention of the heads")


def test_loss_and_every_gradient():
    aggregator = GOLDEN.create("transmil", **OPTIONS).train()
    loss = aggregator.losses(BagBatch.from_bags([GOLDEN.bag()]))["loss"]
    loss.backward()
    assert_close(loss.detach(), GOLDEN["loss"], "loss")
    assert_gradients(aggregator, GOLDEN, "transmil", **OPTIONS)


def dense(layer, x):
    """The approximate attention matrix ``[H, T, T]`` of a layer in full, and the layer's output, zero tokens kept."""
    pad = -len(x) % layer.landmarks
    x = torch.cat([x.new_zeros(pad, x.shape[1]), x])
    q, k, v = (part.view(len(x), layer.heads, -1).transpose(0, 1) for part in layer.to_qkv(x).chunk(3, dim=1))
    q = q / math.sqrt(q.shape[-1])
    q_mean, k_mean = (part.unflatten(1, (layer.landmarks, -1)).mean(2) for part in (q, k))
    left = (q @ k_mean.transpose(1, 2)).softmax(-1)
    middle = (q_mean @ k_mean.transpose(1, 2)).softmax(-1)
    right = (q_mean @ k.transpose(1, 2)).softmax(-1)
    matrix = left @ pseudo_inverse(middle) @ right
    out = (matrix @ v + layer.res_conv(F.pad(v, (0, 0, 16, 16))[None])[0]).transpose(0, 1).flatten(1)
    return matrix[:, pad:, pad:], layer.to_out(out)[pad:]


@pytest.mark.parametrize("tokens", [2, 15, 16, 17, 29, 50])
@pytest.mark.parametrize("rows", [1, 7, None])
def test_nystrom_attention_is_that_of_the_full_matrix(tokens, rows):
    torch.manual_seed(0)
    layer, x = NystromAttention(32, heads=4, landmarks=16, dropout=0.0), torch.randn(tokens, 32)
    rows = min(rows or tokens, tokens)
    with torch.no_grad():
        matrix, expected = dense(layer, x)
        got, row = layer(x, rows, with_attention=True)
    assert_close(got, expected[:rows], "output")
    assert_close(row, matrix[:, 0], "row")


@pytest.mark.parametrize("tokens", [2, 17, 300])
def test_equal_landmarks_are_one_and_nothing_changes(tokens):
    """Outputs and gradients in float64, with 256 landmarks of which 254, 239 and 106 are means of zeros."""
    torch.manual_seed(0)
    layer = NystromAttention(32, heads=4, landmarks=256, dropout=0.0).double()
    x = torch.randn(tokens, 32, dtype=torch.float64, requires_grad=True)
    weight, variables = torch.randn(tokens, 32, dtype=torch.float64), [x, *layer.parameters()]
    expected, got = dense(layer, x)[1], layer(x, tokens)[0]
    assert_close(got, expected, "output")
    for name, a, b in zip(
        ["x", *dict(layer.named_parameters())],
        torch.autograd.grad((got * weight).sum(), variables),
        torch.autograd.grad((expected * weight).sum(), variables),
        strict=True,
    ):
        assert_close(a, b, f"gradient of {name}")


def test_at_full_size_both_layers_are_the_full_matrix():
    """Width 512, 8 heads, 256 landmarks, the defaults: 300 instances on 18 x 18, 325 tokens padded to 512."""
    torch.manual_seed(0)
    aggregator = create_aggregator("transmil", in_dim=64, num_classes=3).eval()
    assert aggregator.layer1.attn.heads == 8
    assert aggregator.layer1.attn.landmarks == 256
    bag = make_bag(300, 64)
    with torch.no_grad():
        h = aggregator.embed(bag.features)
        tokens = torch.cat([aggregator.cls_token[0], h, h[:24]])
        tokens = tokens + dense(aggregator.layer1.attn, aggregator.layer1.norm(tokens))[1]
        tokens = torch.cat([tokens[:1], aggregator.ppeg(tokens[1:], 18)])
        tokens = tokens + dense(aggregator.layer2.attn, aggregator.layer2.norm(tokens))[1]
        output = aggregator(BagBatch.from_bags([make_bag(40, 64, seed=1), bag]))
        assert_close(output.logits[1:], aggregator.classifier(aggregator.norm(tokens[:1])), "logits")


def test_the_pseudo_inverse_inverts():
    torch.manual_seed(0)
    x = (4 * torch.eye(12) + torch.randn(3, 12, 12)).softmax(-1)
    assert_close(pseudo_inverse(x) @ x, torch.eye(12).expand(3, -1, -1))


def test_attention_is_the_class_tokens_row_with_repeats_on_their_originals():
    aggregator, bag = GOLDEN.create("transmil", **OPTIONS), GOLDEN.bag()
    n, side = len(bag), 7
    with torch.no_grad():
        aggregator.layer2.attn.to_qkv.weight *= 8  # sharp enough for negative entries
        output = aggregator(BagBatch.from_bags([bag]))
        h = aggregator.embed(bag.features)
        tokens = torch.cat([aggregator.cls_token[0], h, h[: side**2 - n]])
        tokens = tokens + dense(aggregator.layer1.attn, aggregator.layer1.norm(tokens))[1]
        tokens = torch.cat([tokens[:1], aggregator.ppeg(tokens[1:], side)])
        row = dense(aggregator.layer2.attn, aggregator.layer2.norm(tokens))[0][:, 0, 1:]
    for i in range(n, side**2):
        row[:, i - n] += row[:, i]
    heads, mean = row[:, :n].clamp(min=0), row[:, :n].mean(0).clamp(min=0)
    assert (row[:, :n] < 0).any(), "there is something to set to 0"
    assert_close(output.head_attention, (heads / heads.sum(1, keepdim=True)).T, "attention of the heads")
    assert_close(output.attention, mean / mean.sum(), "attention")


def test_the_position_encoding_is_its_three_convolutions():
    torch.manual_seed(0)
    ppeg, x = PPEG(6), torch.randn(25, 6)
    image = x.T.view(1, 6, 5, 5)
    for conv in ppeg.convolutions:
        reach = conv.kernel_size[0] // 2
        image = image + conv(F.pad(x.T.view(1, 6, 5, 5), 4 * [reach]))
    assert_close(ppeg(x, 5).detach(), image[0].flatten(1).T.detach())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 10])
def test_bags_that_just_miss_a_square(n):
    aggregator = create_aggregator("transmil", in_dim=8, embed_dim=16, landmarks=4).eval()
    output = aggregator(make_batch([n], 8, None))
    assert output.logits.isfinite().all()
    assert_close(output.attention.sum(), 1.0)


def test_a_training_step_stores_nothing_of_size_tokens_times_landmarks():
    n, heads, landmarks = 4000, 4, 64
    aggregator = create_aggregator("transmil", in_dim=8, embed_dim=16, heads=heads, landmarks=landmarks).train()
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.numel()) or t, lambda t: t):
        aggregator.losses(make_batch([n], 8, None))["loss"].backward()
    assert max(stored) < n * heads * landmarks / 4


def test_losses_of_a_batch_are_the_mean_over_its_bags():
    aggregator = GOLDEN.create("transmil", **OPTIONS)
    bags = [make_bag(n, 24, label=n % 2, seed=n) for n in (1, 20, 33)]
    alone = [aggregator.losses(BagBatch.from_bags([bag]))["loss"].detach() for bag in bags]
    assert_close(aggregator.losses(BagBatch.from_bags(bags))["loss"].detach(), sum(alone) / 3)


def test_dropout_can_be_switched_off_afterwards():
    aggregator = create_aggregator("transmil", in_dim=8, embed_dim=16, dropout=0.5).train()
    batch = make_batch([30], 8, None)
    assert not torch.equal(aggregator(batch).logits, aggregator(batch).logits)
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(aggregator(batch).logits, aggregator.eval()(batch).logits)


def test_options_are_checked():
    for options, message in [({"heads": 7}, "multiple of heads"), ({"landmarks": 0}, "landmarks")]:
        with pytest.raises(InputError, match=message):
            create_aggregator("transmil", in_dim=8, **options)


def test_evaluation_in_blocks_is_evaluation_at_once(monkeypatch):
    aggregator = GOLDEN.create("transmil", **OPTIONS)
    batch = BagBatch.from_bags([make_bag(n, aggregator.in_dim, seed=n) for n in (200, 37)])
    with torch.no_grad():
        whole = aggregator(batch)
        monkeypatch.setattr("mil_zoo.aggregators.transmil.BLOCK", 11)  # blocks shorter than the convolution's reach
        blocks = aggregator(batch)
    assert_close(blocks.logits, whole.logits, "logits")
    assert_close(blocks.head_attention, whole.head_attention, "attention of the heads")
