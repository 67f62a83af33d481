"""torchmil: ``patches_<p>/features/features_<encoder>/<slide>.npy``, labels and coordinates in folders beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import numbers
from mil_zoo.data.formats.npy import load_npy
from mil_zoo.data.labels.dialects import read_csv
from mil_zoo.data.layouts.base import (
    Claim,
    FeatureSet,
    Layout,
    Places,
    Sure,
    make_bag,
    matrix_shape,
    register_layout,
)
from mil_zoo.data.layouts.geometry import grid_step, overlapping_step
from mil_zoo.errors import InputError


@register_layout("torchmil")
class TorchMIL(Layout):
    """One ``.npy`` a slide and kind; the folder ``patches_<p>`` states the side of a patch as the encoder saw it.

    That is the step of the coordinates only where slides were read at level 0. torchmil divides coordinates by it all
    the same (``TridentWSIDataset``, ``CAMELYON16MILDataset``), so that neighbours of a 40x slide read at 20x lie two
    steps apart and its graph has no edges. Here the coordinates' own step is taken where it is a multiple of ``p``.
    """

    about = "patches_<size>/features/features_<encoder>/<slide>.npy, labels/, patch_labels/, coords/; splits.csv"
    suffixes = (".npy",)

    def claim(self, path: Path) -> Claim | None:
        """By the folders: ``features/features_<encoder>`` beside ``coords`` or ``labels``."""
        base = path.parents[2] if len(path.parents) > 2 else path.parent
        beside = [name for name in ("coords", "labels") if (base / name).is_dir()]
        if path.parent.parent.name != "features" or not beside:
            return None
        return Claim(Sure.NAMES, f"the folder features/{path.parent.name} and {beside[0]} beside it")

    def encoder(self, path: Path) -> str:
        """The ``<encoder>`` of ``features_<encoder>``."""
        return path.parent.name.removeprefix("features_")

    def source(self, path: Path) -> str | None:
        """Nothing: labels and coordinates lie beside each folder."""
        return None

    def shape(self, path: Path) -> tuple[int, int]:
        """``(N, D)`` from the file's header."""
        return matrix_shape(path, load_npy(path).shape)

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone."""
        return numbers(path, load_npy(path)[list(places)], "features")

    def read(self, path: Path) -> Bag:
        """The bag with its label and, where they are known for all patches, its instance labels."""
        base = path.parents[2]
        label, patches = (_beside(base / name / path.name) for name in ("labels", "patch_labels"))
        features = numbers(path, load_npy(path), "features")
        coords, step, why, unit = self.coordinates(path) or (None, None, "", "px")
        instances = None if patches is None or (patches < 0).any() else patches.reshape(-1)
        return make_bag(
            path, self.slide_id(path), self.name, features, coords, step, why,
            unit=unit, label=None if label is None else _label(path, label), instance_labels=instances,
        )  # fmt: skip

    def coordinates(self, path: Path) -> Places | None:
        """Those of ``coords/<slide>.npy``."""
        base = path.parents[2]
        coords = _beside(base / "coords" / path.name)
        return None if coords is None else Places(coords, *_step(path, coords, base.name))

    def labels(self, features: FeatureSet) -> pd.DataFrame | None:
        """``labels/<slide>.npy`` of every slide, and the parts in ``splits.csv``."""
        base = features.folder.parents[1]
        if not (base / "labels").is_dir():
            return None
        rows = []
        for slide_id, path in features.files.items():
            label = _beside(base / "labels" / path.name)
            if label is not None:
                rows.append((slide_id, str(_label(path, label))))
        table: pd.DataFrame = pd.DataFrame(rows, columns=["slide_id", "label"])
        if (base.parent / "splits.csv").is_file():
            splits = read_csv(base.parent / "splits.csv")
            if {"bag_name", "split"}.issubset(splits.columns):
                table["split"] = table["slide_id"].map(dict(zip(splits["bag_name"], splits["split"], strict=True)))
        return table


def _beside(path: Path) -> Any:
    return np.array(load_npy(path)) if path.is_file() else None


def _label(path: Path, values: Any) -> int:
    if values.size != 1 or not float(values.reshape(-1)[0]).is_integer():
        raise InputError(f"{path}: its label is {values.tolist()}, not one class index; write labels/{path.name} again")
    return int(values.reshape(-1)[0])


def _step(path: Path, coords: Any, folder: str) -> tuple[float | None, str, Literal["px", "tile"]]:
    stated, measured = folder.removeprefix("patches_"), grid_step(coords)
    if measured is not None and abs(measured - 1) < 0.05:
        return 1.0, "the coordinates are columns and rows of the patch grid", "tile"
    if not stated.isdigit() or int(stated) == 0:
        return measured, "the coordinates' own step: the folder states no patch size", "px"
    times = (measured or 0) / int(stated)
    if times > 1.5 and abs(times - round(times)) < 0.05:
        why = f"the coordinates' own step: {folder} is the size that the encoder saw, 1/{round(times)} of it"
        return measured, why, "px"
    step, why = overlapping_step(path, measured, float(stated), f"the folder {folder}")
    return step, why, "px"
