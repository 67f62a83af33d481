"""CLAM: ``h5_files/<slide>.h5``, ``pt_files/<slide>.pt`` and ``patches/<slide>.h5``."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.h5 import head, opened, read_coords, read_features, read_rows, shape_of
from mil_zoo.data.formats.tensors import load_tensor, tensor_rows, tensor_shape
from mil_zoo.data.layouts.base import Claim, Layout, Sure, make_bag, register_layout
from mil_zoo.data.layouts.geometry import clam_size, grid_step, overlapping_step

_FOLDERS = ("h5_files", "pt_files")
_PATCHES = ("patches", "PATCHES", "Patches")


@register_layout("clam")
class Clam(Layout):
    """Features without geometry; the patch size lies with the coordinates in ``patches/<slide>.h5``.

    There it is ``patch_size`` (pixels of ``patch_level``) times ``downsample`` (of that level). The step of the grid is
    not stated (CLAM's ``--step_size``), so it is measured, and is the patch size where patches do not overlap.
    """

    about = "h5_files/<slide>.h5 or pt_files/<slide>.pt, with patches/<slide>.h5 (patch size) near them"
    suffixes = (".h5", ".pt")

    def claim(self, path: Path) -> Claim | None:
        """By the folder's name or the dataset ``features``; damaged files too, which are named when they are read."""
        if path.parent.name in _FOLDERS:
            return Claim(Sure.NAMES, f"the folder {path.parent.name}")
        if path.suffix.lower() == ".pt":
            return Claim(Sure.SUFFIX, "a .pt file")
        found = head(path)
        if found is None:
            return Claim(Sure.SUFFIX, "an .h5 file that cannot be opened")
        if "features" in found.datasets:
            return Claim(Sure.CONTENT, "the dataset 'features'")
        return Claim(Sure.SUFFIX, "an .h5 file without features", bags=False)

    def group(self, path: Path) -> Path:
        """``h5_files`` and ``pt_files`` hold the same features: the folder above them."""
        return path.parent.parent if path.parent.name in _FOLDERS else path.parent

    def shape(self, path: Path) -> tuple[int, int]:
        """``(N, D)`` from the file's header."""
        return tensor_shape(path) if path.suffix == ".pt" else shape_of(path)

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone."""
        return tensor_rows(path, places) if path.suffix == ".pt" else read_rows(path, places)

    def read(self, path: Path) -> Bag:
        """The bag; coordinates of a ``.pt`` come from ``h5_files`` or ``patches`` beside it."""
        if path.suffix == ".pt":
            features = load_tensor(path).numpy()
            patches = _patches_of(path, len(features))
            beside = path.parent.parent / "h5_files" / f"{path.stem}.h5"
            source = beside if beside.is_file() else patches
            coords = None
            if source is not None:
                with opened(source) as file:
                    coords = read_coords(file, source)
        else:
            with opened(path) as file:
                features, coords = read_features(file, path), read_coords(file, path)
            patches = _patches_of(path, len(features))
        step, why = (None, "") if coords is None else _step(path, coords, patches)
        return make_bag(path, self.slide_id(path), self.name, features, coords, step, why)

    def coordinates(self, path: Path) -> tuple[npt.NDArray[Any], float | None, str] | None:
        """Those of a file of ``patches/``, which has no features."""
        with opened(path) as file:
            coords = read_coords(file, path)
        return None if coords is None else (coords, *_step(path, coords, None))


def _patches_of(path: Path, count: int) -> Path | None:
    """``patches/<slide>.h5`` of a slide of ``count`` patches: beside the folder of the features, or one above it.

    CLAM writes features and patches into two folders of the user's choice: then in a folder beside either, where the
    file is of as many patches.
    """
    name, above = f"{path.stem}.h5", list(path.parents)[:3]
    for file in (folder / patches / name for folder in above for patches in _PATCHES):
        if file.is_file():
            return file
    inside = f"*/[pP]*/{glob.escape(name)}"
    for file in (file for folder in above[1:] for file in sorted(folder.glob(inside)) if file.parent.name in _PATCHES):
        if (found := head(file)) is not None and found.places == count:
            return file
    return None


def _step(path: Path, coords: npt.NDArray[Any], patches: Path | None) -> tuple[float | None, str]:
    stated, source = _stated_size(path), path
    if stated is None and patches is not None:
        stated, source = _stated_size(patches), patches
    measured = grid_step(coords)
    if stated is None:
        return measured, "the coordinates' own step: no patches/<slide>.h5 states the patch size"
    base = path.parent.parent if path.parent.name in _FOLDERS else path.parent
    folder = Path(os.path.relpath(source.parent, base)).as_posix() if source is patches else source.parent.name
    where = f"patch_size x downsample of {folder}/<slide>.h5"
    return overlapping_step(path, measured, stated, where)


def _stated_size(path: Path) -> float | None:
    found = head(path) if path.suffix == ".h5" else None
    if found is None or "patch_size" not in found.coords:
        return None
    return clam_size(found.coords, path)
