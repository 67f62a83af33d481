"""The registered patch graphs: ``window``, ``radius``, ``knn``, ``feature_knn`` and ``delaunay``.

Every builder returns pairs ``(src, dst)``, int64 ``[E]`` each, without promise of order or direction:
:func:`mil_zoo.graph.build` takes the union with the reversed pairs and adds one self-loop a patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial import Delaunay, QhullError, cKDTree
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.graph.base import Pairs, register_graph

TOLERANCE = 1e-6  # of a radius: room for the rounding of coordinates that are small multiples of it
CHUNK = 2**23  # numbers looked at together: temporaries of 100 MB to 400 MB
MAX_PAIRS = 2**30  # each gives two edges, and edges are counted in int32
MAX_SPAN = 1e11  # radii across a bag: beyond, float64 rounding of its rows exceeds the margins below


@register_graph("window")
def window(coords: Tensor, w: float = 2, *, patch_size: float | None) -> Pairs:
    """Patches within ``w`` steps of the patch grid, diagonals included: ``window:2`` is the 5 x 5 window.

    An edge joins patches at Euclidean distance <= 1.42 * w * patch_size (so ``window:3`` also reaches (4, 0)), on or
    off the common grid: ``radius`` with R = 1.42 * w. Source: the graph of SRMIL (arXiv 2602.19487).

    Args:
        coords: ``[N, 2]``, any real dtype.
        w: half-width of the window, in patch steps.
        patch_size: step of the patch grid, in the unit of ``coords``.

    Returns:
        ``(src, dst)``, each pair one way; ``build`` adds the reverse and the self-loops. O(N log N + E) time.

    Raises:
        InputError: ``w`` or ``patch_size`` is not positive, or ``patch_size`` is missing.
    """
    return _pairs_within(_points(coords), 1.42 * _steps("window", w, patch_size))


@register_graph("radius")
def radius(coords: Tensor, R: float, *, patch_size: float | None) -> Pairs:
    """Patches within ``R`` patch steps: ``radius:1.5``.

    An edge joins patches at Euclidean distance <= R * patch_size, give or take 1e-6 of it for float32 rounding.

    Args:
        coords: ``[N, 2]``, any real dtype.
        R: in patch steps.
        patch_size: step of the patch grid, in the unit of ``coords``.

    Returns:
        ``(src, dst)``, each pair one way; ``build`` adds the reverse and the self-loops. O(N log N + E) time.

    Raises:
        InputError: ``R`` or ``patch_size`` is not positive, or ``patch_size`` is missing.
    """
    return _pairs_within(_points(coords), _steps("radius", R, patch_size))


@register_graph("knn")
def knn(coords: Tensor, k: int) -> Pairs:
    """The ``k`` spatially nearest other patches: ``knn:8``.

    An edge runs from each of the k nearest (itself excluded, a twin at the same place not) to the patch; of equally
    far patches those of lower index are taken; bags of k patches or fewer are complete. ``build`` takes the union
    with the reversed edges, so a patch can have more than k neighbours, and adds the self-loops.

    Args:
        coords: ``[N, 2]``, any real dtype and unit.
        k: a positive integer.

    Returns:
        ``(src, dst)``, ``[N * min(k, N - 1)]``. O(N k log N) time (a k-d tree).

    Raises:
        InputError: ``k`` is not a positive integer.
    """
    points = _points(coords)
    n = len(points)
    k = min(_count("knn", k), n - 1)
    if k < 1:
        return _empty()
    targets = _first_twins(points, k + 1)
    tree = cKDTree(points[targets])
    neighbours = np.empty((n, k), dtype=np.int64)
    pending, width = np.arange(n), k + 2  # itself, k others, and the next to see whether the k-th is tied
    while len(pending):
        width = min(width, len(targets))
        tied = []
        for start, stop in _chunks(len(pending), width):
            rows = pending[start:stop]
            distance, index = tree.query(points[rows], k=width)
            index = targets[index]
            farthest = distance[:, -1].copy()
            distance[index == rows[:, None]] = np.inf
            order = np.lexsort((index, distance))[:, :k]
            neighbours[rows] = np.take_along_axis(index, order, axis=1)
            kth = np.take_along_axis(distance, order[:, -1:], axis=1)[:, 0]
            tied.append(rows[kth >= farthest])
        pending = np.concatenate(tied) if width < len(targets) else pending[:0]
        width *= 2
    return _tensors(neighbours.ravel(), np.repeat(np.arange(n), k))


@register_graph("feature_knn", over="features")
def feature_knn(coords: Tensor | None, k: int, *, features: Tensor) -> Pairs:
    """The ``k`` other patches nearest in feature space: ``feature_knn:8``.

    An edge runs from each of the k nearest by Euclidean distance of the features (itself excluded, identical features
    not) to the patch; of equally far patches those of lower index are taken; bags of k patches or fewer are complete.
    ``build`` takes the union with the reversed edges and adds the self-loops.

    Distances come from float32 matrix products, whose rounding error is bounded; every patch that the bound leaves
    in doubt is compared again by float64 differences, so the graph is that of exact distances.

    Args:
        coords: not read.
        k: a positive integer.
        features: ``[N, D]`` float.

    Returns:
        ``(src, dst)``, ``[N * min(k, N - 1)]``. O(N^2 D) time; it holds one float32 copy of the features and
        about 100 MB of temporaries.

    Raises:
        InputError: ``k`` is not a positive integer, or a feature is not finite.
    """
    exact = features.to(torch.promote_types(features.dtype, torch.float32)).numpy()
    if exact.ndim != 2 or not np.isfinite(exact).all():
        raise InputError("graph 'feature_knn': features must be finite numbers, [N, D]; check the encoder's output")
    n, dim = exact.shape
    k = min(_count("feature_knn", k), n - 1)
    if k < 1:
        return _empty()
    targets = _first_twins(exact, k + 1)
    centre = exact.mean(axis=0, dtype=np.float64).astype(exact.dtype)  # any would do: a small norm is a tight bound
    x = (exact[targets] - centre).astype(np.float32, copy=False)
    scale = max(x.max(), -x.min()) or np.float32(1)  # no overflow in squares
    x /= scale
    square = _squared_norm(x)
    # |computed - exact| <= slack * (|x|^2 + |y|^2): dim + 1 roundings in the product, the rest in x, squares and sums.
    slack = np.float32((dim + 32) * 2.0**-24)
    src, dst = [], []
    for start, stop in _chunks(n, len(targets)):
        queries = (exact[start:stop] - centre).astype(np.float32, copy=False) / scale
        upper = queries @ x.T  # [rows, targets]; |query|^2 is left out of all, the same along a row
        upper *= -2
        upper += (1 + slack) * square
        kth = np.partition(upper, k, axis=1)[:, k]  # itself and k others are no farther
        upper -= 2 * slack * square  # now the lower bounds
        row, column = np.nonzero(upper <= (kth + 2 * slack * _squared_norm(queries))[:, None])
        row, candidate = row + start, targets[column]
        row, candidate = row[row != candidate], candidate[row != candidate]
        distance = _squared_distances(exact, row, candidate)
        order = np.lexsort((distance, row))  # stable, and candidates ascend
        first = np.searchsorted(row, np.arange(start, stop))
        nearest = order[(first[:, None] + np.arange(k)).ravel()]
        src.append(candidate[nearest])
        dst.append(row[nearest])
    return _tensors(np.concatenate(src), np.concatenate(dst))


@register_graph("delaunay")
def delaunay(coords: Tensor) -> Pairs:
    """The Delaunay triangulation of the patches.

    An edge joins patches that share a triangle whose circumcircle holds no other patch (where four or more lie on one
    empty circle, as on a grid, one triangulation of them). Patches on one line form a path along it. Of patches at
    one place the one of lowest index takes part, and the others are joined to it. ``build`` adds the reverse and the
    self-loops.

    Args:
        coords: ``[N, 2]``, any real dtype and unit.

    Returns:
        ``(src, dst)``. O(N log N) time (Qhull).
    """
    points = _points(coords)
    if len(points) < 2:
        return _empty()
    places, first, place = np.unique(points - points.min(axis=0), axis=0, return_index=True, return_inverse=True)
    path = np.argsort(places[:, np.ptp(places, axis=0).argmax()])
    edges = np.stack([path[:-1], path[1:]], axis=1)
    if len(places) > 2:
        try:
            triangulation = Delaunay(places)
            sides = triangulation.simplices[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
            # Qhull leaves a patch out that lies, to rounding, on another or on a side: (patch, triangle, nearest).
            edges = np.concatenate([sides, triangulation.coplanar[:, [0, 2]]])
        except QhullError:  # all on one line
            pass
    src, dst = first[edges].T
    twins = np.arange(len(points)), first[place.ravel()]  # an only one is joined to itself
    return _tensors(np.concatenate([src, twins[0]]), np.concatenate([dst, twins[1]]))


def _pairs_within(points: np.ndarray, reach: float) -> Pairs:
    """The pairs of points at distance <= ``reach``, one way, by hashing into rows of cells sorted along x.

    The rows are a third of ``reach`` high, so partners of a point lie in its own and the next three rows; in each of
    them they are a run of the points sorted by (row, x), whose ends a binary search finds. On a patch grid nearly all
    points of these runs are partners. Points beyond the reach are then removed by their distance.
    """
    if len(points) < 2:
        return _empty()
    span = points.max(axis=0) - points.min(axis=0)
    if not span.max() <= MAX_SPAN * reach:
        raise InputError(f"coords span {span.max():g} but edges only {reach:g}; give coords and patch_size in one unit")
    height = reach / 2.99  # not 3: a reach must not touch a fifth row by rounding
    level = (points[:, 1] - points[:, 1].min()) / height
    row = np.floor(level)
    order = np.lexsort((points[:, 0], row))
    row, level = row[order], level[order]
    x, y = points[order, 0], points[order, 1]
    rows, rank = np.unique(row, return_inverse=True)
    # One ascending key for (row, x). Rounding keeps it ascending: a search can find too many points, never too few.
    shifted, stride = x - x.min(), span[0] + 2 * reach
    key = rank * stride + shifted
    src, dst, num_candidates = [], [], 0
    for step in range(4):
        target = np.searchsorted(rows, rows + step)
        exists = np.append(rows, -1)[target] == rows + step
        i = np.flatnonzero(exists[rank])
        target = target[rank[i]]
        below = np.maximum(row[i] + step - level[i] - 1e-3, 0) * height  # vertical distance to that row, at least
        half = np.sqrt(np.maximum(reach**2 - below**2, 0)) + 1e-3 * reach
        start = i + 1 if step == 0 else np.searchsorted(key, target * stride + (shifted[i] - half))
        stop = np.searchsorted(key, target * stride + (shifted[i] + half), side="right")
        counts = stop - start
        num_candidates += counts.sum()
        if num_candidates > MAX_PAIRS:
            raise InputError(
                f"{len(x)} patches have more than {MAX_PAIRS} pairs within {reach:g}, too many edges for int32; "
                "check that patch_size has the unit of coords, or choose a smaller window"
            )
        for part in _parts(counts):
            a = np.repeat(i[part], counts[part])
            b = np.arange(len(a)) + np.repeat(start[part] - counts[part].cumsum() + counts[part], counts[part])
            square, square_y = x[a] - x[b], y[a] - y[b]
            square *= square
            square_y *= square_y
            square += square_y
            near = square <= (reach * (1 + TOLERANCE)) ** 2
            if not near.all():
                a, b = a[near], b[near]
            src.append(order[a])
            dst.append(order[b])
    return _tensors(np.concatenate(src), np.concatenate(dst))


def _first_twins(rows: np.ndarray, number: int) -> np.ndarray:
    """Ascending indices of the first ``number`` of each set of identical rows.

    The k nearest of a patch, ties going to the lower index, are always among these for ``number`` = k + 1: without
    the others, thousands of identical rows cost no more than a few.
    """
    rows = np.ascontiguousarray(rows)
    group = np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    place_in_group = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return np.sort(order[place_in_group < number])


def _squared_norm(x: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", x, x, dtype=np.float64).astype(np.float32)


def _squared_distances(x: np.ndarray, row: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Squared distances ``[P]`` of pairs of rows, by float64 differences."""
    parts = _chunks(len(row), 8 * x.shape[1])  # 8: it holds several copies, of twice the width
    differences = (np.subtract(x[row[a:b]], x[other[a:b]], dtype=np.float64) for a, b in parts)
    return np.concatenate([np.square(difference).sum(axis=1) for difference in differences])


def _chunks(length: int, width: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` over ``length`` rows of ``width`` numbers, about CHUNK numbers each."""
    size = max(1, CHUNK // width)
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _parts(counts: np.ndarray) -> Iterator[slice]:
    """Slices of ``counts`` that sum to about CHUNK each, more only where one count is larger."""
    total = counts.cumsum()
    cuts = [0, *np.searchsorted(total, np.arange(CHUNK, counts.sum(), CHUNK)), len(counts)]
    return (slice(a, b) for a, b in pairwise(cuts) if a < b)


def _points(coords: Tensor) -> np.ndarray:
    points = coords.double().numpy()
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise InputError(f"coords must be finite numbers, [N, 2], not {list(points.shape)}; check the bag's file")
    return points


def _steps(name: str, number: float, patch_size: float | None) -> float:
    if not (number > 0 and math.isfinite(number)):
        raise InputError(f"graph '{name}:{number}': the number of patch steps must be positive; write '{name}:2'")
    if patch_size is None:
        raise InputError(f"graph {name!r} needs patch_size, and this bag has none; give the step of the patch grid")
    if not (patch_size > 0 and math.isfinite(patch_size)):
        raise InputError(f"graph {name!r}: patch_size {patch_size} is not positive; give the step of the patch grid")
    return number * float(patch_size)


def _count(name: str, k: float) -> int:
    if not (isinstance(k, int) and k > 0):
        raise InputError(f"graph '{name}:{k}': the number of neighbours must be a positive integer; write '{name}:8'")
    return k


def _tensors(src: np.ndarray, dst: np.ndarray) -> Pairs:
    return torch.from_numpy(src), torch.from_numpy(dst)


def _empty() -> Pairs:
    return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
