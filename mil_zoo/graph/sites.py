"""Patches as the occupied sites of a regular grid, and the edges along which convolutions of that grid act."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.ops.relational_gather_gemm import RelationalEdges

WINDOW = [(kx, ky) for kx in range(3) for ky in range(3)]  # tap = 3 * kx + ky


@dataclass(frozen=True, eq=False)
class Sites:
    """The occupied sites of several slides' grids, end to end, in the order (slide, x, y).

    Attributes:
        keys: int64 ``[S]``, ascending: ``(slide * width + x) * height + y``.
        offsets: int64 ``[B + 1]``; slide b is sites ``offsets[b]:offsets[b + 1]``.
        extent: int64 ``[2]``, the grid's size in sites along x and y; one for all slides.
    """

    keys: Tensor
    offsets: Tensor
    extent: Tensor

    @classmethod
    def of(cls, coords: Tensor, offsets: Tensor, downsample: Tensor | float) -> tuple[Sites, Tensor]:
        """The sites that instances lie on: ``floor((coords - minimum of the slide) / downsample)``.

        Args:
            coords: ``[N, 2]``, any real dtype.
            offsets: int64 ``[B + 1]``, slides of the instances.
            downsample: size of a site in the unit of ``coords``, one for all or ``[B]``.

        Returns:
            the sites, and int64 ``[N]``: the site of each instance. O(N log N) time, whatever the extent.

        Raises:
            InputError: the grids hold more than 2^62 places.
        """
        num_slides, sizes = len(offsets) - 1, offsets.diff()
        slide = torch.repeat_interleave(torch.arange(num_slides, device=coords.device), sizes, output_size=len(coords))
        points = coords.double()
        corner = points.new_full((num_slides, 2), torch.inf)
        corner.scatter_reduce_(0, slide[:, None].expand_as(points), points, "amin")
        step = torch.as_tensor(downsample, dtype=torch.float64, device=coords.device).expand(num_slides)
        x, y = ((points - corner[slide]) / step[slide, None]).floor().long().unbind(1)
        extent = torch.stack([x.max() + 1, y.max() + 1])
        return cls._unique(slide, x, y, extent, num_slides)

    @classmethod
    def _unique(cls, slide: Tensor, x: Tensor, y: Tensor, extent: Tensor, num_slides: int) -> tuple[Sites, Tensor]:
        width, height = _strides(extent)
        if num_slides * float(width) * float(height) > 2**62:
            raise InputError(
                f"coords span {int(extent[0])} x {int(extent[1])} sites; check that downsample (or patch_size) has "
                "their unit"
            )
        keys, site = torch.unique((slide * width + x) * height + y, return_inverse=True)
        firsts = torch.arange(num_slides + 1, device=keys.device) * width * height
        return cls(keys, torch.searchsorted(keys, firsts), extent), site

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """int64 ``[S]`` each: slide, x, y."""
        width, height = _strides(self.extent)
        row = self.keys // height
        return row // width, row % width, self.keys % height

    def neighbours(self) -> RelationalEdges:
        """Edges of a 3 x 3 convolution whose output sites are its input sites (a submanifold convolution).

        Tap ``3 kx + ky`` reads the site at ``(x + kx - 1, y + ky - 1)`` where it is occupied.
        """
        _, height = _strides(self.extent)
        place = torch.arange(len(self), device=self.keys.device)
        sources, destinations = [], []
        for kx, ky in WINDOW[:4]:  # strides leave a gap after each row and column: no key wraps onto another's
            wanted = self.keys + (kx - 1) * height + (ky - 1)
            found = torch.searchsorted(self.keys, wanted).clamp(max=len(self) - 1)
            hit = self.keys[found] == wanted
            sources.append(found[hit])
            destinations.append(place[hit])
        # The window is symmetric: the last four taps are the first four the other way round.
        src = [*sources, place, *reversed(destinations)]
        dst = [*destinations, place, *reversed(sources)]
        return RelationalEdges(torch.cat(src), torch.cat(dst), tuple(map(len, src)), len(self), len(self))

    def strided(self, size: Tensor) -> tuple[Sites, RelationalEdges]:
        """Output sites and edges of a 3 x 3 convolution of stride 2 without padding on a grid of ``size``.

        Output (x, y) exists where (2 x + kx, 2 y + ky) is occupied for a tap ``3 kx + ky`` and the window lies inside
        the grid.

        Args:
            size: int64 ``[2]``, the grid's size, at least ``extent`` and at least 3.
        """
        slide, x, y = self.columns
        place = torch.arange(len(self), device=self.keys.device)
        extent = (size - 3) // 2 + 1
        parts = []
        for kx, ky in WINDOW:
            ox, oy = x - kx, y - ky
            inside = (ox >= 0) & (oy >= 0) & (ox % 2 == 0) & (oy % 2 == 0)
            inside &= (ox // 2 < extent[0]) & (oy // 2 < extent[1])
            parts.append((slide[inside], ox[inside] // 2, oy[inside] // 2, place[inside]))
        out_slide, out_x, out_y, src = map(torch.cat, zip(*parts, strict=True))
        out, dst = self._unique(out_slide, out_x, out_y, extent, len(self.offsets) - 1)
        return out, RelationalEdges(src, dst, tuple(len(part[0]) for part in parts), len(self), len(out))


def _strides(extent: Tensor) -> tuple[int, int]:
    width, height = extent.tolist()
    return width + 1, height + 1
