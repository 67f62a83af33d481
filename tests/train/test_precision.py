"""Training and prediction with matrix products in bfloat16."""

import inspect

import pytest
import torch
from helpers import make_bag, make_batch, relative_error

from mil_zoo import create_aggregator, list_aggregators
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.kernels import dropout_linear, onednn, segment_attention_pool
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.predict import mixed, predict


@pytest.mark.parametrize("name", list_aggregators())
def test_every_aggregator_trains_and_predicts(name):
    torch.manual_seed(0)
    # Products in bfloat16 take long on a CPU without instructions for them: narrower models where width is an option.
    narrow = {"embed_dim": 64} if "embed_dim" in inspect.signature(AGGREGATORS.get(name)).parameters else {}
    aggregator = create_aggregator(name, in_dim=32, **narrow)
    batch = make_batch([40, 25], 32, aggregator.graph)
    with mixed("bfloat16", "cpu"):
        losses = aggregator.train().losses(batch)
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    for key, parameter in aggregator.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, key
        assert parameter.grad.isfinite().all(), key
    bags = [make_bag(40, 32, seed=0), make_bag(25, 32, seed=1)]
    for low, full in zip(
        predict(aggregator, bags, aggregator.graph, precision="bfloat16"),
        predict(aggregator, bags, aggregator.graph),
        strict=True,
    ):
        assert low[1].logits.dtype == torch.float32
        assert relative_error(low[2], full[2]) < 0.1


def test_softmax_and_sums_stay_in_float32():
    scores, values, offsets = torch.randn(5000, 1), torch.randn(5000, 3), torch.tensor([0, 5000])
    exact = segment_attention_pool(scores.bfloat16().float(), values, offsets)
    with mixed("bfloat16", "cpu"):
        pooled, attention = segment_attention_pool(scores.bfloat16(), values, offsets)
    assert pooled.dtype == attention.dtype == torch.float32
    assert pooled.equal(exact[0])
    assert attention.equal(exact[1])


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_products_of_dropout_linear_are_taken_in_bfloat16(backend):
    x, weight = torch.randn(300, 64), torch.randn(8, 64)
    (exact,) = dropout_linear(x, weight, backend=backend)
    with mixed("bfloat16", "cpu"):
        (low,) = dropout_linear(x, weight, backend=backend)
    assert low.dtype == torch.float32
    assert 1e-4 < relative_error(low, exact) < 0.02


def test_fit_follows_the_configuration():
    bags = [make_bag(20, 8, label=i % 2, seed=i) for i in range(4)]
    weights = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        aggregator = create_aggregator("abmil", in_dim=8)
        fit(aggregator, bags, bags, TrainingConfig(epochs=1, precision=precision))
        weights[precision] = aggregator.attention.V.weight.detach()
    assert 0 < relative_error(weights["bfloat16"], weights["float32"]) < 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, it decides")
@pytest.mark.parametrize(
    ("flags", "expected"), [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx512f", "float32")]
)
def test_auto_becomes_what_the_cpu_multiplies_faster(flags, expected, monkeypatch):
    monkeypatch.setattr(onednn, "_cpu", lambda: f"vendor_id : any\nflags : fma {flags} sse\n")
    onednn.multiplies_bfloat16.cache_clear()
    config = TrainingConfig(precision="auto")
    onednn.multiplies_bfloat16.cache_clear()
    assert config.precision == config.settings()["precision"] == expected
