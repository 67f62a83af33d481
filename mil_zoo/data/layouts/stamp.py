"""STAMP: ``<slide>.h5`` with ``feats`` and coordinates in micrometres."""

from __future__ import annotations

from pathlib import Path

import h5py

from mil_zoo.data.formats.h5 import head, read_coords
from mil_zoo.data.layouts.base import Claim, Places, Sure, register_layout
from mil_zoo.data.layouts.geometry import checked_step, grid_step
from mil_zoo.data.layouts.h5_layout import H5Layout
from mil_zoo.errors import InputError

_HISTORIC_PX, _HISTORIC_UM = 224.0, 256.0  # a tile of version 1, in its own pixels and in micrometres


@register_layout("stamp")
class Stamp(H5Layout):
    """Coordinates in micrometres; tiles do not overlap, so the step is the tile's size in micrometres.

    It is the file's attribute ``tile_size_um``, in version 2 ``tile_size``. Files of version 1 state nothing and have a
    step of 224, which are 256 micrometres (source: ``get_coords`` of the STAMP repository).
    """

    about = "<slide>.h5 with feats, coords in micrometres and attributes unit, tile_size_um (version 2: tile_size)"

    def claim(self, path: Path) -> Claim | None:
        """By the dataset ``feats``, or STAMP's attributes."""
        found = head(path)
        if found is None or found.attrs.get("feat_type") in ("slide", "patient"):
            return None  # one vector a slide: ``slide_embeddings``
        if "stamp_version" in found.attrs:
            return Claim(Sure.STATED, "the attribute stamp_version")
        return Claim(Sure.STATED, "the dataset 'feats'") if "feats" in found.datasets else None

    def places(self, file: h5py.File, path: Path) -> Places | None:
        """In micrometres."""
        coords, attrs = read_coords(file, path), dict(file.attrs)
        if coords is None:
            return None
        name = "tile_size_um" if "tile_size_um" in attrs else "tile_size"
        if name in attrs and attrs.get("unit", "um") == "um":
            step, why = checked_step(path, coords, float(attrs[name]), "um"), f"{name} of the file"
        elif round(float(attrs.get("tile_size", grid_step(coords) or _HISTORIC_PX))) == _HISTORIC_PX:
            coords = coords * (_HISTORIC_UM / _HISTORIC_PX)
            step, why = _HISTORIC_UM, "the historic STAMP format: a step of 224 is 256 um"
        else:
            raise InputError(
                f"{path}: neither tile_size_um nor a step of 224 tells the unit of the coordinates; extract the slide "
                "again with a current STAMP"
            )
        return Places(coords, step, why, "um")
