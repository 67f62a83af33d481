"""CLAM: ``h5_files/<slide>.h5``, ``pt_files/<slide>.pt`` and ``patches/<slide>.h5``."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.h5 import head, opened, read_coords, read_features, read_rows, shape_of
from mil_zoo.data.formats.tensors import load_tensor, tensor_rows, tensor_shape
from mil_zoo.data.layouts.base import Claim, Layout, Places, Sure, make_bag, register_layout
from mil_zoo.data.layouts.geometry import clam_size, grid_step, overlapping_step
from mil_zoo.errors import InputError

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
            places = _places_beside(path, len(features))
        else:
            with opened(path) as file:
                features, places = read_features(file, path), _places_in(file, path)
        return make_bag(path, self.slide_id(path), self.name, features, *(places or ()))

    def coordinates(self, path: Path) -> Places | None:
        """Those of the file, of a ``.pt`` those beside it; also of a file of ``patches/``, which has no features."""
        if path.suffix == ".pt":
            return _places_beside(path, self.shape(path)[0])
        with opened(path) as file:
            return _places_in(file, path)


def _places_in(file: h5py.File, path: Path) -> Places | None:
    coords = read_coords(file, path)
    if coords is None:
        return None
    return Places(coords, *_step(path, coords, _patches_of(path, len(coords), coords)))


def _places_beside(path: Path, count: int) -> Places | None:
    """Of a ``.pt`` of ``count`` patches: by ``h5_files`` beside it, else by ``patches``."""
    source, coords = path.parent.parent / "h5_files" / f"{path.stem}.h5", None
    if source.is_file():
        with opened(source) as file:
            coords = read_coords(file, source)
    patches = _patches_of(path, count, coords)
    if coords is None and patches is not None:
        with opened(patches) as file:
            coords = read_coords(file, patches)
    return None if coords is None else Places(coords, *_step(path, coords, patches))


def _patches_of(path: Path, count: int, coords: npt.NDArray[Any] | None) -> Path | None:
    """``patches/<slide>.h5`` of a slide of ``count`` patches.

    CLAM writes features and patches into two folders of the user's choice, often beside each other. Patches in the
    folder of the features belong to them. A folder beside that one may be of another project: it is taken where most of
    the slides here have patches there, and this slide as many as here, at the same places; where these are not known,
    two slides at least.

    Raises:
        InputError: several folders beside fit, and state different sizes.
    """
    name, base = f"{path.stem}.h5", path.parent.parent if path.parent.name in _FOLDERS else path.parent
    for file in (folder / patches / name for folder in (path.parent, base) for patches in _PATCHES):
        if file.is_file():
            return file
    inside = f"*/[pP]*/{glob.escape(name)}"
    found = [file for file in sorted(base.glob(inside)) if _is_of(file, count, coords)]
    if not found:
        beside = [*(base.parent / patches / name for patches in _PATCHES), *sorted(base.parent.glob(inside))]
        least = 2 if coords is None else 1
        found = [each for each in beside if _is_of(each, count, coords) and _of_these_slides(each.parent, path, least)]
    sizes = {_stated_size(file): file for file in reversed(found)}
    if len(sizes) > 1:
        folders = " and ".join(f"{file.parent} ({size or 0:g} px)" for size, file in sizes.items())
        raise InputError(
            f"{path}: several folders of patches fit these features and state different sizes, {folders}; put the "
            f"right one into {base}"
        )
    return found[0] if found else None


def _is_of(file: Path, count: int, coords: npt.NDArray[Any] | None) -> bool:
    """Whether a file of a folder of patches has ``count`` of them, at ``coords`` where these are known."""
    found = head(file) if file.parent.name in _PATCHES and file.is_file() else None
    if found is None or found.places != count:
        return False
    if coords is None:
        return True
    with opened(file) as other:
        return np.array_equal(coords, np.asarray(read_coords(other, file)))


def _of_these_slides(patches: Path, path: Path, least: int) -> bool:
    """Whether most of the slides in the folder of a feature file, and ``least``, have a file in a folder of patches."""
    changed = patches.stat().st_mtime_ns, path.parent.stat().st_mtime_ns
    here, both = _shared(patches, path.parent, path.suffix, changed)
    return 2 * both > here and both >= least


@functools.lru_cache(maxsize=64)
def _shared(patches: Path, features: Path, suffix: str, changed: tuple[int, int]) -> tuple[int, int]:
    """How many slides a folder of features has, and how many of them a folder of patches; listed once while unchanged.

    Every slide of a cohort asks for the same two folders, each time that it is read.
    """
    here = {each.stem for each in features.iterdir() if each.suffix == suffix}
    there = {each.stem for each in patches.iterdir() if each.suffix == ".h5"}
    return len(here), len(here & there)


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
