"""LazySlide's stores: one that it wrote itself, those of earlier versions, and what is refused of others."""

import builtins
import json
import shutil
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from layouts import FEATURES, GRID, mutated, write_clam, write_group, write_lazyslide, write_zarr

from mil_zoo import InputError
from mil_zoo.data import find_features, read_bag
from mil_zoo.data.check import check_dataset
from mil_zoo.data.layouts.base import LAYOUTS

STORE = Path(__file__).parent / "lazyslide_store.zip"
needs_zarr_3 = pytest.mark.skipif(zarr.__version__.startswith("2."), reason="zarr 2 does not read format 3")


def sets_of(root):
    return {found.name: found.files for found in find_features(root)}


@needs_zarr_3
def test_a_store_that_lazyslide_wrote(tmp_path):
    zipfile.ZipFile(STORE).extractall(tmp_path)
    tables = tmp_path / "ihc.zarr" / "tables"
    found = {
        "conv12": {"ihc": tables / "conv12_tiles"},
        "conv8": {"ihc": tables / "conv8_tiles"},
        "conv8_halves": {"ihc": tables / "conv8_halves"},
    }
    assert sets_of(tmp_path) == sets_of(tmp_path / "ihc.zarr") == found
    expected = np.load(tmp_path / "wsidata.npz")  # as wsidata reads it
    for table, step, shape in (
        ("conv8_tiles", 64, (16, 8)),
        ("conv12_tiles", 64, (16, 12)),
        ("conv8_halves", 32, (62, 8)),
    ):
        bag = read_bag(tables / table)
        np.testing.assert_array_equal(bag.features, expected[f"{table}/features"])
        np.testing.assert_array_equal(bag.coords, expected[f"{table}/coords"])
        assert (bag.patch_size, bag.unit, bag.slide_id, bag.layout) == (step, "px", "ihc", "lazyslide")
        assert "tile_spec" in bag.geometry
        layout = LAYOUTS.get("lazyslide")
        assert layout.shape(tables / table) == bag.features.shape == shape
        np.testing.assert_array_equal(layout.rows(tables / table, [1, 4, 15]), bag.features[[1, 4, 15]])
        np.testing.assert_array_equal(layout.coordinates(tables / table).coords, bag.coords)
    with pytest.raises(
        InputError, match=r"ihc.zarr holds 3 feature files; name one of them, for instance .*conv12_tiles"
    ):
        read_bag(tmp_path / "ihc.zarr")


@pytest.mark.parametrize("form", [2, pytest.param(3, marks=needs_zarr_3)])
def test_either_zarr_format_with_or_without_a_spec(tmp_path, form):
    bag = read_bag(write_lazyslide(tmp_path, "a.svs", form=form))
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.coords, GRID)
    assert (bag.slide_id, bag.patch_size) == ("a", 512)
    write_lazyslide(tmp_path / "earlier", "b", form=form, spec=False)
    bag = read_bag(tmp_path / "earlier")
    assert (bag.slide_id, bag.patch_size, bag.geometry) == ("b", 512, "the tiles' outlines")


def test_a_store_alone_is_checked_without_labels(tmp_path):
    write_lazyslide(tmp_path, "a", form=2)
    (report,) = check_dataset(str(tmp_path / "a.zarr"))
    assert report.ok
    assert report.findings == []
    assert report.summary()["patch size"] == "512 px (1 slide)"


@pytest.mark.parametrize("place", ["a.zarr", "a.zarr/tables", "a.zarr/tables/uni_tiles"])
def test_a_place_in_a_store_is_told_from_inside(tmp_path, monkeypatch, place):
    table = write_lazyslide(tmp_path, "a", form=2)
    monkeypatch.chdir(tmp_path / place)
    (found,) = find_features(Path())
    assert (found.name, found.files) == ("uni", {"a": table})


def test_a_packed_store_is_to_be_unpacked(tmp_path, run_cli):
    """As LazySlide's own examples come: it unpacks them before it opens them."""
    packed = tmp_path / "a.zarr.zip"
    zipfile.ZipFile(packed, "w").writestr("a.zarr/zarr.json", "{}")
    sentence = "a.zarr.zip is a packed store, which LazySlide does not read either; unpack it where it lies"
    for place in (packed, tmp_path):
        with pytest.raises(InputError, match=sentence):
            read_bag(place)
    (report,) = check_dataset(str(packed))
    assert sentence in report.findings[0].text
    code, _, err = run_cli("data", "check", tmp_path)
    assert code == 2
    assert sentence in err
    write_lazyslide(tmp_path, "a", form=2)
    assert list(sets_of(tmp_path)["uni"]) == ["a"]


def test_rows_follow_the_tiles(tmp_path):
    """As wsidata gives them: tiles that were taken out stay out, whatever the order of the table."""
    order = np.random.default_rng(0).permutation(len(GRID))
    table = write_lazyslide(tmp_path, "a", features=FEATURES[order], ids=order, coords=GRID[:5], form=2)
    bag = read_bag(table)
    np.testing.assert_array_equal(bag.features, FEATURES[:5])
    np.testing.assert_array_equal(bag.coords, GRID[:5])
    assert LAYOUTS.get("lazyslide").shape(table) == (5, 3)
    np.testing.assert_array_equal(LAYOUTS.get("lazyslide").rows(table, [1, 3]), FEATURES[[1, 3]])
    shutil.rmtree(table / "obs")
    with pytest.raises(InputError, match=r"features of 12 tiles, and the slide has 5; extract the slide again"):
        read_bag(table)


def test_stores_of_several_encoders_in_a_folder_a_class(tmp_path):
    for number in range(4):
        folder = tmp_path / ("normal", "tumor")[number % 2]
        write_lazyslide(folder, f"s{number}", "uni", form=2)
        if number < 3:
            write_lazyslide(folder, f"s{number}", "conch_v1.5", form=2)
    write_clam(tmp_path / "tumor", "s1")
    found = {(each.layout, each.name): sorted(each.files) for each in find_features(tmp_path)}
    assert found == {
        ("clam", "tumor"): ["s1"],
        ("lazyslide", "uni"): ["s0", "s1", "s2", "s3"],
        ("lazyslide", "conch_v1.5"): ["s0", "s1", "s2"],
    }
    write_lazyslide(tmp_path / "tumor", "s1.svs", "uni", form=2)
    with pytest.raises(
        InputError, match=r"'s1' has two feature files, .*s1.svs.zarr.* and s1.zarr/tables/uni_tiles; keep"
    ):
        find_features(tmp_path)


def test_links_to_one_store_are_slides_of_their_own(tmp_path):
    write_lazyslide(tmp_path / "store", "a", form=2)
    (tmp_path / "slides").mkdir()
    for name in ("b", "c"):
        (tmp_path / "slides" / f"{name}.zarr").symlink_to(tmp_path / "store" / "a.zarr")
    assert sorted(sets_of(tmp_path / "slides")["uni"]) == ["b", "c"]


def test_stores_without_features_and_of_other_tools(tmp_path):
    store = tmp_path / "a.zarr"
    write_group(store, slide_properties={"mpp": 0.25})
    with pytest.raises(
        InputError, match=r"a.zarr holds no features of tiles; extract them with zs.tl.feature_extraction"
    ):
        find_features(store)
    with pytest.raises(InputError, match=r"a.zarr holds no features of tiles"):
        find_features(tmp_path)
    write_lazyslide(tmp_path, "b", form=2)
    assert list(sets_of(tmp_path)["uni"]) == ["b"]
    other = tmp_path / "visium" / "c.zarr"
    write_group(other)
    write_group(other / "tables" / "table", region="spots", instance_key="spot_id")
    with pytest.raises(InputError, match="no feature files below it"):
        find_features(other.parent)


def fault(table, name):
    """Makes one thing of a store wrong."""
    x, ids, spec = table / "X", table / "obs" / "tile_id", table.parents[1] / ".zattrs"
    outlines = table.parents[1] / "shapes" / "tiles" / "shapes.parquet"
    if name == "pickle":
        write_zarr(x, FEATURES, 2, [{"id": "pickle"}], dtype="|O")
    elif name == "pickle of numbers":
        write_zarr(x, FEATURES, 2, [{"id": "pickle"}])
    elif name == "objects":
        write_zarr(x, FEATURES, 2, dtype="|O")
    elif name == "records":
        write_zarr(x, FEATURES, 2, dtype=[["a", "<f4"]])
    elif name == "too large":
        write_zarr(x, FEATURES, 2, shape=[10**9, 10**3], chunks=[10**9, 10**3])
    elif name == "large chunks":
        write_zarr(x, FEATURES, 2, chunks=[10**9, 10**3])
    elif name == "negative":
        write_zarr(x, FEATURES, 2, shape=[-1, 3])
    elif name == "chunk missing":
        (x / "0" / "0").unlink()
    elif name == "chunk cut":
        (x / "0" / "0").write_bytes(FEATURES.tobytes()[:-4])
    elif name == "packed chunk":
        write_zarr(x, FEATURES, 2, compressor={"id": "zstd", "level": 1})
    elif name == "one axis":
        shutil.rmtree(x)
        write_zarr(x, FEATURES.ravel(), 2)
    elif name == "sparse":
        shutil.rmtree(x)
        write_group(x, 2)
    elif name == "few features":
        write_zarr(x, FEATURES[:-1], 2)
    elif name == "few ids":
        write_zarr(ids, np.arange(5), 2)
    elif name == "repeated ids":
        write_zarr(ids, np.zeros(len(FEATURES), dtype=np.int64), 2)
    elif name == "other ids":
        write_zarr(ids, np.arange(len(FEATURES)) + 1, 2)
    elif name == "no outlines":
        outlines.unlink()
    elif name == "damaged outlines":
        outlines.write_bytes(outlines.read_bytes()[:-9])
    elif name == "another tile":
        spec.write_text(spec.read_text().replace('"base_downsample": 2.0', '"base_downsample": 8.0'))
    elif name == "no number":
        spec.write_text(spec.read_text().replace('"base_downsample": 2.0', '"base_downsample": NaN'))
    elif name == "metadata":
        (table / ".zattrs").write_text("{")
    elif name == "other region":
        (table / ".zattrs").write_text(json.dumps({"region": "../../b", "instance_key": "tile_id"}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pickle", r"tables/uni_tiles/X is not a readable array .*packed by pickle, which is not read"),
        ("pickle of numbers", r"packed by pickle, which is not read"),
        ("objects", r"X is not a readable array .*holds no numbers \(\|O\)"),
        ("records", r"X is not a readable array .*holds no numbers"),
        ("too large", r"X declares \[1000000000, 1000\], 3,814,697.3 MiB, and its chunks hold 0.0 MiB"),
        ("large chunks", r"X declares \[12, 3\], 3,814,697.3 MiB"),
        ("negative", r"its shape is \[-1, 3\]"),
        ("chunk missing", r"X: 1 of its 1 chunks are missing \(not written, or nothing but zeros\); write"),
        ("chunk cut", r"X is not a readable array of a zarr store \("),
        ("packed chunk", r"X is not a readable array of a zarr store \("),
        ("one axis", r"features must be \[patches, dimensions\], not \[36\]"),
        ("sparse", r"X: no array of a zarr store"),
        ("few features", r"uni_tiles has features of 11 tiles, and the slide has 12; extract the slide again"),
        ("few ids", r"obs/tile_id does not name each of 12 tiles once"),
        ("repeated ids", r"obs/tile_id does not name each of 12 tiles once"),
        ("other ids", r"has no features of 1 of 12 tiles, for instance of tile 0"),
        ("no outlines", r"shapes/tiles/shapes.parquet: no such file"),
        ("damaged outlines", r"shapes.parquet is not a readable table of outlines .*; tile the slide again"),
        ("another tile", r"its tiles are 512 px wide at level 0, and tile_spec states a width of 256.0 and a"),
        ("no number", r"base_downsample is nan and no positive number"),
        ("metadata", r"uni_tiles/.zattrs is not metadata of a zarr store"),
        ("other region", r"region is '../../b' and no name of tiles"),
    ],
)
def test_a_fault_is_one_sentence(tmp_path, name, message):
    table = write_lazyslide(tmp_path, "a", form=2)
    fault(table, name)
    with pytest.raises(InputError, match=message) as error:
        read_bag(table)
    assert "\n" not in str(error.value)
    assert list(sets_of(tmp_path)["uni"]) == ["a"]  # it is found, so that the slide is named


@needs_zarr_3
def test_mutated_stores_end_in_a_bag_or_a_sentence(tmp_path):
    zipfile.ZipFile(STORE).extractall(tmp_path)
    store, rng = tmp_path / "ihc.zarr", np.random.default_rng(0)
    table = store / "tables" / "conv8_tiles"
    for path in [store / "zarr.json", store / "shapes" / "tiles" / "shapes.parquet", *sorted(table.rglob("*"))]:
        whole = path.read_bytes() if path.is_file() else b""
        for _ in range(10 if whole else 0):
            path.write_bytes(mutated(whole, rng))
            with suppress(InputError):
                read_bag(table)
        if whole:
            path.write_bytes(whole)
    assert len(read_bag(table)) == 16


@needs_zarr_3
def test_format_3_refuses_what_runs_code_or_is_missing_also_in_shards(tmp_path):
    table = write_lazyslide(tmp_path, "a")
    inner = {"chunk_shape": [4, 3], "codecs": ["bytes", {"name": "numcodecs.pickle"}], "index_codecs": ["bytes"]}
    write_zarr(table / "X", FEATURES, codecs=[{"name": "sharding_indexed", "configuration": inner}])
    with pytest.raises(InputError, match=r"packed by numcodecs.pickle, which is not read"):
        read_bag(table)
    shutil.rmtree(table / "X")
    array = zarr.create_array(table / "X", shape=FEATURES.shape, dtype="float32", chunks=(2, 3), shards=(6, 3))
    array[:] = FEATURES
    np.testing.assert_array_equal(read_bag(table).features, FEATURES)
    (table / "X" / "c" / "1" / "0").unlink()
    with pytest.raises(InputError, match=r"X: 1 of its 2 chunks are missing"):
        read_bag(table)


def test_a_tile_whose_number_is_zero_needs_no_chunk(tmp_path):
    """zarr does not write chunks of zeros."""
    table = write_lazyslide(tmp_path, "a", features=FEATURES[1:2], coords=GRID[:1], form=2)
    (table / "obs" / "tile_id" / "0").unlink()
    assert read_bag(table).features.tolist() == FEATURES[1:2].tolist()


@pytest.mark.parametrize("package", ["zarr", "pyarrow"])
def test_packages_that_are_not_installed_are_named(tmp_path, monkeypatch, package):
    table, load = write_lazyslide(tmp_path, "a", form=2), builtins.__import__

    def without(name, *arguments):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *arguments)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError, match=rf"packages that are not installed \({package}\); .*pip install 'mil-zoo\[lazyslide\]'"
    ):
        read_bag(table)


def test_the_commands_take_stores(tmp_path, run_cli):
    rng = np.random.default_rng(0)
    for number in range(12):
        for encoder in ("uni", "conch"):
            features = rng.normal(size=(12, 4)).astype(np.float32) + number % 2
            write_lazyslide(tmp_path, f"s{number}", encoder, features, form=2)
    rows = [f"s{number},{number % 2}" for number in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,label", *rows]) + "\n")
    code, out, err = run_cli("data", "check", tmp_path)
    assert (code, err.strip()) == (0, ""), out
    assert out.count("512 px (12 slides)") == 2
    code, out, _ = run_cli("data", "check", tmp_path / "s0.zarr")
    assert code == 0
    assert out.count("1, 1 without a problem") == 2
    run = tmp_path / "run"
    options = ("--features", "uni", "--models", "mean", "--folds", 3, "--epochs", 1, "--out", run)
    code, _, err = run_cli("bench", "--dataset", tmp_path, *options)
    assert (code, err.strip()) == (0, "")
    (tmp_path / "s1.zarr" / "tables" / "uni_tiles" / "X" / "0" / "0").unlink()
    slides = [tmp_path / f"s{number}.zarr" for number in range(3)]
    options = ("--run", run, "--model", "mean", "--features", "uni", "--write", "none", "--out", tmp_path / "out")
    code, _, _ = run_cli("predict", *slides, *options)
    assert code == 1
    table = pd.read_csv(tmp_path / "out" / "probabilities.csv")
    assert list(table["slide_id"]) == ["s0", "s1", "s2"]
    assert list(table["status"]) == ["ok", "failed", "ok"]
    assert "chunks are missing" in table["reason"][1]
