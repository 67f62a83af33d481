"""slideflow: ``<slide>.pt`` with ``<slide>.index.npz`` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.data.formats.tensors import load_tensor, tensor_rows, tensor_shape
from mil_zoo.data.layouts.base import Claim, Layout, Places, Sure, make_bag, register_layout
from mil_zoo.data.layouts.geometry import grid_step
from mil_zoo.errors import InputError


@register_layout("slideflow")
class Slideflow(Layout):
    """A tensor of features, and the places of its tiles in the array ``arr_0``, in level-0 pixels."""

    about = "<slide>.pt with <slide>.index.npz beside it (arr_0: coordinates)"
    suffixes = (".pt",)

    def claim(self, path: Path) -> Claim | None:
        """By the index beside it."""
        index = path.with_suffix(".index.npz")
        return Claim(Sure.STATED, f"{index.name} beside it") if index.is_file() else None

    def shape(self, path: Path) -> tuple[int, int]:
        """``(N, D)`` from the file's header."""
        return tensor_shape(path)

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone."""
        return tensor_rows(path, places)

    def read(self, path: Path) -> Bag:
        """The bag; its patch size is the step of the coordinates."""
        features = load_tensor(path).numpy()
        return make_bag(path, self.slide_id(path), self.name, features, *self.coordinates(path))

    def coordinates(self, path: Path) -> Places:
        """Those of the index."""
        index = path.with_suffix(".index.npz")
        arrays = load_arrays(index)
        if "arr_0" not in arrays:
            raise InputError(f"{index}: the array 'arr_0' of coordinates is missing; extract the slide again")
        coords = arrays["arr_0"].astype("float64")
        why = "the coordinates' own step: the index states no tile size"
        return Places(coords, grid_step(coords), why)
