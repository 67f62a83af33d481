"""Slide embeddings and their two files."""

import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo import BagBatch, InputError
from mil_zoo.ssl.config import PretrainConfig
from mil_zoo.ssl.embed import embed_slides, read_embeddings, write_embeddings
from mil_zoo.ssl.model import SlideEncoder
from mil_zoo.ssl.views import BagSource


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SlideEncoder(4, PretrainConfig(out_dim=5, instances=7, views=6))


def test_a_slides_embedding_is_its_own(encoder):
    bags = [make_bag(n, 4, seed=n) for n in (1, 9, 60)]
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    together = embed_slides(encoder, BagSource(bags))
    alone = torch.cat([embed_slides(encoder, BagSource([bag])) for bag in bags])
    assert torch.equal(together, alone)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not torch.equal(together, embed_slides(encoder, BagSource(bags), seed=1))


def test_many_views_of_all_instances_approach_the_slide(encoder):
    """Views of a slide with one instance are that instance: their mean is the embedding of the slide itself."""
    bag = make_bag(1, 4)
    direct = encoder.eval()(BagBatch.from_bags([bag]))
    torch.testing.assert_close(embed_slides(encoder, BagSource([bag]), views=3), direct)


def test_other_features_are_refused(encoder):
    with pytest.raises(InputError, match="3 features a patch, the encoder was made for 4"):
        embed_slides(encoder, BagSource([make_bag(5, 3)]))


def test_the_authors_files(tmp_path):
    embeddings, ids = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), ["a", "b.1", "ü"]
    write_embeddings(tmp_path / "new", embeddings, ids)
    got, names = read_embeddings(tmp_path / "new")
    assert names == ids
    assert np.array_equal(got, embeddings)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["embeddings.npy", "ids.npy"]
    # As their inference script writes them: float64 and a list of names.
    np.save(tmp_path / "embeddings.npy", embeddings.astype(np.float64))
    np.save(tmp_path / "ids.npy", ids)
    assert read_embeddings(tmp_path)[1] == ids


@pytest.mark.parametrize(
    ("embeddings", "ids", "message"),
    [
        (None, ["a"], r"embeddings\.npy: no such file"),
        (np.zeros((2, 3)), ["a"], "one name a slide"),
        (np.zeros(2), ["a", "b"], r"float \[slides, dimensions\]"),
        (np.zeros((2, 3)), ["a", "a"], "names slide 'a' twice"),
        (np.array([[0.0], [np.nan]]), ["a", "b"], "the embedding of slide 'b' is not finite"),
        (np.array([[0.0], [1e300]]), ["a", "b"], "the embedding of slide 'b' is not finite in 32 bits"),
        (np.zeros((2, 0)), ["a", "b"], "embeddings have 0 dimensions"),
        (np.zeros((1, 1)), np.array(["a"], dtype=object), r"ids\.npy is not a readable"),
    ],
)
def test_wrong_files(tmp_path, embeddings, ids, message):
    if embeddings is not None:
        np.save(tmp_path / "embeddings.npy", embeddings)
    np.save(tmp_path / "ids.npy", ids, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path)


def test_a_file_that_is_no_encoder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        SlideEncoder.load(tmp_path / "absent.safetensors")
    (tmp_path / "wrong.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not the encoder of a pretraining"):
        SlideEncoder.load(tmp_path / "wrong.safetensors")
