"""``.npy`` and ``.npz`` files, read without pickle, and never larger in memory than they are on disk."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil_zoo.data.formats.boundary import boundary
from mil_zoo.errors import InputError

_MOST_COMPRESSED = 1100  # deflate, which .npz files use, reaches 1032 : 1


def load_npy(path: Path) -> npt.NDArray[Any]:
    """The array in a ``.npy`` file, mapped: its values are read when they are used.

    Raises:
        InputError: the file is missing, shorter than it declares, or would need pickle.
    """
    with boundary(path, "a readable .npy file", "write it again with numpy.save"):
        if path.stat().st_size == 0:
            raise ValueError("no bytes")
        with path.open("rb") as file:
            shape, _, dtype = _header(file)
        if math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError(f"it declares {list(shape)} of {dtype} and holds {path.stat().st_size} bytes")
        if 0 in shape:  # an array of no rows cannot be mapped
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            return np.empty(shape, dtype)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def load_arrays(path: Path) -> dict[str, Any]:
    """All arrays of an ``.npz`` file, read without pickle.

    Raises:
        InputError: the file is missing, damaged, or an array in it would be larger than the file can hold.
    """
    with boundary(path, "a readable .npz table", "write it again with numpy.savez"):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(path, archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}


def _check_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.file_size > _MOST_COMPRESSED * member.compress_size + 1024:
        raise InputError(f"{path}: {member.filename} declares more bytes than the file can hold; write it again")
    if not member.filename.endswith(".npy"):
        return
    with archive.open(member) as file:
        shape, _, dtype = _header(file)
        if dtype.hasobject:
            raise InputError(
                f"{path}: {member.filename[:-4]} holds Python objects, which are not read; write numbers or text"
            )
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise InputError(
                f"{path}: {member.filename[:-4]} declares {list(shape)} of {dtype} and holds {member.file_size} bytes; "
                "write it again"
            )


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, fortran, dtype
