"""What is found before anything is trained: links, steps by attributes, shapes, barcodes, and QuPath's classes."""

import json

import numpy as np
import pytest
from layouts import FEATURES, GRID, write_clam, write_h5

from mil_zoo import InputError
from mil_zoo.data import open_dataset, read_annotations, read_bag
from mil_zoo.data.judge import judge_shapes


def test_folders_that_are_links_are_followed_once(tmp_path):
    for slide in "ab":
        write_clam(tmp_path / "scratch", slide, patch_size=None)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "h5_files").symlink_to(tmp_path / "scratch" / "h5_files", target_is_directory=True)
    (tmp_path / "scratch" / "h5_files" / "loop").symlink_to(tmp_path / "scratch", target_is_directory=True)
    (tmp_path / "job" / "labels.csv").write_text("slide_id,label\na,0\nb,1\n")
    assert open_dataset(str(tmp_path / "job")).bags.slide_ids == ["a", "b"]


@pytest.mark.parametrize(
    ("attrs", "step"),
    [
        ({"patch_size": 512, "patch_level": 0}, 512),
        ({"patch_size": 256, "patch_level": 1, "downsample": [2.0, 2.0]}, 512),
        ({"patch_size": np.array([256, 256]), "custom_downsample": 2}, 512),
        ({"patch_size": b"512"}, 512),
        ({"patch_size_level0": np.array([512]), "patch_size": 256}, 512),
    ],
)
def test_the_step_by_what_the_attributes_state(tmp_path, attrs, step):
    for folder in ("20x_256px_0px_overlap/features_uni", "h5_files"):
        path = write_h5(tmp_path / folder / "a.h5", coords_attrs=attrs, features=FEATURES, coords=GRID)
        assert read_bag(path).patch_size == step, folder


def test_attributes_that_are_no_numbers_are_a_sentence(tmp_path):
    for odd in (-1, np.nan, "wide", np.zeros(0)):
        path = write_h5(tmp_path / "a.h5", coords_attrs={"patch_size_level0": odd}, features=FEATURES, coords=GRID)
        with pytest.raises(InputError, match=r"a.h5: the attribute patch_size_level0 is .* and no positive number"):
            read_bag(path)


def test_shapes_are_judged_before_training(tmp_path):
    rows = ["slide_id,label"]
    for i in range(8):
        write_clam(tmp_path, f"s{i}", features=np.ones((12, 3 + 2 * (i == 0)), np.float32))
        rows.append(f"s{i},{i % 2}")
    write_clam(tmp_path, "s1", features=np.zeros((0, 3), np.float32), coords=np.zeros((0, 2), int))
    write_h5(tmp_path / "h5_files" / "s2.h5", coords=GRID)
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    findings = judge_shapes(open_dataset(str(tmp_path)).bags)
    text = "\n".join(f"{finding.text} {finding.slides}" for finding in findings)
    assert "slide 's1': the bag is empty" in text
    assert "s2.h5: no dataset 'features'" in text
    assert "features have 3 dimensions in most slides and others (5) here; use one encoder ('s0',)" in text


def test_barcodes_name_patients(tmp_path):
    rows = ["slide_id,label"]
    for i in range(4):
        write_clam(tmp_path, f"TCGA-05-424{i // 2}-01Z-00-DX{i}")
        rows.append(f"TCGA-05-424{i // 2}-01Z-00-DX{i},{i // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    dataset = open_dataset(str(tmp_path))
    assert [slide.patient_id for slide in dataset.bags.slides] == ["TCGA-05-4240"] * 2 + ["TCGA-05-4241"] * 2
    assert set(dataset.site_of.values()) == {"05"}


def test_a_column_of_sites_goes_before_barcodes(tmp_path):
    for i in range(2):
        write_clam(tmp_path, f"TCGA-05-424{i}-01Z-00-DX1")
    (tmp_path / "labels.csv").write_text(
        "slide_id,label,Site\nTCGA-05-4240-01Z-00-DX1,0,Ghent\nTCGA-05-4241-01Z-00-DX1,1,Graz\n"
    )
    assert sorted(open_dataset(str(tmp_path)).site_of.values()) == ["Ghent", "Graz"]


SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]


POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}


@pytest.mark.parametrize(
    ("classification", "geometry"),
    [
        ({"names": ["Tumor", "Positive"]}, {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]}),
        ({"names": ["Other", "Tumor"]}, {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]}),
        ({"name": "Tumor "}, {"type": "Polygon", "coordinates": [SQUARE]}),
        ("Tumor: Positive", {"type": "MultiPolygon", "coordinates": [[SQUARE]]}),
        (
            {"name": "TUMOR"},
            {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE]}]},
        ),
    ],
)
def test_what_qupath_and_others_write(tmp_path, classification, geometry):
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": classification}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert read_annotations(tmp_path / "a.geojson").area == 10_000
