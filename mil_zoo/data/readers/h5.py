"""Feature files: one HDF5 a slide, as CLAM, TRIDENT and STAMP write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.spatial import cKDTree

from mil_zoo.data.bag import Bag
from mil_zoo.errors import InputError

FEATURES = ("features", "feats")


def read_h5(path: Path) -> Bag:
    """Reads the bag of one slide.

    ``features`` (or ``feats``) is float [N, D], sometimes [1, N, D]; ``coords`` [N, 2] are top-left corners in level-0
    pixels, or micrometres where the file's attribute ``unit`` says "um". The patch size is the first of these:
    the attribute ``patch_size_level0`` of ``coords`` (TRIDENT); ``tile_size_um`` of the file (STAMP); ``patch_size``
    times ``downsample`` of the coords in ``../patches/<slide>.h5`` (CLAM); the median distance of nearest patches.

    Args:
        path: ``<slide>.h5``; the slide is named after it.

    Returns:
        The bag without label; features float32 ``[N, D]``.

    Raises:
        InputError: the file cannot be read, lacks features or coords, or they do not fit each other.
    """
    try:
        with h5py.File(path, "r") as file:
            name = next((name for name in FEATURES if name in file), None)
            if name is None:
                raise InputError(f"{path}: no dataset 'features' or 'feats' (it holds {', '.join(file) or 'nothing'})")
            features = np.asarray(file[name], dtype=np.float32)
            coords = np.asarray(file["coords"], dtype=np.float64) if "coords" in file else None
            unit = "um" if file.attrs.get("unit") == "um" else "px"
            patch_size = None if coords is None else _stated_patch_size(path, file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise InputError(f"{path} is not a readable feature file ({error}); extract the slide again") from error
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if coords is not None:
        if coords.ndim == 3 and coords.shape[0] == 1:
            coords = coords[0]
        if coords.shape != (len(features), 2):
            raise InputError(
                f"{path}: coords are {list(coords.shape)} for {len(features)} feature rows; they must be [N, 2]"
            )
        if patch_size is None and len(coords) > 1:
            patch_size = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1])) or None
    return Bag(
        features=torch.from_numpy(features),
        coords=None if coords is None else torch.from_numpy(coords),
        patch_size=patch_size,
        slide_id=path.stem,
        unit=unit,  # type: ignore[arg-type]
    )


def shape_of(path: Path) -> tuple[int, int]:
    """Number of patches and feature dimension of a feature file, without reading the features."""
    try:
        with h5py.File(path, "r") as file:
            return tuple(next(file[name] for name in FEATURES if name in file).shape[-2:])
    except (OSError, StopIteration) as error:
        raise InputError(f"{path} is not a readable feature file ({error}); extract the slide again") from error


def _stated_patch_size(path: Path, file: Any) -> float | None:
    stated = file["coords"].attrs.get("patch_size_level0", file.attrs.get("tile_size_um"))
    patches = path.parent.parent / "patches" / path.name
    if stated is None and patches.is_file():
        with h5py.File(patches, "r") as other:
            attributes = other["coords"].attrs
            if "patch_size" in attributes:
                stated = float(attributes["patch_size"]) * float(np.ravel(attributes.get("downsample", 1.0))[0])
    return None if stated is None else float(stated)
