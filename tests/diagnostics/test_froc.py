"""FROC: cases counted by hand, and the challenge's rules drawn on a raster."""

import numpy as np
import pytest
import shapely
from scipy import ndimage

from mil_zoo.diagnostics.froc import Detections, froc, match_patches, match_polygons
from mil_zoo.errors import InputError


def test_by_hand():
    """Three lesions and four slides; one lesion is missed.

    threshold            0.9   0.8   0.7   0.5   0.3
    lesions found          1     1     1     2     2     of 3
    false positives        0     1     2     2     3     over 4 slides: 0, 1/4, 1/2, 1/2, 3/4
    """
    slides = [
        Detections(np.array([0.9, -np.inf]), np.array([0.8, 0.3])),
        Detections(np.array([]), np.array([0.7])),
        Detections(np.array([0.5]), np.array([])),
        Detections(np.array([]), np.array([])),
    ]
    assert froc(slides) == pytest.approx(
        {"0.25": 1 / 3, "0.5": 2 / 3, "1": 2 / 3, "2": 2 / 3, "4": 2 / 3, "8": 2 / 3, "score": 11 / 18}
    )


def test_between_two_points_the_curve_is_straight():
    """No false positive at the first lesion, 1 a slide at the second: half way at 1/2."""
    slides = [Detections(np.array([0.9, 0.1]), np.array([0.5]))]
    got = froc(slides)
    assert (got["0.25"], got["0.5"], got["1"]) == pytest.approx((0.5, 0.5, 1.0))
    steep = froc([Detections(np.array([0.9, 0.5]), np.array([0.5]))])  # found together with a false positive
    assert (steep["0.25"], steep["0.5"], steep["1"]) == pytest.approx((0.625, 0.75, 1.0))


def test_without_lesions_there_is_nothing_to_find():
    assert froc([Detections(np.array([]), np.array([0.5]))]) == {}
    assert froc([]) == {}


UM = 0.25  # micrometres in a pixel


def disc(x, y, diameter_um):
    return shapely.Point(x / UM, y / UM).buffer(diameter_um / 2 / UM, quad_segs=32)


def test_isolated_cells_count_neither_way():
    # Grown by 37.5 um on each side, 190 um are 265 and isolated; 210 um are 285 and a lesion.
    region = shapely.union_all([disc(0, 0, 190), disc(1000, 0, 210)])
    points = np.array([[0, 0], [1000, 0], [3000, 0]]) / UM
    got = match_polygons(points, [0.9, 0.8, 0.7], region, UM)
    assert got.lesions.tolist() == [0.8]
    assert got.false_positives.tolist() == [0.7]


def test_parts_closer_than_75_um_are_one_lesion_and_a_hole_belongs_to_it():
    near = shapely.union_all([disc(0, 0, 300), disc(370, 0, 300)])  # a gap of 70 um
    far = shapely.union_all([disc(0, 0, 300), disc(380, 0, 300)])  # of 80
    assert len(match_polygons(np.empty((0, 2)), [], near, UM).lesions) == 1
    assert len(match_polygons(np.empty((0, 2)), [], far, UM).lesions) == 2
    ring = disc(0, 0, 1000).difference(disc(0, 0, 600))
    island = shapely.union_all([ring, disc(0, 0, 300)])
    got = match_polygons([[0, 0], [200 / UM, 0]], [0.4, 0.6], island, UM)
    assert got.lesions.tolist() == [0.6]
    assert not len(got.false_positives)


def test_a_negative_slide_has_false_positives_only():
    got = match_polygons([[0, 0], [1, 1]], [0.2, 0.3], None, UM)
    assert (got.lesions.tolist(), got.false_positives.tolist()) == ([], [0.2, 0.3])


@pytest.mark.parametrize("seed", range(6))
def test_against_the_rules_on_a_raster(seed):
    """The challenge's steps with a mask of 5 um: grow by 37.5 um, fill, label, drop short ones, look detections up."""
    rng = np.random.default_rng(seed)
    step, side = 5.0, 600
    discs = [(*rng.uniform(300, 2700, 2), rng.uniform(60, 500)) for _ in range(9)]
    y, x = np.mgrid[:side, :side] * step
    mask = np.any([(x - cx) ** 2 + (y - cy) ** 2 < (d / 2) ** 2 for cx, cy, d in discs], axis=0)
    grown = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~mask) * step < 37.5)
    lesions, count = ndimage.label(grown, structure=np.ones((3, 3)))
    axes = []
    for lesion in range(1, count + 1):
        cells = np.argwhere(lesions == lesion)
        axes.append(4 * np.sqrt(np.linalg.eigvalsh(np.cov(cells.T, bias=True) + np.eye(2) / 12)[-1]) * step)
    edge = np.abs(ndimage.distance_transform_edt(grown) - ndimage.distance_transform_edt(~grown)) * step
    spots = rng.integers(0, side, (200, 2))
    spots = spots[edge[tuple(spots.T)] > 15]  # not where raster and polygon may differ
    scores = rng.random(len(spots))
    region = shapely.union_all([disc(*part) for part in discs])
    got = match_polygons(spots[:, ::-1] * step / UM, scores, region, UM)

    label = lesions[tuple(spots.T)]
    kept = [i + 1 for i, axis in enumerate(axes) if axis >= 275]
    assert all(abs(axis - 275) > 3 for axis in axes), "another seed: a lesion is too near the limit for the raster"
    best = [max(scores[label == lesion], default=-np.inf) for lesion in kept]
    assert sorted(got.lesions) == pytest.approx(sorted(best))
    assert sorted(got.false_positives) == pytest.approx(sorted(scores[label == 0]))


def grid(width, height, size=100.0):
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) * size


def test_patches_by_hand():
    """6 x 4 patches; lesions of two patches each at the left and right end; peaks at patches (0, 0), (5, 1), (3, 3)."""
    coords = grid(6, 4)
    labels = np.isin(np.arange(24), [0, 7, 11, 17])  # (0, 0) and (1, 1) touch at a corner; (5, 1) and (5, 2)
    scores = np.full(24, 0.01)
    scores[[0, 11, 21, 22]] = [0.9, 0.5, 0.7, 0.6]  # (4, 3) lies next to (3, 3), which is higher
    got = match_patches(coords, 100.0, scores, labels)
    assert sorted(got.lesions) == [0.5, 0.9]
    peaks = sorted(got.false_positives)[::-1]
    assert peaks[0] == 0.7
    assert 0.6 not in peaks


def test_small_lesions_of_patches_are_left_out_where_micrometres_are_known():
    coords, labels = grid(8, 1), np.array([1, 0, 0, 1, 1, 1, 1, 0])
    scores = np.linspace(0.8, 0.1, 8)
    assert len(match_patches(coords, 100.0, scores, labels).lesions) == 2
    # At 0.6 um a pixel a patch is 60 um: one is isolated cells, four (277 um along the ellipse's axis) are a lesion.
    known = match_patches(coords, 100.0, scores, labels, um_per_px=0.6)
    assert len(known.lesions) == 1
    assert 0.8 not in known.false_positives
    assert len(match_patches(coords, 100.0, scores, labels, um_per_px=0.59).lesions) == 0


def test_equal_scores_have_one_summit_and_offsets_do_not_matter():
    coords, labels = grid(5, 5), np.zeros(25)
    flat = match_patches(coords + 12_345.6, 100.0, np.full(25, 0.3), labels)
    assert 1 <= len(flat.false_positives) <= 4
    assert set(flat.false_positives) == {0.3}
    one = match_patches([[7.0, 9.0]], 100.0, [0.4], [1])
    assert (one.lesions.tolist(), one.false_positives.tolist()) == ([0.4], [])


def test_wrong_detections_are_refused():
    with pytest.raises(InputError, match="finite points"):
        match_polygons([[0, np.nan]], [0.5], None, UM)
