"""What the HDF5 layouts share: opening a file, its features and coordinates, and one sentence for every fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError

FEATURES = ("features", "feats")
_MOST_COMPRESSED = 1100  # deflate, the strongest filter in use, reaches 1032 : 1


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The open file; every error of reading it becomes one sentence that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path} is not a readable feature file ({error}); extract the slide again") from error


class Head(NamedTuple):
    """What an HDF5 file says of itself.

    Attributes:
        datasets: names at the top.
        attrs: attributes of the file.
        coords: attributes of its dataset ``coords``.
    """

    datasets: frozenset[str]
    attrs: dict[str, Any]
    coords: dict[str, Any]


def head(path: Path) -> Head | None:
    """The head of a file; None where it cannot be opened."""
    try:
        state = path.stat()
        return _head(path, state.st_mtime_ns, state.st_size)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return None


@lru_cache(maxsize=64)  # each layout asks for it
def _head(path: Path, changed: int, size: int) -> Head:
    with h5py.File(path, "r") as file:
        coords = dict(file["coords"].attrs) if "coords" in file else {}
        return Head(frozenset(file), dict(file.attrs), coords)


def features_of(file: h5py.File, path: Path) -> h5py.Dataset:
    """The dataset of features, once it is known to hold what it declares.

    Raises:
        InputError: there is none, it is not numeric, or the file is too small for the shape that it declares.
    """
    name = next((name for name in FEATURES if name in file), None)
    if name is None:
        raise InputError(f"{path}: no dataset 'features' or 'feats' (it holds {', '.join(file) or 'nothing'})")
    return checked_dataset(file[name], path)


def checked_dataset(dataset: Any, path: Path) -> h5py.Dataset:
    """``dataset``, once it is known to be numeric, in this file, and as large as it declares."""
    name = str(getattr(dataset, "name", "?")).lstrip("/")
    if not isinstance(dataset, h5py.Dataset) or not np.issubdtype(dataset.dtype, np.number):
        raise InputError(f"{path}: {name} is not an array of numbers; extract the slide again")
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{path}: {name} lies in other files, which are not read; write it into this one")
    stored, declared = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    filters = dataset.id.get_create_plist().get_nfilters()
    if declared > stored * (_MOST_COMPRESSED if filters else 1):
        raise InputError(
            f"{path}: {name} declares {list(dataset.shape)}, {declared / 2**20:,.1f} MiB, and the file holds "
            f"{stored / 2**20:,.1f} MiB of it; it is incomplete: extract the slide again"
        )
    return dataset


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``[1, N, D]`` as ``[N, D]``, and the ``[0]`` of an empty slide as ``[0, 0]``."""
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    return (0, 0) if shape == (0,) else shape


def read_features(file: h5py.File, path: Path) -> npt.NDArray[np.float32]:
    """float32 ``[N, D]``; a leading axis of one is dropped."""
    dataset = features_of(file, path)
    return np.asarray(dataset, dtype=np.float32).reshape(squeezed(dataset.shape))


def read_coords(file: h5py.File, path: Path) -> npt.NDArray[np.float64] | None:
    """float64 ``[N, 2]`` as they lie in the file; None where it has none."""
    if "coords" not in file:
        return None
    dataset = checked_dataset(file["coords"], path)
    shape = squeezed(dataset.shape)
    return np.asarray(dataset, dtype=np.float64).reshape((0, 2) if 0 in shape else shape)


def shape_of(path: Path) -> tuple[int, int]:
    """Number of patches and feature dimension of a feature file, without reading the features."""
    with opened(path) as file:
        shape = squeezed(features_of(file, path).shape)
    if len(shape) != 2:
        raise InputError(f"{path}: features must be [patches, dimensions], not {list(shape)}; extract the slide again")
    return shape[0], shape[1]
