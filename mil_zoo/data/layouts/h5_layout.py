"""What layouts share whose slide is one h5 file with features and coordinates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.h5 import opened, read_features, read_rows, shape_of
from mil_zoo.data.layouts.base import Layout, Places, make_bag


class H5Layout(Layout):
    """One h5 file a slide; a subclass says where its patches lie, and when it is sure."""

    suffixes = (".h5",)

    @abstractmethod
    def places(self, file: h5py.File, path: Path) -> Places | None:
        """Where the patches of an opened file lie; None where it does not say it."""

    def read(self, path: Path) -> Bag:
        """The bag, in the unit of its places."""
        with opened(path) as file:
            features, places = read_features(file, path), self.places(file, path)
        return make_bag(path, self.slide_id(path), self.name, features, *(places or ()))

    def coordinates(self, path: Path) -> Places | None:
        """Those of the file."""
        with opened(path) as file:
            return self.places(file, path)

    def shape(self, path: Path) -> tuple[int, int]:
        """``(N, D)`` from the file's header."""
        return shape_of(path)

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone."""
        return read_rows(path, places)
