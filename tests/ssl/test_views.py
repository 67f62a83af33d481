"""Views of slides and the store of augmentations."""

import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo import Bag, InputError
from mil_zoo.ssl.views import AugmentationStore, BagSource, augment_locations, draw_views, write_augmentations


def test_locations_are_turned_flipped_scaled_moved_and_floored():
    triangle = torch.tensor([[0.0, 0.0], [20000.0, 0.0], [0.0, 10000.0]])
    determinants, angles, lengths = [], [], []
    for seed in range(400):
        moved = augment_locations(triangle, np.random.default_rng(seed)).double()
        assert torch.equal(moved, moved.floor())
        first, second = (moved[1:] - moved[0]).numpy() / [[20000], [10000]]  # rows of R F S
        determinants.append(np.linalg.det([first, second]))
        angles.append(np.arctan2(first[1], first[0]))
        lengths.append((np.hypot(first[0], second[0]), np.hypot(first[1], second[1])))  # column lengths: the scales
    lengths = np.array(lengths)
    assert lengths.min() > 0.699
    assert lengths.max() < 1.301
    assert abs(np.corrcoef(lengths.T)[0, 1]) < 0.15  # each axis has its own scale
    assert (lengths.min(), lengths.max()) == pytest.approx((0.7, 1.3), abs=0.02)
    assert 0.4 < np.mean(np.array(determinants) < 0) < 0.6  # one flip turns the orientation round, two do not
    counts = np.histogram(angles, bins=8, range=(-np.pi, np.pi))[0]
    assert counts.min() > 25  # of 50


def test_views_belong_to_slide_and_seed():
    bags = [make_bag(50, 4, seed=i) for i in range(3)]
    source, turned = BagSource(bags), BagSource(bags[::-1])
    first = draw_views(source, 0, 5, [7, 1])
    again = draw_views(turned, 2, 5, [7, 1])
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.features, other.features)
        assert torch.equal(one.coords, other.coords)
    other_epoch = draw_views(source, 0, 5, [7, 2])
    assert not torch.equal(first[0].features, other_epoch[0].features)
    assert not torch.equal(first[0].features, first[1].features)
    rows = {tuple(row) for row in bags[0].features.tolist()}
    assert all(tuple(row) in rows for view in first for row in view.features.tolist())
    assert all(len(view) == 5 and view.patch_size == 256 for view in first)


def test_a_slide_of_one_instance_and_one_without_coordinates():
    (view, _) = draw_views(BagSource([make_bag(1, 4)]), 0, 5, [0])
    assert (view.features == view.features[0]).all()
    assert (view.coords == view.coords[0]).all()
    bare = Bag(features=torch.randn(6, 4))
    assert all(view.coords is None for view in draw_views(BagSource([bare]), 0, 5, [0]))


def make_store(folder, slides=("a", "b"), augmentations=3):
    """Features of augmentation a are a, a + 0.5, ...: a view shows which it came from."""
    for slide in slides:
        sets = [
            (np.full((10, 2), a, np.float16) + np.arange(2, dtype=np.float16) / 2, np.arange(20).reshape(10, 2))
            for a in range(augmentations)
        ]
        write_augmentations(folder, slide, sets)
    return folder


def test_all_instances_of_a_view_are_of_one_augmentation(tmp_path):
    store = AugmentationStore(make_store(tmp_path))
    assert (store.slide_ids, store.in_dim, store.patch_size) == (["a", "b"], 2, None)
    seen = set()
    for epoch in range(30):
        first, second = draw_views(store, 1, 4, [0, epoch])
        assert first.slide_id == "b"
        assert first.features.dtype == torch.float32
        for view in (first, second):
            (augmentation,) = set(view.features[:, 0].tolist())
            seen.add(augmentation)
    assert seen == {0, 1, 2}
    (tmp_path / "patch_size.txt").write_text("2\n")
    store = AugmentationStore(tmp_path, ["b"])
    assert store.slide_ids == ["b"]
    assert draw_views(store, 0, 4, [0])[0].patch_size == 2


def test_a_store_that_is_wrong(tmp_path):
    with pytest.raises(InputError, match="is no store of augmentations"):
        AugmentationStore(tmp_path)
    make_store(tmp_path)
    with pytest.raises(InputError, match="holds no slide 'c'"):
        AugmentationStore(tmp_path, ["c"])
    np.save(tmp_path / "coordinates" / "a" / "1.npy", np.zeros((3, 2)))
    store = AugmentationStore(tmp_path)
    with pytest.raises(InputError, match="augmentation 1 of slide 'a' has tiles"):
        [draw_views(store, 0, 4, [0, epoch]) for epoch in range(20)]
    (tmp_path / "tiles" / "a" / "1.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(InputError, match=r"1\.npy is not a readable"):
        [draw_views(store, 0, 4, [0, epoch]) for epoch in range(20)]
    (tmp_path / "coordinates" / "a" / "2.npy").unlink()
    with pytest.raises(InputError, match=r"slide 'a' has augmentations 0, 1, 2 in tiles and 0, 1 in coordinates"):
        AugmentationStore(tmp_path)
    with pytest.raises(InputError, match="cannot name a folder"):
        write_augmentations(tmp_path, "../escape", [])
