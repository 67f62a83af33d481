"""HistoSSL: ``<slide>/features.npy`` with the place of each tile in its first three columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import numbers
from mil_zoo.data.formats.npy import load_npy
from mil_zoo.data.layouts.base import Claim, Layout, Sure, make_bag, matrix_shape, register_layout, slide_name
from mil_zoo.errors import InputError


@register_layout("histossl")
class HistoSSL(Layout):
    """``[N, 3 + D]``: DeepZoom level, tile column, tile row, then the features.

    The coordinates are indices of a grid and not pixels, so a step is 1 and the unit is ``tile``; annotations in pixels
    cannot be laid over them.
    """

    about = "<slide>/features.npy [N, 3 + D]: DeepZoom level, tile column, tile row, features"
    suffixes = (".npy",)

    def claim(self, path: Path) -> Claim | None:
        """By the file's name."""
        return Claim(Sure.NAMES, "the name features.npy") if path.name == "features.npy" else None

    def slide_id(self, path: Path) -> str:
        """The name of the file's folder."""
        return slide_name(path.parent.name)

    def group(self, path: Path) -> Path:
        """The folder of the slides' folders."""
        return path.parent.parent

    def shape(self, path: Path) -> tuple[int, int]:
        """``(N, D)`` from the file's header."""
        count, width = matrix_shape(path, load_npy(path).shape)
        return count, max(0, width - 3)

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone."""
        return numbers(path, load_npy(path)[list(places), 3:], "features")

    def read(self, path: Path) -> Bag:
        """The bag, in tiles."""
        values = numbers(path, load_npy(path), "features")
        count, width = matrix_shape(path, values.shape)
        places = values[:, :3]
        if width < 4 or (places != places.round()).any() or (count and (places[:, 0] != places[0, 0]).any()):
            raise InputError(
                f"{path}: the first three columns must be one DeepZoom level, tile column and tile row; extract the "
                "slide again, or pass --layout NAME"
            )
        why = f"tile columns and rows of DeepZoom level {places[0, 0]:g}: a step is 1" if count else ""
        features = np.ascontiguousarray(values[:, 3:])
        return make_bag(
            path, self.slide_id(path), self.name, features, np.ascontiguousarray(places[:, 1:]), 1.0, why, unit="tile"
        )
