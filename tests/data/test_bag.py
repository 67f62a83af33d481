"""Bags and packed batches: shapes, checks, cached graphs."""

import numpy as np
import pytest
import torch
from helpers import make_bag, needs_dgl

from mil_zoo import Bag, BagBatch, InputError
from mil_zoo.data import bag as bag_module
from mil_zoo.graph import BagGraph, build, build_csr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((0, 3))}, "slide 's1': the bag is empty"),
        ({"features": np.zeros(3)}, r"features must be \[patches, dimensions\], not \(3,\)"),
        (
            {"features": np.array([[1.0, np.nan], [0, 0], [np.inf, 0]])},
            "NaN or infinite in 2 of 3 patches .first: patch 0",
        ),
        ({"coords": np.zeros((2, 2))}, r"coords have shape \(2, 2\) where \(3, 2\)"),
        ({"coords": np.full((3, 2), np.nan)}, "coords hold NaN"),
        ({"instance_labels": np.zeros(4)}, r"instance_labels have shape \(4,\)"),
        ({"patch_size": -256.0}, "patch_size must be positive"),
        (
            {"patch_size": np.array([256, 256])},
            r"patch_size must be positive, and one number, not array\(\[256, 256\]\)",
        ),
        ({"patch_size": "256"}, "patch_size must be positive, and one number, not '256'"),
        ({"features": "s1.h5"}, "slide 's1': features are no numbers that an array holds but 's1.h5'; give a tensor"),
        ({"features": [[1.0, 2.0], [3.0]]}, "features are no numbers that an array holds"),
        ({"features": None}, "features are no numbers that an array holds but None"),
        ({"features": np.ones((3, 2), complex)}, "features are complex numbers"),
        ({"coords": [["a", "b"]] * 3}, "coords are no numbers"),
        ({"instance_labels": ["tumour", "", ""]}, "instance_labels are no numbers"),
    ],
)
def test_malformed_bags_are_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        Bag(**{"features": np.zeros((3, 2)), "slide_id": "s1"} | change)


def test_large_half_precision_features_are_not_mistaken_for_infinite():
    features = torch.full((2000, 64), 60_000.0, dtype=torch.float16)  # their sum overflows float16
    assert Bag(features=features).features.dtype == torch.float16


def test_packing():
    bags = [make_bag(n, 4, label=n % 3, seed=n) for n in (5, 1, 7)]
    batch = BagBatch.from_bags(bags, graph="window:2")
    assert len(batch) == 3
    assert batch.offsets.tolist() == [0, 5, 6, 13]
    assert batch.sizes.tolist() == [5, 1, 7]
    assert batch.bag_index.tolist() == [0] * 5 + [1] + [2] * 7
    assert batch.labels.tolist() == [2, 1, 1]
    assert batch.slide_ids == ("slide_5", "slide_1", "slide_7")
    for i, bag in enumerate(bags):
        rows = slice(batch.offsets[i], batch.offsets[i + 1])
        assert batch.features[rows].equal(bag.features)
        assert batch.coords[rows].equal(bag.coords)


@needs_dgl
def test_the_batched_graph_is_the_graphs_side_by_side():
    from mil_zoo._dgl import dgl

    bags = [make_bag(n, 4, seed=n) for n in (5, 1, 30)]
    graph = BagBatch.from_bags(bags, graph="window:2").graph
    assert graph.num_nodes == (5, 1, 30)
    assert graph.dgl.batch_num_nodes().tolist() == [5, 1, 30]
    assert sum(graph.num_edges) == graph.dgl.num_edges() == graph.csr.num_edges
    for bag, part in zip(bags, dgl.unbatch(graph.dgl), strict=True):
        alone = build(bag.coords, "window:2", patch_size=256.0)
        edges, expected = (set(zip(*(side.tolist() for side in g.edges()), strict=True)) for g in (part, alone))
        assert edges == expected


def test_a_batch_lacks_what_a_bag_lacks():
    with_all, without = make_bag(4, 3), Bag(features=torch.zeros(2, 3))
    batch = BagBatch.from_bags([with_all, without])
    assert batch.labels is None
    assert batch.coords is None
    assert batch.graph is None
    with pytest.raises(InputError, match="use one encoder"):
        BagBatch.from_bags([with_all, Bag(features=torch.zeros(2, 5), slide_id="other")])
    with pytest.raises(InputError, match="at least one bag"):
        BagBatch.from_bags([])
    with pytest.raises(InputError, match=r"slide 'x': graph 'window:2' needs coords"):
        BagBatch.from_bags([Bag(features=torch.zeros(2, 5), slide_id="x")], graph="window:2")


def test_a_graph_is_built_once_and_kept_across_epochs(monkeypatch):
    built = []
    counting = lambda *args, **kwargs: built.append(args[1]) or build_csr(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(bag_module, "build_csr", counting)
    bag = make_bag(20, 3)
    for _ in range(3):
        BagBatch.from_bags([bag], graph="window:2")
    assert built == ["window:2"]
    other = bag.with_features(bag.features * 2)  # coordinates did not change: no new window graph
    BagBatch.from_bags([other], graph="window:2")
    assert built == ["window:2"]
    bag.graph("feature_knn:3")
    bag.with_features(bag.features * 2).graph("feature_knn:3")
    assert built == ["window:2", "feature_knn:3", "feature_knn:3"]


def test_one_graph_is_packed_as_it_is():
    csr = build_csr(make_bag(20, 3).coords, "window:2", patch_size=256.0)
    assert BagGraph.batch([csr]).csr is csr


def test_to_moves_every_tensor():
    batch = BagBatch.from_bags([make_bag(4, 3)], graph="window:2").to("meta")
    assert {
        t.device.type for t in (batch.features, batch.offsets, batch.labels, batch.coords, batch.graph.csr.indptr)
    } == {"meta"}
    assert batch.to("meta") is batch


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(">f4"),
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(np.longdouble),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.tolist(),
    ],
    ids=["big-endian", "reversed", "longdouble", "every second column", "list"],
)
def test_arrays_are_read_as_users_have_them(form):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    coords = np.array([[0, 0], [256, 0], [0, 256], [256, 256]])
    bag = Bag(features=form(x), coords=coords.astype(">i8"), patch_size=256, label=0)
    assert bag.features.float().numpy().tolist() == x.tolist()
    assert bag.coords.numpy().tolist() == coords.tolist()


def test_a_bag_says_what_it_is_of_on_one_line():
    bag = Bag(features=np.ones((1200, 3)), coords=np.zeros((1200, 2)), patch_size=256, label=1, slide_id="s1")
    assert repr(bag) == "Bag('s1', 1,200 instances of 3 features, coords, patch_size 256 px, label 1)"
    assert repr(Bag(features=np.ones((1, 3)), target=[2.0])) == (
        "Bag('', 1 instances of 3 features, no coords, target [2.0])"
    )
