"""ABMILX against values computed with its authors' code."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from mil_zoo import BagBatch, InputError, create_aggregator

SHARED = {"num_classes": 3, "embed_dim": 32, "num_heads": 4, "dropout": 0.0}
CASES = {
    "abmilx": {},
    "abmilx_ffn": {"ffn": True, "norm": "ln", "bias": False, "attention_bias": False, "act": "relu"},
    "abmilx_plain": {"refine": False, "attention_bias": False},
}


@pytest.fixture(params=CASES)
def case(request):
    golden, options = Golden(request.param), SHARED | CASES[request.param]
    return golden, golden.create("abmilx", **options), options


def test_outputs_losses_and_every_gradient(case):
    golden, aggregator, options = case
    batch, seen = BagBatch.from_bags([golden.bag()]), {}
    for key in ("feature", "scorer", "refinement"):
        if (module := getattr(aggregator, key)) is not None:
            module.register_forward_hook(lambda module, inputs, output, key=key: seen.update({key: output}))
    output = aggregator(batch)
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.head_attention, golden["attention_eval"].T, "attention")
    assert_close(output.attention, golden["attention_eval"].mean(0), "mean attention")
    assert_close(seen["feature"], golden["feature"], "feature")
    assert_close(seen["scorer"][:, :, 0], golden["score"].T, "score")
    if "refined_score" in golden.arrays:
        assert_close(seen["refinement"], golden["refined_score"].T, "refined score")
    loss = aggregator.losses(batch)["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "abmilx", **options)


def test_inside_a_batch(case):
    golden, aggregator, _ = case
    others = [make_bag(n, 24, seed=n) for n in (11, 1)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
    assert_close(output.logits[1:2], golden["logits_eval"], "logits in a batch")
    assert_close(output.head_attention[11:71], golden["attention_eval"].T, "attention in a batch")


def test_smaller_bags(case):
    golden, aggregator, _ = case
    bags = [golden.bag().subset(torch.arange(int(n))) for n in golden["first_sizes"]]
    with torch.no_grad():
        assert_close(
            aggregator(BagBatch.from_bags(bags)).logits, golden["logits_first"], "logits of the first instances"
        )


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t))])
        return out


def test_a_training_step_holds_no_matrix_of_all_pairs():
    aggregator, batch = create_aggregator("abmilx", 4, embed_dim=16, num_heads=2).train(), make_batch([4000], 4, None)
    with LargestTensor() as largest:
        aggregator.losses(batch)["loss"].backward()
    assert largest.numel <= 2**20  # of 16 million pairs


def test_the_scorer_s_width():
    for ratio, width in {None: 16, 4: 4, 64: 32}.items():
        aggregator = create_aggregator("abmilx", 4, embed_dim=32, num_heads=2, attention_ratio=ratio)
        assert aggregator.scorer[0].out_features == width
    for options, message in (
        ({"attention_ratio": 9, "embed_dim": 16}, "leaves the scorer no width"),
        ({"num_heads": 5}, r"embed_dim \(512\) must be a multiple of num_heads \(5\)"),
        ({"norm": "bn"}, "norm must be 'ln' or None, not 'bn'"),
    ):
        with pytest.raises(InputError, match=message):
            create_aggregator("abmilx", 4, **options)
