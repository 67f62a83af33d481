"""The layouts of torchmil, HistoSSL, slideflow, DSMIL, SRMIL, Giga-SSL and bag tables."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from layouts import (
    FEATURES,
    GRID,
    write_clam,
    write_dsmil,
    write_gigassl,
    write_histossl,
    write_npy,
    write_slideflow,
    write_srmil,
    write_torchmil,
    write_trident,
)
from torchmil.datasets import CAMELYON16MILDataset, ProcessedMILDataset, TridentWSIDataset

from mil_zoo import InputError
from mil_zoo.data import find_features, open_dataset, read_bag

ONE_IN_TWO = np.arange(12) % 2


def test_torchmil(tmp_path):
    bag = read_bag(write_torchmil(tmp_path, "a", patch_labels=ONE_IN_TWO[:, None]))
    assert (bag.layout, bag.slide_id, bag.label, bag.patch_size, bag.unit) == ("torchmil", "a", 1, 512.0, "px")
    assert bag.features.tolist() == FEATURES.tolist()
    assert bag.coords.tolist() == GRID.tolist()
    assert bag.instance_labels.tolist() == ONE_IN_TWO.tolist()
    assert read_bag(write_torchmil(tmp_path, "b", patch_labels=ONE_IN_TWO - 1)).instance_labels is None  # -1: unknown
    bag = read_bag(write_torchmil(tmp_path, "c", coords=GRID // 512))
    assert (bag.patch_size, bag.unit) == (1.0, "tile")
    with pytest.raises(InputError, match=r"its label is \[\[0, 1\]\], not one class index"):
        read_bag(write_torchmil(tmp_path, "d", label=[0, 1]).with_name("d.npy"))


def test_torchmil_reads_the_same_values_from_the_same_folders(tmp_path):
    for slide, label in (("a", 1), ("b", 0)):
        features = FEATURES + label
        write_torchmil(tmp_path, slide, features=features, label=label, patch_labels=ONE_IN_TWO * label)
    (tmp_path / "splits.csv").write_text("bag_name,split\na,train\nb,test\n")
    ours = open_dataset(str(tmp_path))
    assert ours.features.name == "UNI"
    assert ours.published_splits[0].test == ("b",)
    for part, bag in zip(("train", "test"), ours.bags, strict=True):
        (theirs,) = CAMELYON16MILDataset(str(tmp_path), "UNI", part)
        assert theirs["X"].tolist() == bag.features.tolist()
        assert int(theirs["Y"]) == bag.label
        assert theirs["y_inst"].tolist() == bag.instance_labels.tolist()
        grid = (bag.coords - bag.coords.min(0).values) / bag.patch_size
        assert theirs["coords"].tolist() == grid.tolist()
    base = tmp_path / "patches_512"
    (first, _) = ProcessedMILDataset(
        f"{base}/features/features_UNI/",
        f"{base}/labels/",
        coords_path=f"{base}/coords/",
        bag_keys=["X", "Y", "coords"],
    )
    assert first["coords"].tolist() == ours.bags[0].coords.tolist()


def test_the_trap_of_torchmil_with_slides_read_below_level_0(tmp_path):
    """It divides coordinates by the size that the encoder saw: no patch of a 40x slide read at 20x has a neighbour."""
    path = write_trident(tmp_path, "a", "uni")
    write_npy(tmp_path / "labels" / "a.npy", np.array([1]))
    base = f"{path.parents[1]}/"
    (theirs,) = TridentWSIDataset(base, f"{tmp_path}/labels/", "uni", bag_keys=["X", "adj", "coords"], patch_size=256)
    ours = read_bag(path)
    assert theirs["X"].tolist() == ours.features.tolist()
    assert theirs["adj"].values().numel() == 0  # no edges
    assert ours.graph("window:1").num_edges > 5 * len(ours)
    ours = read_bag(write_torchmil(tmp_path / "folders", "a", size=256))
    assert ours.patch_size == 512.0
    assert "patches_256 is the size that the encoder saw, 1/2 of it" in ours.geometry
    assert ours.graph("window:1").num_edges > 5 * len(ours)


def test_histossl(tmp_path):
    bag = read_bag(write_histossl(tmp_path, "a.svs"))
    assert (bag.layout, bag.slide_id, bag.patch_size, bag.unit) == ("histossl", "a", 1.0, "tile")
    assert bag.features.tolist() == FEATURES.tolist()
    assert bag.coords[-1].tolist() == [6, 5]
    assert "DeepZoom level 16" in bag.geometry
    write_histossl(tmp_path, "b")
    (found,) = find_features(tmp_path)
    assert (found.layout, sorted(found.files)) == ("histossl", ["a", "b"])
    with pytest.raises(InputError, match="the first three columns must be one DeepZoom level"):
        read_bag(write_npy(tmp_path / "c" / "features.npy", np.random.default_rng(0).normal(size=(5, 20))))


def test_slideflow(tmp_path):
    bag = read_bag(write_slideflow(tmp_path, "a"))
    assert (bag.layout, bag.slide_id, bag.patch_size, bag.unit) == ("slideflow", "a", 512.0, "px")
    assert bag.features.tolist() == FEATURES.tolist()
    assert bag.coords.tolist() == GRID.tolist()
    (found,) = find_features(tmp_path)
    assert (found.layout, sorted(found.files)) == ("slideflow", ["a"])
    np.savez(tmp_path / "a.index.npz", coords=GRID)
    with pytest.raises(InputError, match="'arr_0' of coordinates is missing"):
        read_bag(tmp_path / "a.pt")


def test_dsmil(tmp_path):
    dataset = open_dataset(str(write_dsmil(tmp_path, {"a": 0, "b": 1, "c": 1})))
    assert (dataset.features.layout, dataset.in_dim, len(dataset.bags)) == ("dsmil", 3, 3)
    assert [(bag.slide_id, bag.label) for bag in dataset.bags] == [("a", 0), ("b", 1), ("c", 1)]
    bag = read_bag(tmp_path / "0-class" / "a.csv")
    assert (bag.layout, bag.coords, bag.features.tolist()) == ("dsmil", None, FEATURES.tolist())
    with pytest.raises(InputError, match=r"dataset.csv is in no known layout"):
        read_bag(tmp_path / "dataset.csv")


def test_srmil(tmp_path):
    path = write_srmil(tmp_path / "slides.pkl", {"a": 0, "b": 1})
    dataset = open_dataset(str(tmp_path))
    assert [(bag.slide_id, bag.label, bag.layout) for bag in dataset.bags] == [("a", 0, "srmil"), ("b", 1, "srmil")]
    bag = read_bag(path, slide="b")
    assert (bag.patch_size, bag.unit, bag.coords.tolist()) == (512.0, "px", GRID.tolist())
    assert bag.features.tolist() == FEATURES.tolist()
    assert bag.instance_labels.tolist() == ONE_IN_TWO.tolist()
    assert read_bag(path, slide="b", allow_pickle=True).features.tolist() == FEATURES.tolist()
    with pytest.raises(InputError, match="holds 2 slides; name one of them, for instance slide='a'"):
        read_bag(path)
    with pytest.raises(InputError, match="holds no slide 'bb'; did you mean 'b'"):
        read_bag(path, slide="bb")


class _Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "run"),)


class _Inside:
    """Hides a pickle where ``torch_geometric`` files hold their tensors."""

    def __init__(self, folder):
        self.content = pickle.dumps(_Evil(folder))

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def test_a_pickle_never_runs_code(tmp_path):
    for number, item in enumerate((_Evil(tmp_path), [SimpleNamespace(x=_Evil(tmp_path))], [_Inside(tmp_path)])):
        path = tmp_path / f"evil{number}.pkl"
        path.write_bytes(pickle.dumps(item))
        with pytest.raises(InputError) as error:
            read_bag(path)
        assert not (tmp_path / "run").exists()
        if number < 2:
            assert "asks for posix.mkdir" in str(error.value)
            assert "--allow-pickle" in str(error.value)
    (tmp_path / "cut.pkl").write_bytes(write_srmil(tmp_path / "a.pkl", {"a": 0}).read_bytes()[:200])
    with pytest.raises(InputError, match=r"cut.pkl is not a readable pickle"):
        read_bag(tmp_path / "cut.pkl")


def test_pickles_of_arrays_and_namespaces(tmp_path):
    for protocol in (2, 4, 5):
        items = [SimpleNamespace(x=FEATURES, pos=GRID, graph_y=np.array([[0, 0, 1]]), slide_index=np.int64(7))]
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(items, protocol))
        bag = read_bag(tmp_path / "a.pkl")
        assert (bag.slide_id, bag.label, bag.features.tolist()) == ("7", 2, FEATURES.tolist())
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([SimpleNamespace(pos=GRID)]))
    with pytest.raises(InputError, match=r"object 0 has no x of numbers \(it has pos\)"):
        read_bag(tmp_path / "b.pkl")


def test_a_tensor_file_never_runs_code(tmp_path):
    path = write_clam(tmp_path, "a", pt=True).parents[1] / "pt_files" / "a.pt"
    torch.save(_Evil(tmp_path), path)
    with pytest.raises(InputError, match=r"a.pt holds more than tensors and is not read, because loading it could run"):
        read_bag(path)
    assert not (tmp_path / "run").exists()
    path.write_bytes(b"no tensor")
    with pytest.raises(InputError, match=r"a\.pt"):
        read_bag(path)
    torch.save({"features": torch.zeros(3, 2)}, path)
    with pytest.raises(InputError, match="holds a dict, not one tensor"):
        read_bag(path)


def test_gigassl(tmp_path):
    embeddings = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = write_gigassl(tmp_path, ["a.svs", "b", "c"], embeddings)
    (tmp_path / "labels_cancer.csv").write_text("ID,label,case_id\na,x,p\nb,y,q\nc,y,q\n")
    dataset = open_dataset(str(tmp_path))
    assert (dataset.in_dim, dataset.card.classes, len(dataset.bags)) == (4, ["x", "y"], 3)
    assert [(bag.slide_id, bag.label, bag.patient_id) for bag in dataset.bags] == [
        ("a", 0, "p"),
        ("b", 1, "q"),
        ("c", 1, "q"),
    ]
    assert read_bag(path, slide="b").features.tolist() == embeddings[1:2].tolist()
    np.save(tmp_path / "ids.npy", np.array(["a"]))
    with pytest.raises(InputError, match=r"ids.npy has 1 ids for 3 embeddings"):
        read_bag(path)


def test_bag_tables(tmp_path):
    np.savez(tmp_path / "t.npz", X=FEATURES, bag_ptr=[0, 5, 12], bag_label=[0, 1], bag_name=["a", "b"])
    bag = read_bag(tmp_path / "t.npz", slide="b")
    assert (bag.layout, bag.label, bag.features.tolist()) == ("arrays", 1, FEATURES[5:].tolist())


def test_damaged_arrays_are_named(tmp_path):
    whole = write_torchmil(tmp_path, "a").read_bytes()
    folder = tmp_path / "patches_512" / "features" / "features_UNI"
    (folder / "cut.npy").write_bytes(whole[:150])
    (folder / "none.npy").write_bytes(b"")
    np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object))
    for name in ("cut", "none", "objects"):
        with pytest.raises(InputError, match=rf"{name}\.npy is (not a readable .npy file|empty)"):
            read_bag(folder / f"{name}.npy")
