"""Time to label the patches of a slide from polygons: ``pytest benchmarks/test_annotations.py``.

The baseline is shapely alone: an index over the patches, then the exact overlap of every patch with every lesion it
meets. ``extra_info`` holds the size of the problem and the floor: the bytes of reading coordinates and vertices once
and writing the labels once.
"""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from mil_zoo.data import Annotations, label_instances

STEP = 256


def slide(patches: int, polygons: int, vertices: int) -> tuple[np.ndarray, Annotations]:
    """``patches`` on a square grid, and disjoint ragged lesions that cover about a fifth of it."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(patches**0.5))
    y, x = np.divmod(np.arange(patches), side)
    per_row = int(np.ceil(polygons**0.5))
    cell = side * STEP / per_row
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    lesions = []
    for i in range(polygons):
        radius = cell * (
            0.26 + 0.02 * rng.standard_normal(vertices).cumsum() / vertices**0.5 + 0.004 * rng.random(vertices)
        )
        centre = cell * (np.array(divmod(i, per_row)) + 0.5)
        lesions.append(shapely.Polygon(centre + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])))
    return np.column_stack([x, y]) * STEP, Annotations(lesions)


def with_shapely_alone(coords: np.ndarray, annotations: Annotations) -> np.ndarray:
    boxes = shapely.box(coords[:, 0], coords[:, 1], coords[:, 0] + STEP, coords[:, 1] + STEP)
    parts = shapely.get_parts(annotations.region)
    part, patch = shapely.STRtree(boxes).query(parts, predicate="intersects")
    share = np.zeros(len(coords))
    np.add.at(share, patch, shapely.area(shapely.intersection(parts[part], boxes[patch])) / STEP**2)
    return share > 0.2


@pytest.mark.parametrize("side", ["mil_zoo", "shapely"])
@pytest.mark.parametrize(("patches", "polygons", "vertices"), [(50_000, 150, 300), (50_000, 4, 4_000)])
def test_labels_of_a_slide(benchmark, side, patches, polygons, vertices):
    benchmark.group = f"{patches} patches, {polygons} polygons of {vertices} vertices"
    coords, annotations = slide(patches, polygons, vertices)
    expected = with_shapely_alone(coords, annotations)  # also makes the region, which both then share
    if side == "mil_zoo":
        labels = benchmark.pedantic(label_instances, (coords, STEP, annotations), rounds=3, warmup_rounds=1).numpy()
    else:
        labels = benchmark.pedantic(with_shapely_alone, (coords, annotations), rounds=1)
    assert 0.1 < expected.mean() < 0.4
    assert (labels == expected).all()
    floor = coords.nbytes + 16 * polygons * vertices + 8 * patches
    benchmark.extra_info.update(patches=patches, polygons=polygons, vertices=vertices, memory_floor_bytes=floor)
