"""Coordinates that cannot be read are told before anything is trained; patch sizes come from a slide's own patches."""

import h5py
import numpy as np
import pytest
from layouts import FEATURES, GRID, write_clam, write_h5, write_slideflow, write_stamp, write_torchmil, write_trident

from mil_zoo import InputError
from mil_zoo.data import open_dataset, read_bag
from mil_zoo.data.check import check_dataset
from mil_zoo.data.judge import judge_shapes
from mil_zoo.data.open import contents_of, locate
from mil_zoo.data.source import DatasetSource

MANY = np.stack(np.meshgrid(np.arange(40), np.arange(30)), -1).reshape(-1, 2) * 512


def compressed(path, features, coords, name="features"):
    """An HDF5 file whose coordinates are compressed in chunks, one of which is damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[name] = features
        placed = file.create_dataset("coords", data=coords, chunks=(100, 2), compression="gzip")
        if name == "feats":
            file.attrs.update({"unit": "um", "tile_size_um": 512.0, "stamp_version": "2.4.0"})
        else:
            placed.attrs.update({"patch_size": 256, "patch_size_level0": 512})
        start = placed.id.get_chunk_info(7)
    with path.open("r+b") as file:
        file.seek(start.byte_offset)
        file.write(b"\xff" * 20)


def slides(folder):
    source = DatasetSource(str(folder))
    return contents_of(locate(source), source).bags


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("20x_256px_0px_overlap/features_uni/{}.h5", "features"),
        ("h5_files/{}.h5", "features"),
        ("{}.h5", "feats"),
    ],
)
def test_a_damaged_chunk_of_coordinates_is_named_before_training(tmp_path, place, name, run_cli):
    features = np.random.default_rng(0).normal(size=(len(MANY), 8)).astype(np.float32)
    rows = ["slide_id,label"]
    for i in range(8):
        write_h5(
            tmp_path / place.format(f"s{i}"),
            {"unit": "um", "tile_size_um": 512.0, "stamp_version": "2.4.0"} if name == "feats" else None,
            None if name == "feats" else {"patch_size": 256, "patch_size_level0": 512},
            **{name: features + i, "coords": MANY},
        )
        rows.append(f"s{i},{i % 2}")
    assert judge_shapes(slides(tmp_path)) == []
    compressed(tmp_path / place.format("s5"), features, MANY, name)
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (finding,) = judge_shapes(slides(tmp_path))
    assert f"{place.format('s5')} is not a readable feature file" in finding.text
    out = tmp_path.parent / f"{tmp_path.name}-run"
    code, _, err = run_cli("bench", "--dataset", tmp_path, "--models", "mean", "--folds", 2, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert place.format("s5") in err
    assert not out.exists()
    (report,) = check_dataset(str(tmp_path))
    assert [finding.slides for finding in report.findings if finding.level == "error"] == [("s5",)]


def test_coordinates_of_other_numbers_and_axes_are_told_as_reading_tells_them(tmp_path):
    write_trident(tmp_path, "fewer", coords=GRID[:-1])
    write_trident(tmp_path, "turned", coords=GRID.T)
    write_trident(tmp_path, "swapped", features=FEATURES.T)
    write_trident(tmp_path, "good")
    holes = GRID.astype(float)
    holes[3] = np.nan
    path = write_trident(tmp_path, "holes")
    with h5py.File(path, "a") as file:
        attrs = dict(file["coords"].attrs)
        del file["coords"]
        file["coords"] = holes
        file["coords"].attrs.update(attrs)
    bags = slides(tmp_path)
    told = "\n".join(finding.text for finding in judge_shapes(bags))
    for slide in bags.slides:
        if slide.slide_id == "good":
            assert np.array_equal(slide.coords(), GRID)
            continue
        with pytest.raises(InputError) as error:
            slide.read()
        assert str(error.value) in told


def test_every_layout_with_coordinates_gives_them_without_features(tmp_path):
    folders = {
        "clam": lambda folder: write_clam(folder, "a", pt=True),
        "trident": lambda folder: write_trident(folder, "a"),
        "stamp": lambda folder: write_stamp(folder, "a"),
        "slideflow": lambda folder: write_slideflow(folder, "a"),
        "torchmil": lambda folder: write_torchmil(folder, "a"),
    }
    for name, write in folders.items():
        write(tmp_path / name)
        (slide,) = slides(tmp_path / name).slides
        assert np.array_equal(slide.coords(), slide.read().coords), name
    assert np.array_equal(_pt(tmp_path / "clam").coords(), GRID)


def _pt(folder):
    (folder / "h5_files" / "a.h5").unlink()
    (slide,) = slides(folder).slides
    assert slide.path.suffix == ".pt"
    return slide


def test_patches_in_other_places_of_two_encoders_are_told_before_training(tmp_path):
    rows = ["slide_id,label"]
    for i in range(4):
        write_trident(tmp_path, f"s{i}", "one", FEATURES + i)
        write_trident(tmp_path, f"s{i}", "two", FEATURES - i, GRID[::-1] if i == 2 else GRID)
        rows.append(f"s{i},{i % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (finding,) = judge_shapes(open_dataset(str(tmp_path), features="one+two").bags)
    assert "slide 's2' has patches at other coordinates" in finding.text


def clam_patches(folder, slide, size, coords=GRID):
    write_h5(folder / "patches" / f"{slide}.h5", coords_attrs={"patch_size": size, "patch_level": 0}, coords=coords)


@pytest.mark.parametrize("pt", [False, True])
def test_patches_beside_are_taken_with_evidence_only(tmp_path, pt):
    for slide in "abc":
        path = write_clam(tmp_path / "FEATURES", slide, patch_size=None, pt=pt)
    path = tmp_path / "FEATURES" / "pt_files" / "a.pt" if pt else path.with_name("a.h5")
    clam_patches(tmp_path / "stranger", "a", 1024)  # one slide in three, of a name that both have
    assert "own step" in read_bag(path).geometry
    for slide in "abc":
        clam_patches(tmp_path / "elsewhere", slide, 1024, GRID + 7)  # the same slides on another grid
    assert "own step" in read_bag(path).geometry
    for slide in "abc":
        clam_patches(tmp_path / "RESULTS", slide, 512)
    bag = read_bag(path)
    assert (bag.patch_size, bag.geometry) == (512, "patch_size x downsample of ../RESULTS/patches/<slide>.h5")
    (report,) = check_dataset(str(tmp_path / "FEATURES"))
    told = [finding for finding in report.findings if "in a folder beside that of the features" in finding.text]
    assert [finding.slides for finding in told] == [("a", "b", "c")]
    for slide in "abc":
        clam_patches(tmp_path / "RESULTS_256", slide, 1024)
    with pytest.raises(InputError, match=r"a\.\w+: several folders of patches fit .* state different sizes, .*RESULTS"):
        read_bag(path)
    for slide in "abc":
        clam_patches(tmp_path / "FEATURES", slide, 256)  # those within the folder go before
    assert read_bag(path).geometry.startswith("patch_size x downsample of patches/")


def test_patches_two_folders_above_a_flat_folder_are_strangers(tmp_path):
    for slide in "ab":
        write_h5(tmp_path / "mine" / "flat" / f"{slide}.h5", features=FEATURES, coords=GRID)
        clam_patches(tmp_path, slide, 1024)
    assert "own step" in read_bag(tmp_path / "mine" / "flat" / "a.h5").geometry


def test_a_pt_alone_takes_patches_beside_of_as_many_patches(tmp_path):
    for slide in "ab":
        write_clam(tmp_path / "features", slide, patch_size=None, pt=True).unlink()
        clam_patches(tmp_path / "other", slide, 1024, GRID[:-2])
    path = tmp_path / "features" / "pt_files" / "a.pt"
    assert read_bag(path).coords is None
    for slide in "ab":
        clam_patches(tmp_path / "own", slide, 512)
    bag = read_bag(path)
    assert (bag.patch_size, len(bag.coords)) == (512, len(GRID))
