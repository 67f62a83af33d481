"""Folders of feature files: read one at a time, geometry from the file, and one sentence for every fault."""

import h5py
import numpy as np
import pandas as pd
import pytest

from mil_zoo import InputError
from mil_zoo.data import dataset as dataset_module
from mil_zoo.data import open_dataset
from mil_zoo.data.card import DataCard
from mil_zoo.data.readers.h5 import read_h5
from mil_zoo.data.slide_files import count_instances, labels_of, pick, relabel

GRID = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * 512 + 1000  # (x, y), step 512


def write(path, features=None, coords=GRID, names=("features", "coords"), file_attrs=None, **coords_attrs):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = np.arange(len(GRID) * 3, dtype=np.float32).reshape(-1, 3) if features is None else features
    with h5py.File(path, "w") as file:
        file.attrs.update(file_attrs or {})
        file[names[0]] = features
        if coords is not None:
            file[names[1]] = coords
            file["coords"].attrs.update(coords_attrs)
    return path


def test_trident_and_stamp_state_their_geometry(tmp_path):
    bag = read_h5(write(tmp_path / "a.h5", patch_size=256, patch_size_level0=512))
    assert (bag.patch_size, bag.unit, bag.slide_id) == (512.0, "px", "a")
    assert bag.coords.tolist() == GRID.tolist()
    attrs = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224}
    bag = read_h5(write(tmp_path / "b.h5", GRID.astype(np.float16), GRID / 2, ("feats", "coords"), attrs))
    assert (bag.patch_size, bag.unit) == (256.0, "um")
    assert bag.features.dtype.is_floating_point


def test_clam_keeps_its_geometry_in_another_folder_or_nowhere(tmp_path):
    path = write(tmp_path / "h5_files" / "a.h5", np.zeros((1, 12, 3), np.float32), GRID.astype(np.int32))
    bag = read_h5(path)
    assert bag.features.shape == (12, 3)
    assert bag.patch_size == 512  # the median distance of nearest patches
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "patches" / "a.h5", "w") as file:
        file["coords"] = GRID
        file["coords"].attrs.update(patch_size=256, patch_level=1, downsample=[4.0, 4.0])
    assert read_h5(path).patch_size == 1024


def test_a_real_clam_file_has_coordinates_and_no_features(real_data):
    (path,) = (real_data / "coords").glob("TCGA*.h5")
    with pytest.raises(InputError, match=r"no dataset 'features' or 'feats' .it holds coords"):
        read_h5(path)


def test_damaged_and_malformed_files_are_named(tmp_path):
    whole = write(tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("no file of that kind")
    write(tmp_path / "short.h5", coords=GRID[:-1])
    write(tmp_path / "flat.h5", coords=GRID.T)
    write(tmp_path / "nan.h5", np.full((12, 3), np.nan, np.float32))
    write(tmp_path / "empty.h5", np.zeros((0, 3), np.float32), np.zeros((0, 2)))
    for name, message in {
        "cut": "cut.h5 is not a readable feature file",
        "text": "text.h5 is not a readable feature file",
        "short": r"short.h5: coords are \[11, 2\] for 12 feature rows",
        "flat": r"coords are \[2, 12\]",
        "nan": "slide 'nan': features are NaN",
        "empty": "slide 'empty': the bag is empty",
        "none": "none.h5: no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_h5(tmp_path / f"{name}.h5")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(24):
        write(
            tmp_path / "h5_files" / f"TCGA-{i // 2:02d}-{i}.h5",
            (rng.normal(size=(12, 3)) + i // 2 % 2).astype(np.float32),
        )
        write(tmp_path / "patches" / f"TCGA-{i // 2:02d}-{i}.h5", GRID, names=("coords", "other"), coords=None)
    table = pd.DataFrame({"slide_id": [f"TCGA-{i // 2:02d}-{i}" for i in range(24)]})
    table["label"] = ["red" if i // 2 % 2 else "blue" for i in range(24)]
    table["split"] = ["test" if i < 8 else "train" for i in range(24)]
    table.to_csv(tmp_path / "labels.csv", index=False)
    card = DataCard("mine", "Mine", "real", "slides", ["blue", "red"], path=".", bags=24, patient_prefix=7)
    monkeypatch.setattr(dataset_module, "read_card", lambda name: card)
    return tmp_path


def test_slides_are_read_when_they_are_needed(folder):
    dataset = open_dataset("mine", folder)
    bags = dataset.bags
    assert (len(bags), dataset.in_dim, count_instances(bags)) == (24, 3, 288)
    assert labels_of(bags)[:4] == [0, 0, 1, 1]
    assert bags[3].patient_id == "TCGA-01"
    assert bags[3].graph("window:2") is bags[3].graph("window:2")  # read twice, built once
    chosen = pick(bags, ["TCGA-01-3", "TCGA-00-0"])
    assert [bag.slide_id for bag in chosen] == ["TCGA-01-3", "TCGA-00-0"]
    assert [bag.label for bag in relabel(chosen, [0, 1])] == [0, 1]
    assert dataset.published_folds.shape == (1, 1, 24)


def test_a_bench_on_a_folder_of_slides_with_its_official_split(folder, run_cli):
    code, _, err = run_cli(
        "bench", "--dataset", "mine", "--root", folder, "--models", "abmil,srmil", "--folds", "published",
        "--seeds", "0,1", "--epochs", 2, "--set", "srmil.hidden=8", "--permute-labels", "--class-weights", "balanced",
        "--out", folder / "run",
    )  # fmt: skip
    assert (code, err) == (0, "")
    predictions = pd.read_csv(folder / "run" / "trials" / "srmil-r0-f0-s1" / "predictions.csv")
    test = predictions[predictions["split"] == "test"]
    assert sorted(test["slide_id"]) == sorted(f"TCGA-{i // 2:02d}-{i}" for i in range(8))
    assert list(test["label"]) == [int(slide[5:7]) % 2 for slide in test["slide_id"]]  # true labels, not shuffled ones


def test_folders_that_do_not_fit_are_refused(folder):
    labels = folder / "labels.csv"
    text = labels.read_text()
    for change, message in {
        text + "zz,red,train\n": r"labels.csv names slides without a feature file below .*: zz \(1 in all\)",
        text.replace("blue", "green"): "slide 'TCGA-00-0' has label 'green', not 0, 1, blue, red",
        text + "TCGA-00-0,red,train\n": "names slides twice: TCGA-00-0",
        text.rsplit("\n", 2)[0] + "\n": "holds 23 bags .* its card states 24",
    }.items():
        labels.write_text(change)
        with pytest.raises(InputError, match=message):
            open_dataset("mine", folder)
    labels.write_text(text)
    write(folder / "another" / "x.h5")
    with pytest.raises(InputError, match=r"features in several folders \(another, h5_files\)"):
        open_dataset("mine", folder)
    with pytest.raises(InputError, match=r"no \.h5 files with features"):
        open_dataset("mine", folder / "patches", labels)
    labels.unlink()
    with pytest.raises(InputError, match=r"labels.csv: no such file"):
        open_dataset("mine", folder)
