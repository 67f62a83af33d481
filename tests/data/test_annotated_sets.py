"""Annotations beside slides: unreadable, wrongly named, of another level or without a lesion, said before training."""

import gzip
import json

import numpy as np
import pytest
from layouts import FEATURES, GRID, write_stamp, write_trident

from mil_zoo import InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data import open_dataset, read_annotations
from mil_zoo.data.check import check_dataset
from mil_zoo.data.labels.tables import read_labels


def square(classification="Tumor", side=1024, scale=1.0):
    """GeoJSON of a square whose corner is that of the grid: 2 x 2 patches."""
    low, high = 1000 / scale, (1000 + side) / scale
    ring = [[low, low], [high, low], [high, high], [low, high], [low, low]]
    properties = {"classification": {"name": classification}} if classification else {}
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
    return json.dumps({"type": "FeatureCollection", "features": [feature]})


@pytest.fixture
def folder(tmp_path):
    """Eight slides, of which those of class 1 have annotations."""
    (tmp_path / "annotations").mkdir()
    for number in range(8):
        write_trident(tmp_path, f"s{number}", features=FEATURES + np.float32(number))
        if number % 2:
            (tmp_path / "annotations" / f"s{number}.geojson").write_text(square())
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + "".join(f"s{n},{n % 2}\n" for n in range(8)))
    return tmp_path


def plan(folder):
    return make_plan(read_suite(None, datasets=[str(folder)], models=["mean"], folds=2, epochs=1), str(folder))


def findings(folder):
    return [(each.level, each.text, each.slides) for each in check_dataset(str(folder))[0].findings]


def test_sound_annotations(folder):
    assert findings(folder) == []
    assert plan(folder).dataset.card.warnings == []
    assert [int(bag.instance_labels.sum()) for bag in open_dataset(str(folder)).bags if bag.label] == [4] * 4


def test_no_lesion_is_a_warning_that_tables_keep(folder):
    for number, classification in ((1, "Stroma"), (3, None)):
        (folder / "annotations" / f"s{number}.geojson").write_text(square(classification))
    (folder / "annotations" / "s0.geojson").write_text(square("Stroma"))  # of a slide that need hold none
    text = (
        "annotations hold no lesion (shapes of other classes: 'Stroma', 'no group'), so all patches of their slides "
        "count as negative"
    )
    assert findings(folder) == [("warning", text, ("s1", "s3"))]
    assert plan(folder).dataset.card.warnings == [f"Of 2 slides the {text}: s1, s3."]
    assert plan(folder).config().dataset.warnings[0].startswith("Of 2 slides the annotations hold no lesion")


def test_unreadable_and_wrongly_named_files(folder):
    (folder / "annotations" / "s1.geojson").write_text("{")
    (folder / "annotations" / "s3.geojson").rename(folder / "annotations" / "slide three.geojson")
    (folder / "annotations" / "s5.geojson").rename(folder / "annotations" / "S5.svs.geojson")  # means s5
    (error, warning) = findings(folder)
    assert error[0] == "error"
    assert "s1.geojson is not readable GeoJSON" in error[1]
    assert error[2] == ("s1",)
    assert "belong to no slide (they are called 'slide three'; the features are called 's0', 's1', 's2')" in warning[1]
    with pytest.raises(InputError, match=r"s1.geojson is not readable GeoJSON"):
        plan(folder)
    (folder / "annotations" / "s1.geojson").unlink()
    assert "annotation files in" in plan(folder).dataset.card.warnings[0]
    labels = {bag.slide_id: bag.instance_labels for bag in open_dataset(str(folder)).bags}
    assert int(labels["s5"].sum()) == 4
    assert labels["s3"] is None
    (folder / "annotations" / "s5.xml").write_text("")
    assert any("are both annotations of slide 's5': keep one" in text for _, text, _ in findings(folder))


def test_annotations_of_another_level(folder):
    for number in range(1, 8, 2):
        (folder / "annotations" / f"s{number}.geojson").write_text(square(scale=4))
    (found,) = findings(folder)
    assert found[0] == "warning"
    assert found[1].startswith("lesions are annotated and none makes a patch positive; are they of another level")
    warned = plan(
        folder
    ).dataset.card.warnings  # a bench looks at the patches of the first slides, and its tables say so
    assert "In slides lesions are annotated and none makes a patch positive: s1, s3, s5." in warned
    assert found[2] == ("s1", "s3", "s5", "s7")
    (folder / "card.yaml").write_text("annotation_scale: 4\n")
    assert findings(folder) == []
    assert [int(bag.instance_labels.sum()) for bag in open_dataset(str(folder)).bags if bag.label] == [4] * 4
    assert read_annotations(folder / "annotations" / "s1.geojson", scale=4).area == 1024**2


def test_coordinates_in_micrometres(tmp_path):
    (tmp_path / "annotations").mkdir()
    for number in range(4):
        write_stamp(tmp_path, f"s{number}", features=FEATURES + np.float32(number))  # half a micrometre a pixel
        (tmp_path / "annotations" / f"s{number}.geojson").write_text(square())
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + "".join(f"s{n},{n % 2}\n" for n in range(4)))
    assert any("state annotation_scale (um in a pixel)" in text for _, text, _ in findings(tmp_path))
    with pytest.raises(InputError, match=r"the coordinates in um; .* state annotation_scale \(um in a pixel\)"):
        open_dataset(str(tmp_path)).bags[0]
    (tmp_path / "card.yaml").write_text("annotation_scale: 0.5\n")
    assert [int(bag.instance_labels.sum()) for bag in open_dataset(str(tmp_path)).bags] == [4] * 4
    assert GRID.min() == 1000


def test_a_gzip_bomb_is_a_sentence(tmp_path):
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(bytes(129 * 2**20), 1))
    with pytest.raises(InputError, match=r"a.geojson.gz unpacks to more than 128 MiB, enough for outlines"):
        read_annotations(tmp_path / "a.geojson.gz")
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(bytes(65 * 2**20), 1))
    with pytest.raises(InputError, match=r"labels.csv.gz unpacks to more than 64 MiB, enough for a row"):
        read_labels(tmp_path / "labels.csv.gz")
