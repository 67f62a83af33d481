"""What is measured of a slide when a dataset is checked: one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Slide, SlideFile
from mil_zoo.data.digests import of_bag
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.layouts.base import LAYOUTS
from mil_zoo.data.layouts.geometry import nearest_distances
from mil_zoo.errors import InputError

WINDOW = 1.42 * 2  # reach of the graph window:2, in steps: a patch without a neighbour in it is isolated

NUMBERS = ["patches", "dimensions", "patch_size", "isolated", "repeated"]
COLUMNS = ["slide_id", "label", "patient_id", *NUMBERS, "unit", "geometry", "digest", "problem"]


def slide_row(bag: Bag) -> dict[str, Any]:
    """The row of a slide in :attr:`mil_zoo.data.check.Report.slides`."""
    row: dict[str, Any] = {
        "slide_id": bag.slide_id,
        "patches": len(bag),
        "dimensions": bag.features.shape[1],
        "problem": "",
    }
    row |= {"label": None if bag.label is None else str(bag.label), "patient_id": bag.patient_id}
    row |= {"digest": of_bag(bag)}
    if bag.coords is not None:
        row |= _coords_row(bag.coords.numpy(), bag.patch_size, bag.unit, bag.geometry)
        if row.get("isolated") == len(bag) - row["repeated"] > 1:
            row["problem"] = (
                f"slide {bag.slide_id!r}: no patch has another one within two steps of {bag.patch_size:g} {bag.unit}; "
                "the coordinates are in another unit, or the patch size is wrong"
            )
    return row


def _coords_row(coords: npt.NDArray[Any], step: float | None, unit: str, geometry: str) -> dict[str, Any]:
    row: dict[str, Any] = {"patch_size": step, "unit": unit, "geometry": geometry}
    row["repeated"] = len(coords) - len(np.unique(coords, axis=0))
    if step is not None:
        row["isolated"] = int((nearest_distances(coords) > WINDOW * step).sum())
    return row


def unreadable_row(slide: Slide, problem: str) -> dict[str, Any]:
    """What can be said of a slide whose features cannot be read: its coordinates may be sound."""
    row: dict[str, Any] = {"slide_id": slide.slide_id, "problem": problem}
    if not isinstance(slide, SlideFile):
        return row
    try:
        with boundary(slide.path):
            found = LAYOUTS.get(slide.layout).coordinates(slide.path)
    except InputError:
        return row
    if found is not None and len(found.coords):
        row |= {"patches": len(found.coords)} | _coords_row(found.coords, found.step, found.unit, found.why)
    return row
