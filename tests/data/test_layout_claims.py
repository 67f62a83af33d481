"""Which layout a path is in: the surest one, a tie is a sentence, and a layout from a plugin file is one of them."""

from pathlib import Path

import numpy as np
import pytest
from layouts import FEATURES, GRID, write_clam, write_h5, write_stamp, write_trident

from mil_zoo import InputError
from mil_zoo.data import find_features, read_bag
from mil_zoo.data.layouts.base import LAYOUTS, Claim, Layout, Sure
from mil_zoo.data.layouts.find import layout_of

PLUGIN = Path(__file__).parent.parent / "plugins" / "layout_rows.py"


def test_what_a_file_states_outweighs_the_folder_it_lies_in(tmp_path):
    stated = {"patch_size": 256, "patch_size_level0": 512}
    path = write_h5(tmp_path / "h5_files" / "a.h5", coords_attrs=stated, features=FEATURES, coords=GRID)
    assert LAYOUTS.get("clam").claim(path) == Claim(Sure.NAMES, "the folder h5_files")
    assert LAYOUTS.get("trident").claim(path).sure == Sure.STATED
    assert (read_bag(path).layout, read_bag(path).patch_size) == ("trident", 512)
    assert read_bag(path, "clam").layout == "clam"
    write_stamp(tmp_path / "h5_files", "b")
    assert layout_of(tmp_path / "h5_files" / "b.h5").name == "stamp"
    assert layout_of(write_clam(tmp_path / "other", "c")).name == "clam"


def test_files_without_bags_are_left_out_of_a_folder(tmp_path):
    write_trident(tmp_path, "a")  # writes coordinates beside
    write_clam(tmp_path / "clam", "a")
    assert [(features.layout, len(features.files)) for features in find_features(tmp_path)] == [
        ("trident", 1),
        ("clam", 1),
    ]


def test_two_layouts_that_are_as_sure_are_a_sentence(tmp_path, monkeypatch):
    class Other(Layout):
        name, about, suffixes = "other", "", (".h5",)

        def claim(self, path):
            return Claim(Sure.NAMES, "it says so")

        read = shape = None

    monkeypatch.setitem(LAYOUTS._entries, "other", type("Concrete", (Other,), {"__abstractmethods__": frozenset()})())
    path = write_clam(tmp_path, "a")
    message = r"looks like clam \(the folder h5_files\) and like other \(it says so\); say which with --layout clam or"
    with pytest.raises(InputError, match=message):
        read_bag(path)
    assert read_bag(path, "clam").layout == "clam"


def test_a_layout_from_a_plugin_file(tmp_path, run_cli):
    rng = np.random.default_rng(0)
    rows = ["slide_id,label"]
    for i in range(12):
        np.savetxt(tmp_path / f"s{i:02d}.rows", np.hstack([GRID, rng.normal(size=(12, 4)) + i % 2]), fmt="%.4f")
        rows.append(f"s{i:02d},{i % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    code, out, err = run_cli("data", "check", tmp_path, "--plugin", PLUGIN)
    assert (code, err.strip()) == (0, ""), out
    assert "512 px (12 slides)" in out
    code, _, err = run_cli(
        "bench", "--dataset", tmp_path, "--models", "mean", "--folds", 3, "--epochs", 1, "--plugin", PLUGIN,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, err.strip()) == (0, "")
    assert "layout: rows" in (tmp_path / "run" / "config.yaml").read_text()
