"""TRIDENT: ``<mag>x_<ps>px_<ov>px_overlap/features_<encoder>/<slide>.h5``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mil_zoo.data.formats.h5 import head, read_coords
from mil_zoo.data.layouts.base import Claim, Places, Sure, register_layout
from mil_zoo.data.layouts.geometry import checked_step, clam_size, grid_step, number_of, overlapping_step
from mil_zoo.data.layouts.h5_layout import H5Layout


@register_layout("trident")
class Trident(H5Layout):
    """Features and level-0 coordinates in one file, the geometry in the attributes of ``coords``.

    ``patch_size_level0`` is the side of a patch in level-0 pixels and ``patch_size`` the side that the encoder saw;
    ``overlap`` is in pixels of the latter and shortens the step (source: ``WSIPatcher`` of the TRIDENT repository).
    """

    about = "<mag>x_<size>px_<overlap>px_overlap/features_<encoder>/<slide>.h5, geometry in attributes of coords"

    def claim(self, path: Path) -> Claim | None:
        """By the folder's name, or by the attribute ``patch_size_level0`` of the coordinates."""
        folder = path.parent
        if folder.name.startswith("slide_features_"):
            return None  # one vector a slide, with the coordinates of its patches: ``slide_embeddings``
        found = head(path)
        if found is not None and "patch_size_level0" in found.coords:
            return Claim(Sure.STATED, "the attribute patch_size_level0 of coords", bags="features" in found.datasets)
        if folder.name.startswith("features_") and folder.parent.name.endswith("px_overlap"):
            return Claim(Sure.NAMES, f"the folders {folder.parent.name}/{folder.name}")
        return None

    def encoder(self, path: Path) -> str:
        """The ``<encoder>`` of ``features_<encoder>``."""
        return path.parent.name.removeprefix("features_")

    def source(self, path: Path) -> str | None:
        """The names of both folders: magnification, size and overlap of patches, and encoder."""
        return f"{path.parent.parent.name}/{path.parent.name}"

    def places(self, file: h5py.File, path: Path) -> Places | None:
        """In level-0 pixels; the step is that of the grid."""
        coords = read_coords(file, path)
        if coords is None:
            return None
        attrs = dict(file["coords"].attrs)
        step: Any = None
        if "patch_size_level0" in attrs:
            step = number_of(attrs, "patch_size_level0", path) or 1.0
            why = "patch_size_level0 of coords"
            overlap = float(np.ravel(attrs.get("overlap", 0))[0]) / (number_of(attrs, "patch_size", path) or step)
            if overlap:
                step, why = step * (1 - overlap), f"{why}, less the overlap of {overlap:.0%}"
            step = checked_step(path, coords, step, "level-0 px")
        elif "patch_size" in attrs:  # TRIDENT at coordinates that CLAM made
            size = clam_size(attrs, path) or 1.0
            step, why = overlapping_step(path, grid_step(coords), size, "CLAM's patch_size x downsample of coords")
        else:
            step, why = grid_step(coords), "the coordinates' own step: the file states no patch size"
        return Places(coords, step, why)
