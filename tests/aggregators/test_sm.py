"""SmABMIL and SmTransformer against values computed with the authors' package, and Sm against dense matrices."""

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.blocks import smoothing
from mil_zoo.aggregators.blocks.smoothing import Adjacency, Smooth
from mil_zoo.kernels import devices

CASES = {
    "smabmil": ("sm_abmil", {}),
    "smabmil_mid_exact": ("sm_abmil", {}),
    "smabmil_late_fixed": ("sm_abmil", {}),
    "smtransformer": ("sm_transformer", {"act": "tanh", "sm_alpha": "trainable"}),
    "smtransformer_exact": ("sm_transformer", {"act": "tanh", "sm_alpha": "trainable"}),
}
OPTIONS = (
    "att_dim",
    "act",
    "sm_mode",
    "sm_where",
    "sm_steps",
    "spectral_norm",
    "transf_att_dim",
    "heads",
    "layers",
    "add_self",
)


@pytest.fixture(params=CASES)
def case(request):
    golden, (name, options) = Golden(request.param), CASES[request.param]
    options = options | {key: golden[key].item() for key in OPTIONS if key in golden.arrays}
    if "sm_alpha" in golden.arrays:
        alpha = golden["sm_alpha"].item()
        options["sm_alpha"] = alpha if alpha == "trainable" else float(alpha)
    bag = golden.bag(coords=golden["coords"], patch_size=224, label=int(golden["label_binary"][0]))
    return golden, name, options | {"num_classes": 1}, bag


def test_the_adjacency_is_the_authors(case):
    golden, _, _, bag = case
    batch = BagBatch.from_bags([bag], graph="window:1")
    adjacency, expected = Adjacency.of(batch), golden.edges
    assert adjacency.graph.indices.equal(expected.indices)
    assert adjacency.graph.indptr.equal(expected.indptr)
    assert (expected.indptr.diff() == 0).any(), "an isolated patch"
    order = torch.from_numpy(golden["edges"]).long()
    order = torch.argsort(order[1] * len(bag) + order[0])
    assert_close(adjacency.weight, golden["edge_weight"][order.numpy()], "weights")


def test_outputs_losses_and_every_gradient(case):
    golden, name, options, bag = case
    batch, aggregator = BagBatch.from_bags([bag], graph="window:1"), golden.create(name, **options)
    seen = {}
    aggregator.pool.smooth.register_forward_hook(lambda module, inputs, output: seen.update(smooth=output))
    output = aggregator(batch)
    assert_close(output.logits[0], golden["logits_eval"], "logits")
    assert_close(output.embedding, golden["bag_embedding"], "embedding")
    assert_close(output.attention, golden["attention_eval"][0], "attention")
    assert_close(output.attention_logits, golden["attention_logits"][0], "attention logits")
    if "sm_output" in golden.arrays:
        assert_close(seen["smooth"], golden["sm_output"], "Sm")
    loss = aggregator.losses(batch)["loss"]
    loss.backward()
    assert_close(loss.detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, name, **options)


def test_layers(case):
    golden, name, options, bag = case
    if name == "sm_abmil":
        return
    aggregator, seen = golden.create(name, **options), []
    for layer in [*aggregator.layers, aggregator.norm]:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        aggregator(BagBatch.from_bags([bag], graph="window:1"))
    for got, key in zip(seen, ("layer0", "layer1", "encoder"), strict=True):
        assert_close(got, golden[key], key)


def test_inside_a_batch(case):
    golden, name, options, bag = case
    aggregator, others = golden.create(name, **options), [make_bag(n, 24, seed=n) for n in (11, 1)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], bag, others[1]], graph="window:1"))
    assert_close(output.logits[1], golden["logits_eval"], "logits in a batch")
    assert_close(output.attention[11 : 11 + len(bag)], golden["attention_eval"][0], "attention in a batch")


def dense(batch):
    """A of a batch of one bag."""
    graph, n = batch.graph.csr.without_self_loops, batch.num_instances
    w = torch.zeros(n, n, dtype=torch.float64)
    w[graph.destinations, graph.indices.long()] = 1
    scale = w.sum(1).clamp(min=1).rsqrt()
    return scale[:, None] * w * scale


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("q", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("mode", ["approx", "exact"])
def test_smoothing_and_its_gradients_are_those_of_dense_matrices(mode, q, ahead, monkeypatch):
    monkeypatch.setattr(devices, "runs_ahead", lambda device: ahead)
    batch = make_batch([40], 3, "window:1")
    batch.features = batch.features.double()
    a, eye = dense(batch), torch.eye(40, dtype=torch.float64)
    smooth = Smooth(mode, 7, "trainable").double()
    u = batch.features.clone().requires_grad_()
    results = []
    for run in ("ours", "dense"):
        coef = torch.tensor(q, dtype=torch.float64, requires_grad=True)
        smooth.coef = torch.nn.Parameter(coef.detach())
        if run == "ours":
            got, coef = smooth(u, Adjacency.of(batch)), smooth.coef
        elif mode == "exact":
            got = torch.linalg.solve((1 + coef) * eye - coef * a, u)
        else:
            got, share = u, 1 / (1 + coef)
            for _ in range(7):
                got = (1 - share) * u + share * a @ got
        results.append([got, *torch.autograd.grad((got * got.detach().cos()).sum(), (u, coef))])
    tolerance = 1e-5 if ahead and q > 10 else 1e-9  # 64 products where nobody may wait
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_the_modes_agree_for_q_1_alone():
    batch = make_batch([50], 3, "window:1")
    exact, approximate = (Smooth(mode, 200, 0.5)(batch.features, Adjacency.of(batch)) for mode in ("exact", "approx"))
    assert_close(approximate, exact)
    exact, approximate = (Smooth(mode, 200, 0.2)(batch.features, Adjacency.of(batch)) for mode in ("exact", "approx"))
    assert not torch.allclose(approximate, exact, rtol=0.1)


@pytest.mark.parametrize("mode", ["approx", "exact"])
def test_the_only_patch_of_a_bag_stays_and_an_isolated_one_shrinks(mode):
    lonely, pair = make_bag(1, 3), make_bag(3, 3, seed=1)
    pair.coords = torch.tensor([[0.0, 0], [256, 0], [5120, 0]])
    batch = BagBatch.from_bags([lonely, pair], graph="window:1")
    smooth = Smooth(mode, 10, 0.5)(batch.features, Adjacency.of(batch))
    assert smooth[0].equal(batch.features[0])
    assert_close(smooth[3], batch.features[3] / 2)


def test_a_fixed_point_costs_no_more_products(monkeypatch):
    calls = []
    monkeypatch.setattr(Adjacency, "times", lambda self, u, times=Adjacency.times: calls.append(1) or times(self, u))
    batch = make_batch([200, 30], 5, "window:1")
    Smooth("exact", 1, 0.5)(batch.features, Adjacency.of(batch))
    assert 5 < len(calls) < 25 < smoothing.AHEAD


def test_options_are_checked():
    for options, message in {
        ("sm_mode", "near"): "sm_mode must be one of 'approx', 'exact', not 'near'",
        ("sm_steps", 0): "sm_steps positive, not 0",
        ("sm_alpha", 1.0): "sm_alpha must be ",
        ("sm_where", "first"): "sm_where must be one of 'early', 'mid', 'late', not 'first'",
        ("act", "elu"): "act must be",
    }.items():
        with pytest.raises(InputError, match=message):
            create_aggregator("sm_abmil", 8, **dict([options]))
    with pytest.raises(InputError, match=r"heads \(3\) divide transf_att_dim"):
        create_aggregator("sm_transformer", 8, heads=3)
    with pytest.raises(InputError, match="make them equally wide, or set add_self=False"):
        create_aggregator("sm_transformer", 8, layers=2)
