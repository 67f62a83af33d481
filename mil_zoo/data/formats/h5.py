"""What the HDF5 layouts share: opening a file, its features and coordinates, and one sentence for every fault."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from mil_zoo.data.formats.boundary import boundary
from mil_zoo.errors import InputError

FEATURES = ("features", "feats")
_MOST_COMPRESSED = 1100  # deflate, the strongest of HDF5's own filters, reaches 1032 : 1
_OWN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset; lzf
_NO_LOCKS = ("errno = 37", "errno = 38", "errno = 95", "errno = 524")  # of file systems that know none


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The open file; every error of reading it becomes one sentence that names it."""
    with boundary(path, "a readable feature file", "extract the slide again"):
        file = _open(path)
        try:
            yield file
        finally:
            file.close()


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" not in str(error):
            raise
        if not any(code in str(error) for code in _NO_LOCKS):
            raise InputError(f"{path} is being written by another process; wait until it has finished") from error
        return h5py.File(path, "r", locking=False)


class Head(NamedTuple):
    """What an HDF5 file says of itself.

    Attributes:
        datasets: names at the top.
        attrs: attributes of the file.
        coords: attributes of its dataset ``coords``.
        places: how many rows that has.
    """

    datasets: frozenset[str]
    attrs: dict[str, Any]
    coords: dict[str, Any]
    places: int


def head(path: Path) -> Head | None:
    """The head of a file; None where it cannot be opened."""
    try:
        state = path.stat()
        return _head(path, state.st_mtime_ns, state.st_size)
    except Exception:  # a damaged file can raise anything; its reader says what is wrong with it
        return None


@lru_cache(maxsize=64)  # each layout asks for it
def _head(path: Path, changed: int, size: int) -> Head:
    with _open(path) as file:
        coords, places = {}, 0
        if isinstance(_link(file, "coords"), _INSIDE):
            coords, places = dict(file["coords"].attrs), (getattr(file["coords"], "shape", ()) or (0,))[0]
        return Head(frozenset(file), dict(file.attrs), coords, places)


_INSIDE = (h5py.HardLink, h5py.SoftLink)


def _link(file: h5py.File, name: str) -> Any:
    return file.get(name, getlink=True) if name in set(file) else None


def features_of(file: h5py.File, path: Path) -> h5py.Dataset:
    """The dataset of features, once it is known to hold what it declares.

    Raises:
        InputError: there is none, it is not numeric, or the file is too small for the shape that it declares.
    """
    names = set(file)
    name = next((name for name in FEATURES if name in names), None)
    if name is None:
        holds = ", ".join(sorted(names)) or "nothing"
        remedy = "extract the slide again, or rename its dataset"
        if "coords" in names and len(names) == 1:
            remedy = "these are the places of patches: pass the folder of the features"
        elif "imgs" in names:
            remedy = "these are the pixels of patches: extract features from them"
        raise InputError(f"{path}: no dataset 'features' or 'feats' (it holds {holds}); {remedy}")
    return checked_dataset(file, name, path)


def checked_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset of the file, once it is known to be numeric, to lie in this file, and to be as large as it declares."""
    elsewhere = InputError(f"{path}: {name} lies in another file, which is not read; write it into this one")
    if not isinstance(_link(file, name), _INSIDE):
        raise elsewhere
    if name not in file:
        raise InputError(f"{path}: {name} is a link to nothing; extract the slide again")
    dataset = file[name]
    if dataset.file.filename != file.filename:
        raise elsewhere
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf" or dataset.shape is None:
        raise InputError(f"{path}: {name} is not an array of numbers; extract the slide again")
    if dataset.is_virtual or dataset.external:
        raise elsewhere
    filters = dataset.id.get_create_plist()
    codes = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    for code in codes:
        _need_filter(path, name, code)
    stored, declared = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    most = _MOST_COMPRESSED if codes else 1
    if (set(codes) <= _OWN_FILTERS and declared > stored * most) or (declared and not stored):
        raise InputError(
            f"{path}: {name} declares {list(dataset.shape)}, {declared / 2**20:,.1f} MiB, and the file holds "
            f"{stored / 2**20:,.1f} MiB of it; it is incomplete: extract the slide again"
        )
    return dataset


def read_names(file: h5py.File, name: str, path: Path, count: int) -> list[str]:
    """The ``count`` texts of a dataset of the file.

    Raises:
        InputError: it lies in another file, is no text, or holds another number of them.
    """
    if not isinstance(_link(file, name), _INSIDE) or name not in file or file[name].file.filename != file.filename:
        raise InputError(f"{path}: {name} lies in another file, which is not read; write it into this one")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or h5py.check_string_dtype(dataset.dtype) is None:
        raise InputError(f"{path}: {name} is not an array of text; write the names of the slides into it")
    if dataset.is_virtual or dataset.external or dataset.shape != (count,):
        raise InputError(f"{path}: {name} is {list(dataset.shape)} for {count} slides; it needs one name each")
    return [str(text) for text in dataset.asstr(errors="replace")[()]]


def _need_filter(path: Path, name: str, code: int) -> None:
    if h5py.h5z.filter_avail(code):
        return
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")  # which registers its filters
    if not h5py.h5z.filter_avail(code):
        raise InputError(
            f"{path}: {name} is compressed by a filter (number {code}) that HDF5 does not bring along; install it with "
            "pip install hdf5plugin"
        )


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``[1, N, D]`` as ``[N, D]``, and the ``[0]`` of an empty slide as ``[0, 0]``."""
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    return (0, 0) if shape == (0,) else shape


def read_features(file: h5py.File, path: Path) -> npt.NDArray[np.float32]:
    """float32 ``[N, D]``; a leading axis of one is dropped."""
    dataset = features_of(file, path)
    return np.asarray(dataset, dtype=np.float32).reshape(squeezed(dataset.shape))


def read_rows(path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
    """float32 ``[len(places), D]``: these rows of the features (ascending), and nothing else of them."""
    with opened(path) as file:
        dataset = features_of(file, path)
        rows = dataset[0][list(places)] if dataset.ndim == 3 else dataset[list(places)]
        return np.asarray(rows, dtype=np.float32)


def read_coords(file: h5py.File, path: Path) -> npt.NDArray[np.float64] | None:
    """float64 ``[N, 2]`` as they lie in the file; None where it has none."""
    if "coords" not in set(file):
        return None
    dataset = checked_dataset(file, "coords", path)
    shape = squeezed(dataset.shape)
    if len(shape) == 2 and shape[0] == 2 != shape[1] and shape[1]:
        raise InputError(f"{path}: coords are [2, N] with their axes swapped; write them as [N, 2]")
    if 0 not in shape and (len(shape) != 2 or 2 not in shape):
        raise InputError(f"{path}: coords are {list(shape)}; they must be [N, 2], x and y of each patch")
    return np.asarray(dataset, dtype=np.float64).reshape((0, 2) if 0 in shape else shape)


def shape_of(path: Path) -> tuple[int, int]:
    """Number of patches and feature dimension of a feature file, without reading the features."""
    with opened(path) as file:
        shape = squeezed(features_of(file, path).shape)
    if len(shape) != 2:
        raise InputError(f"{path}: features must be [patches, dimensions], not {list(shape)}; extract the slide again")
    return shape[0], shape[1]
