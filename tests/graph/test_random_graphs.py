"""Graphs over random coordinates: symmetric, with one self-loop a patch, as brute force has them, in any order."""

import numpy as np
import pytest
import torch
from examples import attempt, some
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mil_zoo import Bag, BagBatch, InputError
from mil_zoo.graph import build_csr

POINTS = hnp.arrays(np.float64, st.tuples(st.integers(1, 25), st.just(2)), elements=st.integers(-6, 6).map(float))
SPECS = st.sampled_from(["window:1", "window:2", "radius:1.5", "knn:1", "knn:4", "delaunay", "feature_knn:3"])


def dense(csr):
    degrees = np.diff(csr.indptr.numpy())
    matrix = np.zeros((len(degrees), len(degrees)), dtype=int)
    rows = np.repeat(np.arange(len(degrees)), degrees)
    np.add.at(matrix, (rows, csr.indices.numpy()), 1)
    return matrix


@some
@given(points=POINTS, spec=SPECS)
def test_symmetric_unique_and_with_self_loops(points, spec):
    matrix = dense(build_csr(points * 256, spec, patch_size=256, features=torch.from_numpy(points).float()))
    assert (matrix == matrix.T).all()
    assert matrix.max() == 1
    assert (matrix.diagonal() == 1).all()


@some
@given(points=POINTS, reach=st.integers(1, 3), seed=st.integers(0, 99))
def test_windows_and_radii_are_those_of_brute_force_in_any_order(points, reach, seed):
    apart = np.abs(points[:, None] - points[None])
    distance = np.hypot(apart[..., 0], apart[..., 1])
    expected = {f"window:{reach}": distance < 1.42 * reach, f"radius:{reach}": distance <= reach}
    order = np.random.default_rng(seed).permutation(len(points))
    for spec, near in expected.items():
        assert (dense(build_csr(points * 512, spec, patch_size=512)) == near).all()
        moved = dense(build_csr(points[order] * 512 + 7, spec, patch_size=512))
        assert (moved == near[np.ix_(order, order)]).all()


@some
@given(points=st.lists(POINTS, min_size=1, max_size=3), spec=SPECS)
def test_a_batch_holds_the_graphs_of_its_bags(points, spec):
    bags = [
        Bag(features=each + 1, coords=each * 256, patch_size=256, label=0, slide_id=str(i))
        for i, each in enumerate(points)
    ]
    alone, said = attempt(lambda: [dense(bag.graph(spec)) for bag in bags])
    if alone is None:
        assert "no patch has a neighbour" in said
        return
    together = dense(BagBatch.from_bags(bags, graph=spec).graph.csr)
    assert together.sum() == sum(each.sum() for each in alone)
    first = 0
    for each in alone:
        assert (together[first : first + len(each), first : first + len(each)] == each).all()
        first += len(each)


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e300])
def test_coordinates_that_are_no_places(odd):
    try:
        csr = build_csr([[0.0, 0.0], [odd, 1.0]], "window:1", patch_size=1)
    except InputError:
        return
    assert csr.num_edges == 2
