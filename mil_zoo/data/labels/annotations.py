"""Polygons drawn on a slide, and the patches they make positive. All coordinates are level-0 pixels."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.labels.even_odd import FEW, LONG, MOST, crossings, even_odd
from mil_zoo.data.labels.outlines import SUFFIXES, Outline, read_outlines
from mil_zoo.data.layouts.base import slide_name
from mil_zoo.errors import InputError, as_path

POSITIVE = ("tumor", "tumour", "metastasis", "metastases", "positive", "_0", "_1")
EXCLUDED = ("exclusion", "negative", "normal", "_2")
_TILE = 16  # patches along a tile's side: cutting a lesion into tiles first keeps each exact overlap small


@dataclass(frozen=True, eq=False)
class Annotations:
    """What an annotator marked on one slide, in level-0 pixels.

    Attributes:
        positives: valid shapely (Multi)Polygons, one a drawn lesion; they may overlap.
        exclusions: the same of what is no lesion although it may lie in one.
        ignored: how many shapes were left out because they are of another group, by the group.
        crossed: about how often shapes crossed themselves that did so hundreds of times, by their names.
    """

    positives: Sequence[Any]
    exclusions: Sequence[Any] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    crossed: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def region(self) -> Any:
        """Union of the positives minus union of the exclusions, a shapely (Multi)Polygon."""
        if len(self.positives) == 1 and not self.exclusions:
            return self.positives[0]
        return shapely.difference(shapely.union_all(self.positives), shapely.union_all(self.exclusions))

    @property
    def area(self) -> float:
        """Area of :attr:`region`, px² at level 0."""
        return float(shapely.area(self.region))


def read_annotations(
    path: Path | str,
    slide_id: str | None = None,
    *,
    positive: Sequence[str] = POSITIVE,
    excluded: Sequence[str] = EXCLUDED,
    scale: float = 1.0,
) -> Annotations:
    """Reads the polygons of one slide.

    Groups (ASAP) and classifications (QuPath) decide what a polygon means, upper and lower case alike; a group defined
    within another one means what the nearest named one does. Any other group is left out with a warning, and so is a
    polygon of fewer than three vertices. A self-intersecting polygon is made valid (even-odd rule); one that crosses
    itself hundreds of times is named by a warning, and shapes that cross more often than any outline are refused.

    Args:
        path: ASAP ``.xml`` (types Polygon, Spline, through whose points a polygon is drawn, and Rectangle); GeoJSON
            (``.geojson``, ``.json``: a FeatureCollection, a list of features or one feature); ``.npz`` with ``verts``
            ``[n, 2]``, ``poly_ptr`` ``[p + 1]`` and, optionally, ``poly_group``, ``poly_name``, ``poly_slide``
            ``[p]``; or ``.csv`` with a row a vertex: polygon, x, y and, optionally, group and slide_id. A table
            without groups holds positives.
        slide_id: which slide of a table that holds several.
        positive: groups that mark lesions.
        excluded: groups that are taken out of them.
        scale: level-0 pixels in a unit of the file: the downsample of the level on which it was drawn.

    Raises:
        InputError: the file is missing, damaged or of another kind, a coordinate in it is no finite number, or its
            polygons cross themselves tens of thousands of times.

    Source:
        Group names: the CAMELYON16 and CAMELYON17 annotation files (``_2`` and ``Exclusion`` are holes), and those of
        the NCRF conversion of them (``positive``, ``negative``).
    """
    path = as_path(path, "path", "the annotation file of a slide")
    meaning = {name.lower(): "excluded" for name in excluded} | {name.lower(): "positive" for name in positive}
    polygons: dict[str, list[Any]] = {"positive": [], "excluded": []}
    ignored: Counter[str] = Counter()
    degenerate, crossed = [], Counter[str]()
    with boundary(path, "a readable annotation file", "export it again"):
        for outline in read_outlines(path, slide_id):
            kind = next((meaning[group.lower()] for group in outline.groups if group.lower() in meaning), None)
            if kind is None:
                ignored[outline.groups[0] if outline.groups else "no group"] += 1
            elif (polygon := _valid(path, outline, crossed)).area > 0:
                polygons[kind].append(shapely.transform(polygon, lambda points: points * scale))
            else:
                degenerate.append(outline.name)
    if ignored:
        counts = ", ".join(f"{count} of {group!r}" for group, count in ignored.items())
        warnings.warn(f"{path}: shapes that are neither lesions nor exclusions are left out: {counts}", stacklevel=2)
    if crossed:
        often = ", ".join(f"{name} (about {count:,} times)" for name, count in crossed.most_common(5))
        warnings.warn(f"{path}: polygons cross themselves and are read by the even-odd rule: {often}", stacklevel=2)
    if degenerate:
        names = ", ".join(degenerate)
        warnings.warn(f"{path}: polygons of fewer than three vertices or no area are left out: {names}", stacklevel=2)
    return Annotations(polygons["positive"], polygons["excluded"], ignored, crossed)


def label_instances(
    coords: Tensor | npt.NDArray[Any],
    patch_size: float,
    annotations: Annotations,
    threshold: float = 0.2,
    unit: str = "px",
) -> Tensor:
    """Which patches are positive: those of whose area more than ``threshold`` lies in the annotated region.

    The overlap is exact, exclusions are subtracted first, and patches may overlap or lie off any grid.

    Args:
        coords: ``[N, 2]``, top-left corners (x, y) in level-0 pixels.
        patch_size: side of a patch in level-0 pixels.
        annotations: of this slide.
        threshold: in [0, 1); 0 makes every patch positive that the region touches with some area.
        unit: of the coordinates; anything but "px" is refused, polygons being in pixels.

    Returns:
        int64 ``[N]``: 1 positive, 0 negative.

    Raises:
        InputError: coordinates of another unit, shape or not finite; a size or a threshold out of range.
    """
    if unit != "px":
        raise InputError(
            f"annotations are in level-0 pixels and the coordinates in {unit}; convert them to pixels first, or state "
            f"annotation_scale ({unit} in a pixel) in a card.yaml beside the labels"
        )
    corners = np.asarray(coords, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
        raise InputError(f"coords must be finite and [N, 2], not {list(corners.shape)}")
    if not patch_size > 0 or not 0 <= threshold < 1:
        raise InputError(f"labels need patch_size > 0 and 0 <= threshold < 1, not {patch_size} and {threshold}")
    share = overlap_share(corners, float(patch_size), annotations.region)
    return torch.from_numpy((share > threshold).astype(np.int64))


@dataclass(frozen=True)
class InstanceLabeller:
    """How the patches of one slide get their labels.

    Attributes:
        path: its annotation file; None for a slide known to hold no lesion.
        threshold: see :func:`label_instances`.
        scale: units of the coordinates in a unit of the annotations; None where both are level-0 pixels.
    """

    path: Path | None
    threshold: float
    scale: float | None = None

    def __call__(self, bag: Bag) -> Tensor | None:
        """int64 ``[N]``; None for a bag without coordinates.

        Raises:
            InputError: the annotations cannot be read, or the coordinates are not in pixels.
        """
        if self.path is None:
            return torch.zeros(len(bag), dtype=torch.int64)
        return self.apply(read_annotations(self.path, scale=self.scale or 1.0), bag)

    def apply(self, annotations: Annotations, bag: Bag) -> Tensor | None:
        """The same by annotations that were read already."""
        if bag.coords is None or bag.patch_size is None:
            return None
        unit = bag.unit if self.scale is None else "px"
        return label_instances(bag.coords, bag.patch_size, annotations, self.threshold, unit)


def find_annotations(folder: Path) -> dict[str, Path]:
    """The annotation file of each slide in a folder, by slide id; empty where there is no such folder.

    Raises:
        InputError: a slide has two files.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = path.name.removesuffix(".gz")
        suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
        if suffix is None:
            continue
        slide_id = slide_name(name[: -len(suffix)])
        if slide_id in found:
            raise InputError(f"{folder} holds two annotation files of slide {slide_id!r}: keep one of them")
        found[slide_id] = path
    return found


def overlap_share(corners: npt.NDArray[np.float64], patch_size: float, region: Any) -> npt.NDArray[np.float64]:
    """Share of each patch's area that lies in ``region``, ``[N]`` in [0, 1].

    Args:
        corners: ``[N, 2]``, top-left corners.
        patch_size: side of a patch.
        region: valid shapely geometry in the same unit.
    """
    share = np.zeros(len(corners))
    patches = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + patch_size, corners[:, 1] + patch_size)
    parts = shapely.get_parts(region)
    shapely.prepare(parts)
    tree = shapely.STRtree(patches)
    share[tree.query(parts, predicate="contains")[1]] = 1.0
    part, patch = tree.query(parts, predicate="intersects")
    on_edge = share[patch] < 1
    part, patch = part[on_edge], patch[on_edge]
    if len(patch) == 0:
        return share
    # A lesion may have 50 000 vertices, and every overlap with it would look at all of them.
    tile = np.floor(corners[patch] / (_TILE * patch_size))
    _, group = np.unique(np.column_stack([part, tile]), axis=0, return_inverse=True)
    group = group.ravel()
    first = np.unique(group, return_index=True)[1]
    low = tile[first] * _TILE * patch_size
    high = low + (_TILE + 1) * patch_size  # a patch that begins in the tile may end one patch beyond it
    pieces = shapely.intersection(parts[part[first]], shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1]))
    overlap = shapely.area(shapely.intersection(pieces[group], patches[patch]))
    np.add.at(share, patch, overlap / patch_size**2)
    return share


def _valid(path: Path, outline: Outline, crossed: Counter[str]) -> Any:
    """A ring or geometry as a valid shapely (Multi)Polygon; without area where it encloses none.

    Args:
        path: the annotation file.
        outline: the shape.
        crossed: how often shapes of the file crossed themselves so far, by name, where that is often; it is added to.
    """
    shape = outline.shape
    if isinstance(shape, np.ndarray):
        shape = shapely.Polygon(shape if len(shape) >= 3 else None)
    often = crossings(shape) if shapely.get_num_coordinates(shape) > LONG else 0.0
    if often <= FEW and shapely.is_valid(shape) and shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    often = often or crossings(shape)
    if often <= FEW:
        # The repair of a ring that crosses itself may leave lines and points beside polygons.
        return shapely.union_all([part for part in shapely.get_parts(shapely.make_valid(shape)) if part.area > 0])
    crossed[outline.name] += round(often)
    if crossed.total() > MOST:
        raise InputError(
            f"{path}: its polygons cross themselves about {crossed.total():,} times, {outline.name!r} among them; "
            "outlines of tissue do not: draw or export them again"
        )
    return even_odd(shape)
