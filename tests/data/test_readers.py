"""Every layout as its tool writes it: told from the path, values as they lie there, geometry at level 0."""

import h5py
import numpy as np
import pytest
from layouts import FEATURES, GRID, write_clam, write_h5, write_stamp, write_trident

from mil_zoo import InputError
from mil_zoo.data import find_features, read_bag
from mil_zoo.data.layouts.base import LAYOUTS, slide_name
from mil_zoo.data.layouts.geometry import grid_step


def check(bag, layout, patch_size=512.0, unit="px", coords=GRID, slide_id="a"):
    assert (bag.layout, bag.slide_id, bag.unit, bag.patch_size) == (layout, slide_id, unit, patch_size)
    assert bag.features.tolist() == FEATURES.tolist()
    assert bag.coords.tolist() == np.asarray(coords, dtype=np.float32).tolist()


def test_clam(tmp_path):
    path = write_clam(tmp_path, "a", pt=True)
    check(read_bag(path), "clam")
    assert read_bag(path).geometry == "patch_size x downsample of patches/<slide>.h5"
    check(read_bag(tmp_path / "pt_files" / "a.pt"), "clam")
    path.unlink()  # coordinates of a .pt come from patches, too
    check(read_bag(tmp_path / "pt_files" / "a.pt"), "clam")
    write_clam(tmp_path, "b", FEATURES[None])  # [1, N, D]
    check(read_bag(tmp_path / "h5_files" / "b.h5"), "clam", slide_id="b")


def test_clam_without_a_stated_patch_size_or_with_overlap(tmp_path):
    bag = read_bag(write_clam(tmp_path / "x", "a", patch_size=None))
    check(bag, "clam")
    assert "own step" in bag.geometry
    bag = read_bag(write_clam(tmp_path / "y", "a", patch_size=512))  # 1024 px at level 0, a step of 512
    check(bag, "clam")
    assert "patches of 1024 px" in bag.geometry
    with pytest.raises(InputError, match=r"are 1 apart where .* states 512 level-0 px; .* another unit"):
        read_bag(write_clam(tmp_path / "z", "a", coords=GRID // 512))


def test_a_real_clam_file_has_coordinates_and_no_features(real_data):
    (path,) = (real_data / "coords").glob("TCGA*.h5")
    with pytest.raises(InputError, match=r"no dataset 'features' or 'feats' .it holds coords"):
        read_bag(path)


def test_real_clam_coordinates(real_data, tmp_path):
    (patches,) = (real_data / "coords").glob("TCGA*.h5")
    with h5py.File(patches) as file:
        coords, attrs = file["coords"][:], dict(file["coords"].attrs)
    write_h5(tmp_path / "patches" / patches.name, coords_attrs=attrs, coords=coords)
    features = np.zeros((len(coords), 2), np.float32)
    bag = read_bag(write_h5(tmp_path / "h5_files" / patches.name, features=features, coords=coords.astype(np.int32)))
    assert (len(bag), bag.patch_size, bag.slide_id) == (1502, 512.0, patches.stem)
    assert bag.coords.tolist() == coords.tolist()
    assert bag.graph("window:2").num_edges > 10 * len(bag)


def test_trident(tmp_path):
    bag = read_bag(write_trident(tmp_path, "a"))
    check(bag, "trident")
    assert bag.geometry == "patch_size_level0 of coords"
    coords = (GRID - 1000) * 3 // 4 + 1000  # a quarter of 256 px overlaps: steps of 384 px at level 0
    bag = read_bag(write_trident(tmp_path, "b", coords=coords, overlap=64))
    check(bag, "trident", 384.0, coords=coords, slide_id="b")
    assert "less the overlap of 25%" in bag.geometry
    (tmp_path / "moved").mkdir()
    moved = write_trident(tmp_path, "c").rename(tmp_path / "moved" / "c.h5")  # told from its attributes
    check(read_bag(moved), "trident", slide_id="c")
    for features in (np.zeros((0, 3), np.float32), np.zeros(0, np.float32)):
        with pytest.raises(InputError, match="slide 'd': the bag is empty"):
            read_bag(write_trident(tmp_path, "d", features=features, coords=np.zeros((0, 2))))


def test_stamp(tmp_path):
    um = GRID / 2
    check(read_bag(write_stamp(tmp_path, "a")), "stamp", 256.0, "um", um)
    check(read_bag(write_stamp(tmp_path, "a", unit="um", tile_size=256.0)), "stamp", 256.0, "um", um)
    historic = (um - 500) / 256 * 224  # no attributes: a step of 224 is 256 um
    bag = read_bag(write_h5(tmp_path / "a.h5", feats=FEATURES, coords=historic))
    check(bag, "stamp", 256.0, "um", um - 500)
    assert "historic" in bag.geometry
    with pytest.raises(InputError, match="neither tile_size_um nor a step of 224 tells the unit"):
        read_bag(write_h5(tmp_path / "a.h5", feats=FEATURES, coords=GRID))


def test_features_are_found_from_the_root(tmp_path):
    for slide in ("a", "b"):
        for encoder, magnification in (("uni", 20), ("uni", 10), ("conch", 20)):
            write_trident(tmp_path, slide, encoder, magnification=magnification)
    found = {(f.layout, f.name, tuple(sorted(f.files))) for f in find_features(tmp_path)}
    assert found == {
        ("trident", "10x_256px_0px_overlap/features_uni", ("a", "b")),
        ("trident", "20x_256px_0px_overlap/features_uni", ("a", "b")),
        ("trident", "conch", ("a", "b")),
    }
    (clam,) = find_features(write_clam(tmp_path / "clam" / "resnet", "a.svs", pt=True).parents[2])
    assert (clam.layout, clam.name, list(clam.files)) == ("clam", "resnet", ["a"])
    assert clam.files["a"].suffix == ".h5"  # it has the coordinates


def test_a_layout_can_be_named_and_folders_of_one_slide_read(tmp_path):
    path = write_trident(tmp_path, "a")
    assert read_bag(tmp_path).layout == "trident"
    assert read_bag(path, layout="clam").layout == "clam"
    with pytest.raises(InputError, match="unknown layout 'tridnt'; did you mean 'trident'"):
        read_bag(path, "tridnt")
    write_trident(tmp_path, "b")
    with pytest.raises(InputError, match="holds 2 feature files; name one of them"):
        read_bag(tmp_path)
    (tmp_path / "notes.txt").write_text("no features")
    with pytest.raises(InputError, match=r"notes\.txt is in no known layout"):
        read_bag(tmp_path / "notes.txt")
    assert all(LAYOUTS.get(name).about for name in LAYOUTS)


def test_damaged_and_malformed_files_are_named(tmp_path):
    whole = write_clam(tmp_path, "a").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("no file of that kind")
    files = {
        "short": {"features": FEATURES, "coords": GRID[:-1]},
        "flat": {"features": FEATURES, "coords": GRID.T},
        "flat_odd": {"features": FEATURES[1:], "coords": GRID[1:].T},
        "swapped": {"features": FEATURES.T, "coords": GRID},
        "vector": {"features": FEATURES[:, 0], "coords": GRID},
        "words": {"features": np.array([b"a"] * 12), "coords": GRID},
        "other": {"embeddings": FEATURES, "coords": GRID},
        "three": {"features": FEATURES, "coords": np.zeros((12, 3))},
        "nan": {"features": np.full((12, 3), np.nan, np.float32), "coords": GRID},
        "empty": {"features": np.zeros((0, 3), np.float32), "coords": np.zeros((0, 2))},
    }
    for name, arrays in files.items():
        write_h5(tmp_path / f"{name}.h5", **arrays)
    for name, message in {
        "cut": "cut.h5 is not a readable feature file",
        "text": "text.h5 is not a readable feature file",
        "short": r"short.h5: coords are \[11, 2\] for 12 feature rows",
        "flat": r"flat.h5: coords are \[2, N\] with their axes swapped",
        "flat_odd": r"flat_odd.h5: coords are \[2, N\] with their axes swapped",
        "swapped": r"swapped.h5: features are \[3, 12\] for 12 coordinates: their axes are swapped",
        "vector": r"vector.h5: features must be \[patches, dimensions\]",
        "words": "words.h5: features is not an array of numbers",
        "other": r"other.h5: no dataset 'features' or 'feats' \(it holds coords, embeddings\)",
        "three": r"three.h5: coords are \[12, 3\]; they must be \[N, 2\]",
        "nan": "slide 'nan': features are NaN",
        "empty": "slide 'empty': the bag is empty",
        "none": "none.h5: no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_bag(tmp_path / f"{name}.h5")


def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path):
    for filters in ({}, {"chunks": (1000, 1000)}, {"chunks": (1000, 1000), "compression": "gzip"}):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("features", (10**9, 1000), np.float32, **filters)  # 4 TB, never written
        assert (tmp_path / "a.h5").stat().st_size < 10_000
        with pytest.raises(InputError, match=r"features declares \[1000000000, 1000\], .* it is incomplete"):
            read_bag(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((5000, 64), np.float32), compression="gzip")
    assert len(read_bag(tmp_path / "b.h5")) == 5000
    write_h5(tmp_path / "real.h5", features=FEATURES)
    with h5py.File(tmp_path / "c.h5", "w") as file:  # a file that points at another one
        virtual = h5py.VirtualLayout((12, 3), np.float32)
        virtual[:] = h5py.VirtualSource(tmp_path / "real.h5", "features", (12, 3))
        file.create_virtual_dataset("features", virtual)
    with pytest.raises(InputError, match="lies in another file"):
        read_bag(tmp_path / "c.h5")


def test_the_step_of_a_grid():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2) * 256.0
    assert grid_step(grid) == 256
    assert grid_step(rng.permutation(grid)[:400]) == 256  # one patch in four
    assert grid_step(np.concatenate([grid, grid + np.array([20_000, 100])])) == 256  # contours with a grid each
    assert grid_step(grid + rng.uniform(-0.1, 0.1, grid.shape)) == pytest.approx(256, rel=0.01)
    assert 5 < grid_step(rng.uniform(0, 500, (600, 2))) < 20  # nuclei: the median distance of nearest ones
    assert grid_step(np.ones((5, 2))) is None


def test_a_graph_without_edges_is_an_error(tmp_path):
    bag = read_bag(write_trident(tmp_path, "a", coords=GRID * 4))
    with pytest.raises(InputError, match=r"no patch has a neighbour in the graph 'window:2'; patch_size .512.0 px"):
        bag.graph("window:2")
    assert read_bag(write_trident(tmp_path, "b", features=FEATURES[:1], coords=GRID[:1])).graph("window:2").num_edges


def test_slide_names():
    assert slide_name("normal_001.tif") == "normal_001"
    assert slide_name("TCGA-05-4244-01Z-00-DX1.d4ff32cd.svs") == "TCGA-05-4244-01Z-00-DX1.d4ff32cd"
    assert slide_name("TCGA-05-4244-01Z-00-DX1.d4ff32cd") == "TCGA-05-4244-01Z-00-DX1.d4ff32cd"
