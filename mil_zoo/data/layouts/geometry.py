"""The step of a patch grid: stated by a file, measured from coordinates, and what to say where the two disagree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from mil_zoo.errors import InputError

_SAMPLE = 512  # patches whose nearest neighbours are measured
_SAME = 0.95  # a measured step above this share of the stated one agrees with it
_FINEST = 1 / 16  # an overlap of 94 %: coordinates that are closer are in another unit


def number_of(attrs: Mapping[str, Any], name: str, path: Path) -> float | None:
    """An attribute as one positive number; of a pair the first, of text what it says; None where it is absent.

    Raises:
        InputError: it is no positive number.
    """
    if name not in attrs:
        return None
    value = attrs[name]
    first = np.ravel(np.asarray(value))[:1].tolist()
    try:
        number = float(first[0].decode() if isinstance(first[0], bytes) else first[0])
    except (IndexError, ValueError, TypeError, UnicodeDecodeError):
        number = float("nan")
    if not 0 < number < float("inf"):
        shown = first[0] if first else value
        raise InputError(f"{path}: the attribute {name} is {shown!r} and no positive number; extract the slide again")
    return number


def clam_size(attrs: Mapping[str, Any], path: Path) -> float | None:
    """The side of a patch in level-0 pixels by CLAM's attributes of ``coords``; None where they do not state it.

    It is ``patch_size`` (pixels of ``patch_level``) times ``downsample`` (of that level) and, where patches were scaled
    on the way, times ``custom_downsample``.
    """
    size = number_of(attrs, "patch_size", path)
    if size is None:
        return None
    return size * (number_of(attrs, "downsample", path) or 1) * (number_of(attrs, "custom_downsample", path) or 1)


def nearest_distances(coords: npt.NDArray[Any], sample: int | None = None) -> npt.NDArray[np.float64]:
    """Distance of each patch to the nearest patch at another place, in the unit of ``coords``.

    Args:
        coords: ``[N, 2]``.
        sample: measure about this many patches, evenly spread over the bag; None for all.

    Returns:
        ``[min(N, sample)]``; empty where all patches lie at one place.
    """
    # As complex numbers: their order is that of rows, and sorting them is many times faster than np.unique(axis=0).
    points = (
        np.unique(np.ascontiguousarray(coords, dtype=np.float64).view(np.complex128)).view(np.float64).reshape(-1, 2)
    )
    if len(points) < 2:
        return np.empty(0)
    asked = points if sample is None else points[:: max(1, len(points) // sample)]
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(asked, k=2)[0][:, 1])


def grid_step(coords: npt.NDArray[Any]) -> float | None:
    """The step of the grid that patches lie on: the most frequent distance of nearest patches.

    Where no distance is frequent (points off any grid, for instance nuclei), it is their median.

    Args:
        coords: ``[N, 2]`` in any unit.

    Returns:
        The step in that unit; None for fewer than two places.
    """
    distances = nearest_distances(coords, _SAMPLE)
    if len(distances) == 0:
        return None
    rounded = np.array([float(f"{distance:.3g}") for distance in distances])
    values, counts = np.unique(rounded, return_counts=True)
    most = counts.argmax()
    kept = distances[rounded == values[most]] if counts[most] >= 0.2 * len(distances) else distances
    return float(np.median(kept))


def checked_step(path: Path, coords: npt.NDArray[Any], stated: float, unit: str) -> float:
    """The stated step, once neighbouring coordinates are found not to be closer than it.

    Raises:
        InputError: they are, so the coordinates are in another unit.
    """
    measured = grid_step(coords)
    if measured is not None and measured < _SAME * stated:
        raise _another_unit(path, measured, stated, unit)
    return stated


def overlapping_step(path: Path, measured: float | None, size: float, where: str) -> tuple[float, str]:
    """The step of a grid of patches whose size is stated and whose overlap is not.

    Args:
        path: the feature file, for messages.
        measured: what :func:`grid_step` found.
        size: of a patch, in level-0 pixels.
        where: what states the size, for messages.

    Returns:
        The size where neighbours are not closer than it, else their distance; and where it comes from, in words.

    Raises:
        InputError: neighbours are so close that the coordinates must be in another unit.
    """
    if measured is None or measured > _SAME * size:
        return size, where
    if measured < _FINEST * size:
        raise _another_unit(path, measured, size, "level-0 px", where)
    return measured, f"the coordinates' own step: patches of {size:g} px ({where}) overlap"


def _another_unit(path: Path, measured: float, stated: float, unit: str, where: str = "the file") -> InputError:
    return InputError(
        f"{path}: neighbouring coordinates are {measured:g} apart where {where} states {stated:g} {unit}; the "
        f"coordinates are in another unit (grid indices, micrometres, another level): write them in {unit}"
    )
