"""Pretraining: it learns, it is repeatable, it goes on where it was killed, and it says what is wrong."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_bag

from mil_zoo import Bag, InputError
from mil_zoo.data.labelled import Standardiser
from mil_zoo.report.figures.pretraining_curves import draw_pretraining
from mil_zoo.ssl.config import PretrainConfig
from mil_zoo.ssl.embed import embed_slides
from mil_zoo.ssl.model import SlideEncoder, spread
from mil_zoo.ssl.pretrain import Monitor, learning_rate, pretrain
from mil_zoo.ssl.views import AugmentationStore, BagSource, write_augmentations
from mil_zoo.train.steps import Diverged

SMALL = {
    "out_dim": 16,
    "projection_dim": 8,
    "instances": 6,
    "views": 4,
    "batch_size": 16,
    "warmup_epochs": 1,
    "learning_rate": 0.3,
}


def kinds_of_slides(number: int = 12, dim: int = 6) -> list[Bag]:
    """Slides whose features lie around a point of their own."""
    rng = np.random.default_rng(0)
    bags = [make_bag(25, dim, seed=i) for i in range(number)]
    return [bag.with_features(bag.features + 3 * torch.from_numpy(rng.normal(size=dim)).float()) for bag in bags]


def test_it_learns_to_tell_slides_apart():
    bags = kinds_of_slides()
    config = PretrainConfig(epochs=40, **SMALL)
    monitor = Monitor([i % 2 for i in range(12)], [bag.slide_id for bag in bags])
    encoder, rows = pretrain(BagSource(bags), 6, config, monitor=monitor)
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    assert [row["epoch"] for row in rows] == list(range(1, 41))
    looked = [row["epoch"] for row in rows if "embedding_spread" in row]
    assert looked == list(range(4, 41, 4))
    assert all(0 <= row["knn_accuracy"] <= 1 for row in rows if "knn_accuracy" in row)
    embeddings = embed_slides(encoder, BagSource(bags))
    assert embeddings.shape == (12, 16)
    assert spread(embeddings) > 0.1


def test_an_interrupted_pretraining_ends_the_same(tmp_path):
    source = BagSource(kinds_of_slides())
    config = PretrainConfig(backbone="abmil", options={"embed_dim": 8}, epochs=6, **SMALL)
    whole, rows = pretrain(source, 6, config)

    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 4:
            raise Killed

    with pytest.raises(Killed):
        pretrain(source, 6, config, folder=tmp_path, checkpoint_seconds=0, on_epoch=kill)
    assert list(pd.read_csv(tmp_path / "curve.csv")["epoch"]) == [1, 2, 3]
    seen = []
    encoder, again = pretrain(source, 6, config, folder=tmp_path, on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == [4, 5, 6]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]
    for name, value in whole.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    loaded = SlideEncoder.load(tmp_path / "encoder.safetensors")
    assert loaded.config == config
    assert torch.equal(embed_slides(loaded, source), embed_slides(whole, source))

    with pytest.raises(InputError, match=r"pretraining of other settings \(epochs: 6 there, 7 now\)"):
        pretrain(source, 6, PretrainConfig(**vars(config) | {"epochs": 7}), folder=tmp_path)
    with pytest.raises(InputError, match="slides: 12 there, 11 now"):
        pretrain(BagSource(kinds_of_slides(11)), 6, config, folder=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not a checkpoint of this pretraining"):
        pretrain(source, 6, config, folder=tmp_path)


def test_a_backbone_with_a_graph_and_a_store(tmp_path):
    bags = kinds_of_slides(4)
    config = PretrainConfig(backbone="srmil", options={"hidden": 8, "heads": 2}, epochs=1, **SMALL)
    encoder, _ = pretrain(BagSource(bags), 6, config)
    assert encoder.graph == "window:2"
    assert embed_slides(encoder, BagSource(bags)).shape[0] == 4
    for bag in bags:
        write_augmentations(tmp_path, bag.slide_id, [(bag.features.numpy() + a, bag.coords.numpy()) for a in (0, 1)])
    store = AugmentationStore(tmp_path)
    _, rows = pretrain(store, 6, PretrainConfig(epochs=2, downsample=256, **SMALL))
    assert math.isfinite(rows[-1]["loss"])


def test_the_standardiser_belongs_to_the_encoder(tmp_path):
    bags = kinds_of_slides()
    standardise = Standardiser.fit(bags)
    config = PretrainConfig(epochs=1, **SMALL)
    inside, _ = pretrain(BagSource(bags), 6, config, standardiser=standardise, folder=tmp_path)
    outside, _ = pretrain(BagSource([standardise(bag) for bag in bags]), 6, config)
    loaded = SlideEncoder.load(tmp_path / "encoder.safetensors")
    expected = embed_slides(outside, BagSource([standardise(bag) for bag in bags]))
    for encoder in (inside, loaded):
        torch.testing.assert_close(embed_slides(encoder, BagSource(bags)), expected, rtol=1e-3, atol=1e-3)


def test_the_rate_rises_and_falls():
    config = PretrainConfig(epochs=30, learning_rate=0.04, warmup_epochs=10)
    rates = [learning_rate(config, step, 3, 192) for step in range(90)]
    assert rates[0] == 0
    assert rates[29:31] == pytest.approx([0.01, 0.01])
    assert np.all(np.diff(rates[:30]) > 0)
    assert np.all(np.diff(rates[30:]) < 0)
    assert rates[60] == pytest.approx(0.005)
    assert rates[-1] < 1e-4
    assert learning_rate(PretrainConfig(epochs=1), 0, 1, 256) == 0.03  # no room for a warm-up


def test_mixed_precision_learns_too():
    config = PretrainConfig(epochs=20, precision="bfloat16", **SMALL)
    _, rows = pretrain(BagSource(kinds_of_slides()), 6, config)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_what_is_wrong_is_said():
    bags = kinds_of_slides(3)
    config = PretrainConfig(epochs=1, **SMALL)
    three, _ = pretrain(BagSource(bags), 6, PretrainConfig(**vars(config) | {"batch_size": 2}))  # not 2 and 1
    assert embed_slides(three, BagSource(bags)).shape == (3, 16)
    with pytest.raises(InputError, match="at least two, not 1"):
        pretrain(BagSource(bags[:1]), 6, config)
    bare = [Bag(features=bag.features, slide_id=bag.slide_id) for bag in bags]
    with pytest.raises(InputError, match="needs coordinates for every slide"):
        pretrain(BagSource(bare), 6, config)
    pretrain(BagSource(bare), 6, PretrainConfig(backbone="mean", epochs=1, **SMALL))  # an aggregator does without
    wild = PretrainConfig(**vars(config) | {"epochs": 30, "warmup_epochs": 0, "learning_rate": 1e37})
    with pytest.raises(Diverged, match="the loss became nan in epoch 2; lower learning_rate"):
        pretrain(BagSource(bags), 6, wild)
    with pytest.raises(InputError, match="batch_size must be at least 2"):
        PretrainConfig(batch_size=1)
    with pytest.raises(InputError, match="instances of the pretraining must be positive"):
        PretrainConfig(instances=0)
    with pytest.raises(InputError, match="unknown aggregator 'abmill'"):
        pretrain(BagSource(bags), 6, PretrainConfig(backbone="abmill"))
    with pytest.raises(InputError, match="sparse encoder has no options"):
        SlideEncoder(6, PretrainConfig(options={"width": 3}))


def test_spread_shows_a_collapse():
    generator = torch.Generator().manual_seed(0)
    assert spread(torch.ones(50, 8)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(2000, 64, generator=generator)).item() == pytest.approx(1, abs=0.02)


def test_the_figure_needs_the_curve_only(tmp_path):
    with pytest.raises(InputError, match=r"holds no curve\.csv"):
        draw_pretraining(tmp_path, "nothing")
    table = {"epoch": [1], "loss": [2.0], "spread": [0.9], "embedding_spread": [0.1]}
    pd.DataFrame(table).to_csv(tmp_path / "curve.csv", index=False)
    assert draw_pretraining(tmp_path, "one epoch").stat().st_size > 5000
