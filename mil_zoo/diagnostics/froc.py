"""FROC: how many lesions are found at how many false alarms a slide, by the rules of the CAMELYON16 challenge.

Facts of the rules: the challenge's evaluation page and its published evaluation script (Bejnordi et al., JAMA 2017).
A detection is a point with a score. It hits the lesion it lies in, a lesion's score is that of its best detection, and
a detection in no lesion is a false positive, on negative slides too. Isolated tumour cells are not looked for, and
detections in them count neither way. The score is the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a
slide, read from the curve along straight lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mil_zoo.errors import InputError

FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ISOLATED_UM = 275.0
"""Lesions whose longest axis is shorter are isolated tumour cells (200 um, and the margin on both sides)."""
MARGIN_UM = 37.5
"""Annotations grow by this, so that parts closer than 75 um (five cells) become one lesion."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """What the detections of one slide amount to.

    Attributes:
        lesions: for each lesion the score of its best detection; -inf where it was missed.
        false_positives: scores of the detections outside of every lesion.
    """

    lesions: Floats
    false_positives: Floats


def froc(slides: Sequence[Detections]) -> dict[str, float]:
    """Sensitivities and the score over all slides, positive and negative.

    Returns:
        sensitivity by ``"0.25"``, ``"0.5"``, ``"1"``, ... false positives a slide, and their mean, ``"score"``; empty
        where there is no lesion to find.

    Deviations: the challenge's script leaves the lowest score out of its thresholds, which is that of missed lesions
    whenever there is one; here missed lesions have no score, and every detection counts.
    """
    lesions = np.concatenate([slide.lesions for slide in slides]) if slides else np.empty(0)
    if not len(lesions):
        return {}
    alarms = np.concatenate([slide.false_positives for slide in slides])
    found = lesions[np.isfinite(lesions)]
    thresholds = np.unique(np.concatenate([found, alarms]))[::-1]
    sensitivity = _at_or_above(found, thresholds) / len(lesions)
    per_slide = _at_or_above(alarms, thresholds) / len(slides)
    values = np.interp(FALSE_POSITIVES, np.append(0, per_slide), np.append(0, sensitivity))
    return {f"{x:g}": float(y) for x, y in zip(FALSE_POSITIVES, values, strict=True)} | {"score": float(values.mean())}


def match_polygons(points: ArrayLike, scores: ArrayLike, region: Any, um_per_px: float) -> Detections:
    """Detections of one slide against its annotated region.

    Args:
        points: ``[k, 2]``, level-0 px.
        scores: ``[k]``, larger is surer.
        region: shapely (Multi)Polygon of the annotated lesions, level-0 px (``Annotations.region``); empty or None for
            a negative slide. It grows by ``MARGIN_UM``, its parts join, their holes are filled.
        um_per_px: micrometres in a level-0 pixel (the challenge takes 0.243 for all slides).
    """
    places, values = _checked(points, scores)
    grown = shapely.Polygon() if region is None else shapely.buffer(region, MARGIN_UM / um_per_px)
    lesions = [shapely.Polygon(shapely.get_exterior_ring(part)) for part in shapely.get_parts(grown)]
    lesions = list(shapely.get_parts(shapely.union_all(lesions)))  # a lesion in the hole of another one is part of it
    isolated = [_longest_axis(polygon) * um_per_px < ISOLATED_UM for polygon in lesions]
    inside = np.zeros((len(lesions), len(values)), dtype=bool)
    for row, polygon in zip(inside, lesions, strict=True):
        shapely.prepare(polygon)
        row[:] = shapely.intersects_xy(polygon, *places.T)
    kept = inside[~np.array(isolated, dtype=bool)]
    best = np.where(kept, values, -np.inf).max(axis=1, initial=-np.inf)
    return Detections(best, values[~inside.any(0)])


def match_patches(
    coords: ArrayLike,
    patch_size: float,
    scores: ArrayLike,
    instance_labels: ArrayLike,
    um_per_px: float | None = None,
) -> Detections:
    """Scored patches against the lesions that positive patches form.

    A patch is a detection where no neighbour of its 3 x 3 scores higher. Positive patches that touch, at corners too,
    are one lesion, holes filled. That is coarser than polygons (:func:`match_polygons`) by up to a patch.

    Args:
        coords: ``[N, 2]`` corners of the patches; the nearest point of the grid counts.
        patch_size: step of the grid, same unit.
        scores: ``[N]``, larger is surer.
        instance_labels: 0/1 ``[N]``.
        um_per_px: micrometres in a unit of ``coords``; None where unknown: no lesion counts as isolated cells then.
    """
    places, values = _checked(coords, scores)
    cells = np.round((places - places.min(0)) / patch_size).astype(np.int64) + 1
    shape = tuple(cells.max(0) + 2)
    rank = np.zeros(shape, dtype=np.int64)  # ranks instead of scores: all different, so that a plateau has one summit
    np.maximum.at(rank, tuple(cells.T), 1 + np.argsort(np.argsort(values, kind="stable"), kind="stable"))
    order = np.argsort(values, kind="stable")
    summits = rank[(ndimage.maximum_filter(rank, size=3) == rank) & (rank > 0)] - 1
    detections = order[summits]

    positive = np.zeros(shape, dtype=bool)
    positive[tuple(cells[np.asarray(instance_labels) > 0].T)] = True
    lesion_of, count = ndimage.label(ndimage.binary_fill_holes(positive), structure=np.ones((3, 3)))
    hit = lesion_of[tuple(cells[detections].T)]
    best = np.full(count + 1, -np.inf)
    np.maximum.at(best, hit, values[detections])
    kept = np.ones(count + 1, dtype=bool)
    kept[0] = False  # the background
    if um_per_px is not None:
        for lesion in range(1, count + 1):
            axis = _axis_of_cells(np.argwhere(lesion_of == lesion)) * patch_size * um_per_px
            kept[lesion] = axis >= ISOLATED_UM
    return Detections(best[kept], values[detections[hit == 0]])


def _at_or_above(scores: Floats, thresholds: Floats) -> NDArray[np.int64]:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def _axis_of_cells(cells: NDArray[np.int64]) -> float:
    """Longest axis of the ellipse with the second moments of unit squares at ``cells`` ``[n, 2]``."""
    moments = np.cov(cells.T, bias=True) + np.eye(2) / 12
    return float(4 * np.sqrt(np.linalg.eigvalsh(moments)[-1]))


def _longest_axis(polygon: Any) -> float:
    """Longest axis of the ellipse with the second moments of a polygon without holes."""
    ring = shapely.get_coordinates(polygon) - shapely.get_coordinates(polygon.centroid)
    (x, y), (u, v) = ring[:-1].T, ring[1:].T
    cross = x * v - u * y
    xx = (cross * (x * x + x * u + u * u)).sum() / 12
    yy = (cross * (y * y + y * v + v * v)).sum() / 12
    xy = (cross * (x * v + 2 * x * y + 2 * u * v + u * y)).sum() / 24
    moments = np.array([[xx, xy], [xy, yy]]) / (cross.sum() / 2)
    return float(4 * np.sqrt(np.linalg.eigvalsh(moments)[-1]))


def _checked(points: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    places, values = np.asarray(points, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if (
        places.shape != (len(values), 2)
        or values.ndim != 1
        or not (np.isfinite(places).all() and np.isfinite(values).all())
    ):
        raise InputError(f"detections need finite points [k, 2] and scores [k], not {places.shape} and {values.shape}")
    return places, values
