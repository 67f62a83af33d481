"""Outlines that cross themselves as valid areas, by the even-odd rule, in seconds also where they cross often.

GEOS' own repair (``make_valid``) takes minutes for some ten thousand crossings, as its time grows with their square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

Floats = npt.NDArray[np.float64]

LONG = 20_000  # edges up to which a shape is looked at without counting its crossings first
FEW = 200  # crossings up to which GEOS repairs a shape in no time
MOST = 5000  # crossings of all shapes of a file beyond which they are no outlines
_SAMPLE, _ENOUGH = 1000, 100  # edges whose crossings are counted, and crossings that tell enough


def crossings(shape: Any) -> float:
    """How often the outlines of a geometry cross themselves or each other, about: by a sample of their edges."""
    start, end = edges_of(shape)
    tree = shapely.STRtree(shapely.linestrings(np.stack([start, end], axis=1)))
    met = asked = 0
    for i in np.random.default_rng(0).permutation(len(start))[:_SAMPLE]:
        near = tree.query(tree.geometries[i])
        one, other, asked = start[i], end[i], asked + 1
        near = near[_side(one, other, start[near]) * _side(one, other, end[near]) < 0]  # with an end on either side
        met += int((_side(start[near], end[near], one) * _side(start[near], end[near], other) < 0).sum())
        if met > _ENOUGH:
            break
    return met / max(1, asked) * len(start) / 2


def _side(start: Floats, end: Floats, points: Floats) -> Floats:
    """On which side of lines points lie, by its sign."""
    (dx, dy), (px, py) = (end - start).T, (points - start).T
    return np.asarray(dx * py - dy * px)


def even_odd(shape: Any) -> Any:
    """The area of a geometry's polygons, each by the even-odd rule, as valid shapely (Multi)Polygon.

    The outlines are cut where they cross. Of the faces between them those are kept that lie within an odd number of
    outlines.
    """
    parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    areas = [_of_polygon(part) for part in parts]
    return areas[0] if len(areas) == 1 else shapely.union_all(areas)


def edges_of(shape: Any) -> tuple[Floats, Floats]:
    """The ends of every edge of a geometry's rings, each ``[n, 2]``, x and y; edges of no length are left out."""
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shape)]
    start = np.concatenate([np.empty((0, 2)), *(ring[:-1] for ring in rings)])
    end = np.concatenate([np.empty((0, 2)), *(ring[1:] for ring in rings)])
    there = (start != end).any(1)
    return start[there], end[there]


def _of_polygon(polygon: Any) -> Any:
    cut = shapely.union_all(shapely.get_rings(polygon))
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(cut)))
    inside = within_odd(shapely.get_coordinates(shapely.point_on_surface(faces)), *edges_of(polygon))
    return shapely.coverage_union_all(faces[inside])


def within_odd(points: Floats, start: Floats, end: Floats) -> npt.NDArray[np.bool_]:
    """Whether a ray from each of ``points`` ``[n, 2]`` to the right crosses an odd number of edges, ``[n]``."""
    order = np.argsort(points[:, 1])
    x, y = points[order].T
    first = np.searchsorted(y, np.minimum(start[:, 1], end[:, 1]))
    number = np.searchsorted(y, np.maximum(start[:, 1], end[:, 1])) - first
    counts = np.zeros(len(points), dtype=np.int64)
    for i in np.flatnonzero(number):  # the points at the height of an edge
        level = slice(first[i], first[i] + number[i])
        (left, low), (right, high) = start[i], end[i]
        counts[level] += left + (y[level] - low) * ((right - left) / (high - low)) > x[level]
    odd = np.empty(len(points), dtype=np.bool_)
    odd[order] = counts % 2 == 1
    return odd
