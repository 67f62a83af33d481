"""Occupied sites and the edges of their convolutions, against loops."""

import numpy as np
import pytest
import torch

from mil_zoo import InputError
from mil_zoo.graph.sites import WINDOW, Sites


def random_slides(seed=0, sizes=(1, 7, 30, 12)):
    rng = np.random.default_rng(seed)
    coords = np.concatenate(
        [
            rng.integers(0, span, (n, 2)) + rng.integers(-900, 900, 2)
            for n, span in zip(sizes, (1, 500, 2000, 3000), strict=True)
        ]
    )
    return torch.from_numpy(coords).float(), torch.tensor([0, *np.cumsum(sizes)])


def places(sites):
    return list(zip(*(column.tolist() for column in sites.columns), strict=True))


def test_sites_are_floors_from_each_slides_corner():
    coords, offsets = random_slides()
    sites, site_of_instance = Sites.of(coords, offsets, torch.tensor([224.0, 100.0, 224.0, 224.0]))
    expected = []
    for b, step in enumerate([224, 100, 224, 224]):
        own = coords[offsets[b] : offsets[b + 1]].long()
        expected += [(b, *place) for place in ((own - own.min(0).values) // step).tolist()]
    assert [places(sites)[i] for i in site_of_instance] == expected
    assert places(sites) == sorted(set(expected))
    counts = [sum(place[0] == b for place in places(sites)) for b in range(4)]
    assert sites.offsets.diff().tolist() == counts


def test_neighbours_are_the_occupied_sites_of_the_window():
    sites, _ = Sites.of(*random_slides(), 224)
    occupied = {place: i for i, place in enumerate(places(sites))}
    edges = sites.neighbours()
    got = edge_set(edges)
    expected = {
        (tap, occupied[b, x + kx - 1, y + ky - 1], i)
        for (b, x, y), i in occupied.items()
        for tap, (kx, ky) in enumerate(WINDOW)
        if (b, x + kx - 1, y + ky - 1) in occupied
    }
    assert got == expected
    assert len(edges.src) == len(expected)


@pytest.mark.parametrize("extra", [0, 1, 4])
def test_strided_outputs_exist_where_their_window_is_occupied(extra):
    sites, _ = Sites.of(*random_slides(1), 224)
    size = sites.extent.clamp(min=3) + extra
    out, edges = sites.strided(size)
    expected = set()
    for i, (b, x, y) in enumerate(places(sites)):
        for tap, (kx, ky) in enumerate(WINDOW):
            for ox in range((int(size[0]) - 3) // 2 + 1):
                for oy in range((int(size[1]) - 3) // 2 + 1):
                    if (2 * ox + kx, 2 * oy + ky) == (x, y):
                        expected.add((tap, i, (b, ox, oy)))
    assert {(tap, src, places(out)[dst]) for tap, src, dst in edge_set(edges)} == expected
    assert places(out) == sorted({place for _, _, place in expected})


def edge_set(edges):
    tap = torch.repeat_interleave(torch.arange(9), torch.tensor(edges.counts))
    return set(zip(tap.tolist(), edges.src.tolist(), edges.dst.tolist(), strict=True))


def test_a_downsample_in_another_unit_is_an_error():
    coords = torch.tensor([[0.0, 0.0], [1e9, 1e9]])
    with pytest.raises(InputError, match=r"coords span .* sites"):
        Sites.of(coords, torch.tensor([0, 2]), 0.25)
