"""The graph builders against DGL's own, brute force, values computed by hand, and real slides."""

from __future__ import annotations

import csv
import json
import os
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import needs_dgl
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from mil_zoo.errors import InputError
from mil_zoo.graph import build_csr, builders
from mil_zoo.kernels import CSR

SPATIAL = ["window:2", "radius:1.5", "knn:3", "delaunay"]


def edge_set(graph: CSR) -> set[tuple[int, int]]:
    src, dst = graph.indices.tolist(), graph.destinations.tolist()
    edges = set(zip(src, dst, strict=True))
    assert len(edges) == len(src), "an edge is repeated"
    return edges


def closed(pairs, num_nodes: int) -> set[tuple[int, int]]:
    """The pairs, both ways, with self-loops."""
    edges = {(int(a), int(b)) for a, b in pairs}
    return edges | {(b, a) for a, b in edges} | {(i, i) for i in range(num_nodes)}


def closed_dgl(graph) -> set[tuple[int, int]]:
    return closed(torch.stack(graph.edges(), dim=1).tolist(), graph.num_nodes())


def within(points: np.ndarray, reach: float) -> set[tuple[int, int]]:
    """Brute force: all pairs at distance <= reach, up to the documented 1e-6 of it."""
    return closed(np.argwhere(cdist(points, points) <= reach * (1 + 1e-6)), len(points))


def nearest(points: np.ndarray, k: int) -> set[tuple[int, int]]:
    """Brute force: the k nearest others by (distance, index)."""
    squared = np.array([((points - point) ** 2).sum(axis=1) for point in points.astype(np.float64)])
    np.fill_diagonal(squared, np.inf)
    order = np.argsort(squared, axis=1, kind="stable")[:, : min(k, len(points) - 1)]
    return closed([(j, i) for i, row in enumerate(order) for j in row], len(points))


def grid(rows: int, columns: int, step: float = 1) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x.ravel(), y.ravel()], axis=1) * step


def tissue(seed: int, count: int = 400, step: int = 256) -> np.ndarray:
    """Patches on one grid, some missing, in random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(grid(30, 30, step))[:count]


def contours(seed: int) -> np.ndarray:
    """Patches on several overlapping grids of step 256, each with an origin of its own, some of it negative."""
    rng = np.random.default_rng(seed)
    origins = rng.integers(-2000, 2000, (5, 1, 2))
    return rng.permutation((grid(9, 9, 256) + origins).reshape(-1, 2))


# --- window and radius ---------------------------------------------------------------------------------------------


@needs_dgl
@pytest.mark.parametrize("points", [tissue(0), contours(1)], ids=["grid", "contours"])
@pytest.mark.parametrize(("spec", "steps"), [("window:1", 1.42), ("window:2", 2.84), ("radius:1.7", 1.7)])
def test_radius_graphs_equal_dgl(points, spec, steps):
    from mil_zoo._dgl import dgl

    coords = torch.from_numpy(points).double()
    oracle = dgl.radius_graph(coords, steps * 256)
    assert edge_set(build_csr(coords, spec, 256)) == closed_dgl(oracle)


@pytest.mark.parametrize("seed", range(20))
def test_radius_equals_brute_force_on_scattered_points(seed):
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-3, 4)
    points = rng.normal(size=(rng.integers(2, 300), 2)) * [spread, 1] + rng.normal(size=2) * 1e4
    points = np.concatenate([points, points[:7]])  # with twins
    for steps in (0.1, 1.0, 3.3):
        assert edge_set(build_csr(points, f"radius:{steps}", 2.0)) == within(points, steps * 2.0)


@pytest.mark.parametrize("chunk", [1, 50])
def test_radius_does_not_depend_on_the_chunk_size(monkeypatch, chunk):
    points = contours(2)
    expected = edge_set(build_csr(points, "window:2", 256))
    monkeypatch.setattr(builders, "CHUNK", chunk)
    assert edge_set(build_csr(points, "window:2", 256)) == expected == within(points, 2.84 * 256)


def test_window_is_radius_of_1_42_w():
    points = contours(3)
    assert edge_set(build_csr(points, "window", 256)) == edge_set(build_csr(points, "radius:2.84", 256))


def test_window_reaches_what_the_paper_says():
    """On a grid, by hand: 2.84 steps hold the 5 x 5 window, 4.26 steps (4, 0) and (4, 1) but not (4, 2) or (5, 0)."""
    centre = 10 * 21 + 10
    points = grid(21, 21, 224)

    def reached(spec):
        graph = build_csr(points, spec, 224)
        row = graph.indices[graph.indptr[centre] : graph.indptr[centre + 1]]
        offsets = (points[row] - points[centre]) // 224
        return {(int(x), int(y)) for x, y in offsets}

    assert reached("window:2") == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}
    assert build_csr(points, "window:2", 224).indptr.diff()[centre] == 25
    three = reached("window:3")
    assert {(4, 0), (4, 1), (0, -4), (3, 3)} <= three
    assert not {(4, 2), (2, 4), (5, 0)} & three
    assert len(three) == 61  # lattice points with x^2 + y^2 <= 18


def test_window_equals_the_golden_graph():
    golden = np.load(Path(__file__).parents[1] / "golden" / "srmil.npz")
    graph = build_csr(golden["coords"], "window:2", float(golden["patch_size"]))
    assert edge_set(graph) == {(int(a), int(b)) for a, b in golden["edges"].T}


def test_distances_equal_to_the_radius_count_in_float32():
    """0.1 has no exact float: a step of it must still be one step, and 1e-5 of a step more must not."""
    points = torch.tensor([[0.1 * i, 0] for i in range(8)], dtype=torch.float32)
    assert (points[:, 0].double().diff() > 0.1).any()
    assert edge_set(build_csr(points, "radius:1", 0.1)) == closed(pairwise(range(8)), 8)
    assert edge_set(build_csr([[0, 0], [1.00001, 0]], "radius:1", 1)) == closed([], 2)


@pytest.mark.parametrize("offset", [-(10**12), 10**12, 2**50])
def test_far_away_coordinates(offset):
    points = contours(4)
    moved = torch.from_numpy(points + offset)
    assert edge_set(build_csr(moved, "window:2", 256)) == within(points, 2.84 * 256)


def test_two_clusters_very_far_apart():
    points = tissue(5, count=100)
    both = np.concatenate([points, points + np.array([[10**12, -(10**12)]])])
    one = within(points, 2.84 * 256)
    assert edge_set(build_csr(both, "window:2", 256)) == one | {(a + 100, b + 100) for a, b in one}


def test_too_many_edges_are_refused_before_they_are_made():
    with pytest.raises(InputError, match="patch_size has the unit of coords"):
        build_csr(np.zeros((60_000, 2)), "window:2", 256)


def test_coords_and_patch_size_of_different_units_are_refused():
    with pytest.raises(InputError, match="one unit"):
        build_csr([[0.0, 0.0], [1e9, 0.0]], "window:2", 1e-6)


# --- nearest neighbours --------------------------------------------------------------------------------------------


@needs_dgl
@pytest.mark.parametrize("k", [1, 4, 9])
def test_knn_equals_dgl(k):
    from mil_zoo._dgl import dgl

    coords = torch.from_numpy(np.random.default_rng(k).normal(size=(200, 2)) * 1000)
    oracle = dgl.knn_graph(coords, k + 1)  # DGL counts the patch itself
    assert edge_set(build_csr(coords, f"knn:{k}")) == closed_dgl(oracle)


@needs_dgl
@pytest.mark.parametrize("k", [1, 5])
def test_feature_knn_equals_dgl(k):
    from mil_zoo._dgl import dgl

    features = torch.from_numpy(np.random.default_rng(k).normal(size=(150, 24)))
    oracle = dgl.knn_graph(features, k + 1)
    assert edge_set(build_csr(None, f"feature_knn:{k}", features=features)) == closed_dgl(oracle)


@pytest.mark.parametrize("k", [1, 2, 5, 6, 8, 13])
def test_knn_breaks_ties_by_index(k):
    """On a grid most distances are tied; twins are at distance 0 but are not the patch itself."""
    points = np.concatenate([tissue(6, count=150), tissue(6, count=150)[:20], np.zeros((30, 2))])
    assert edge_set(build_csr(points, f"knn:{k}")) == nearest(points, k)


@pytest.mark.parametrize("chunk", [1, 500, 2**23])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_feature_knn_breaks_ties_by_index(monkeypatch, k, chunk):
    """Features of few values have ties everywhere, in the interior and among twins."""
    monkeypatch.setattr(builders, "CHUNK", chunk)
    features = np.random.default_rng(k).integers(0, 3, (120, 5)).astype(np.float32)
    features[40:70] = features[3]
    assert edge_set(build_csr(None, f"feature_knn:{k}", features=features)) == nearest(features, k)


@pytest.mark.parametrize(
    ("scale", "offset", "noise"), [(1, 0, 1), (1, 1000, 1), (1e-20, 0, 1), (1e25, 0, 1), (1, 0, 1e-4)]
)
def test_feature_knn_is_exact_where_float32_products_are_not(scale, offset, noise):
    """Far from the origin, and with rows that differ by less than the rounding of their products."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(10, 64)).repeat(20, axis=0) + noise * rng.normal(size=(200, 64))
    features = ((features + offset) * scale).astype(np.float32)
    exact = features.astype(np.float64) / scale
    assert edge_set(build_csr(None, "feature_knn:4", features=features)) == nearest(exact, 4)


def test_feature_knn_of_half_precision_features():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).half()
    assert edge_set(build_csr(None, "feature_knn:3", features=features)) == nearest(features.double().numpy(), 3)


@pytest.mark.parametrize("spec", ["knn:8", "feature_knn:8"])
def test_small_bags_take_all_others(spec):
    points = np.random.default_rng(0).normal(size=(6, 2))
    everything = {(a, b) for a in range(6) for b in range(6)}
    assert edge_set(build_csr(points, spec, features=points)) == everything


@pytest.mark.parametrize("spec", ["knn:2", "feature_knn:2"])
def test_thousands_of_twins_join_the_first(spec):
    """Of patches all at one place, the two first others are taken: without an N x N search."""
    zeros = np.zeros((20_000, 2), dtype=np.float32)
    expected = closed([(j, i) for i in range(20_000) for j in [j for j in range(3) if j != i][:2]], 20_000)
    assert edge_set(build_csr(zeros, spec, features=zeros)) == expected


# --- Delaunay ------------------------------------------------------------------------------------------------------


def test_delaunay_has_empty_circumcircles():
    points = np.random.default_rng(0).uniform(size=(14, 2))
    edges = set()
    for a, b, c in combinations(range(14), 3):
        system = 2 * (points[[b, c]] - points[a])
        centre = np.linalg.solve(system, (points[[b, c]] ** 2).sum(1) - (points[a] ** 2).sum())
        distance = np.linalg.norm(points - centre, axis=1)
        if (np.delete(distance, [a, b, c]) > distance[a]).all():
            edges |= {(a, b), (b, c), (a, c)}
    assert edge_set(build_csr(points, "delaunay")) == closed(edges, 14)


def test_delaunay_of_a_grid_has_no_long_edges():
    """12 x 9 without a corner: the sides, and one diagonal of every square or cut corner; nothing along the border."""
    points = grid(12, 9, 224)[1:] + 50_000
    graph = build_csr(points, "delaunay")
    src, dst = graph.indices.numpy(), graph.destinations.numpy()
    assert (np.abs(points[src] - points[dst]) <= 224).all()
    assert graph.num_edges == 2 * (11 * 9 + 12 * 8 - 2 + 11 * 8) + 107


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (3, -7), (0.1, 0.3)])
def test_delaunay_of_a_line_is_a_path(direction):
    place = np.random.default_rng(0).permutation(9)
    points = place[:, None] * np.array([direction]) + 5
    rank = np.argsort(place)
    assert edge_set(build_csr(points, "delaunay")) == closed(pairwise(rank), 9)


def test_delaunay_joins_twins_to_the_first():
    points = [[0, 0], [4, 0], [0, 3], [4, 0], [0, 0], [4, 0]]
    assert edge_set(build_csr(points, "delaunay")) == closed([(0, 1), (1, 2), (0, 2), (1, 3), (1, 5), (0, 4)], 6)


def test_delaunay_keeps_patches_that_qhull_takes_for_others():
    points = np.random.default_rng(0).uniform(size=(30, 2))
    points = np.concatenate([points, points[:3] + 1e-15])
    assert len(np.unique(points, axis=0)) == 33
    assert {(0, 30), (1, 31), (2, 32)} <= edge_set(build_csr(points, "delaunay"))


def test_delaunay_of_two_places():
    assert edge_set(build_csr([[0, 0], [1, 1]], "delaunay")) == closed([(0, 1)], 2)
    assert edge_set(build_csr([[0, 0], [0, 0], [1, 1]], "delaunay")) == closed([(0, 1), (0, 2)], 3)


# --- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*SPATIAL, "feature_knn:3"])
@pytest.mark.parametrize(
    "points",
    [tissue(7, 60), contours(8), np.zeros((5, 2)), grid(1, 6), grid(1, 2), grid(1, 1), np.zeros((0, 2))],
    ids=["grid", "contours", "twins", "line", "two", "one", "none"],
)
def test_graphs_are_symmetric_with_one_self_loop_a_patch(spec, points):
    features = points.astype(np.float32)
    graph = build_csr(points, spec, 256, features)
    edges = edge_set(graph)
    assert graph.num_src == graph.num_dst == len(points)
    assert graph.indptr.dtype == graph.indices.dtype == torch.int32
    assert edges == closed(edges, len(points))
    rows = torch.tensor_split(graph.indices, graph.indptr[1:-1].long())
    assert all((row.diff() > 0).all() for row in rows if len(points))


@pytest.mark.parametrize("spec", SPATIAL)
def test_twins_are_connected(spec):
    points = np.concatenate([contours(9)[:50], contours(9)[:50]])
    edges = edge_set(build_csr(points, spec, 256))
    assert all((i, i + 50) in edges for i in range(50))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("window:0", "positive"),
        ("window:-1", "positive"),
        ("window:nan", "positive"),
        ("window:2,3", "too many"),
        ("radius:0", "positive"),
        ("radius:-2", "positive"),
        ("radius:inf", "positive"),
        ("radius", "missing"),
        ("knn:0", "positive integer"),
        ("knn:-3", "positive integer"),
        ("knn:2.5", "positive integer"),
        ("knn", "missing"),
        ("feature_knn:0", "positive integer"),
        ("feature_knn:1.5", "positive integer"),
        ("feature_knn", "missing"),
    ],
)
def test_bad_numbers_are_refused(spec, message):
    points = grid(3, 3)
    with pytest.raises(InputError, match=message):
        build_csr(points, spec, 1, points.astype(np.float32))


@pytest.mark.parametrize("spec", ["window:2", "radius:1"])
@pytest.mark.parametrize(
    ("patch_size", "message"), [(None, "needs patch_size"), (0, "not positive"), (-256, "not pos")]
)
def test_patch_size_is_needed(spec, patch_size, message):
    with pytest.raises(InputError, match=message):
        build_csr(grid(3, 3), spec, patch_size)


@pytest.mark.parametrize("spec", SPATIAL)
@pytest.mark.parametrize("coords", [np.zeros((4, 3)), np.zeros(4), np.array([[0, 0], [np.nan, 1]])])
def test_bad_coords_are_refused(spec, coords):
    with pytest.raises(InputError, match="finite numbers"):
        build_csr(coords, spec, 1)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="finite numbers"):
        build_csr(None, "feature_knn:1", features=np.array([[0.0], [np.inf]]))


# --- real slides ---------------------------------------------------------------------------------------------------


def real_slide(kind: str) -> tuple[np.ndarray, int]:
    """Coordinates of the largest slide of a kind (TCGA: patches cut at level 0 only) and their step."""
    root = os.environ.get("MIL_ZOO_REAL_DATA")
    if not root:
        pytest.skip("MIL_ZOO_REAL_DATA is not set")
    folder = Path(root) / "coords"
    if kind == "camelyon16":
        slides = np.load(folder / "camelyon16_patch_coords_standrews.npz")
        return max((slides[key] for key in slides if key.endswith("__coords")), key=len), 256
    slides = np.load(folder / "tcga_lihc_clam_coords.npz")
    with (folder / "tcga_lihc_clam_coords.csv").open() as file:
        rows = [(row["slide"].split(".")[0], json.loads(row["attrs"])) for row in csv.DictReader(file)]
    sizes = {slide: attrs["patch_size"] for slide, attrs in rows if attrs["patch_level"] == 0 and slide in slides}
    slide = max(sizes, key=lambda slide: len(slides[slide]))
    return slides[slide], sizes[slide]


@pytest.mark.parametrize("kind", ["camelyon16", "tcga"])
@pytest.mark.parametrize("spec", ["window:2", "window:3"])
def test_real_slides_equal_a_kd_tree(kind, spec):
    coords, patch_size = real_slide(kind)
    if kind == "tcga":
        assert len(np.unique(coords % patch_size, axis=0)) > 1  # contours off one common grid
    reach = 1.42 * int(spec[-1]) * patch_size * (1 + 1e-6)
    pairs = cKDTree(coords).query_pairs(reach, output_type="ndarray").astype(np.int64)
    loops = np.arange(len(coords))
    src, dst = np.concatenate([pairs, pairs[:, ::-1], np.stack([loops, loops], axis=1)]).T
    graph = build_csr(coords, spec, patch_size)
    assert np.array_equal(np.sort(dst * len(coords) + src), (graph.destinations * len(coords) + graph.indices).numpy())
