"""Arrays of zarr stores that lie in folders, of formats 2 and 3: nothing is decoded before it is known what it is.

Their metadata are read here and not by zarr. An array is read once it is known to hold numbers, packed by codecs that
run no code (zarr knows one that unpickles), and to be no larger than its chunks can hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mil_zoo.data.formats.boundary import boundary
from mil_zoo.errors import InputError

NEEDED = (
    "stores of LazySlide need packages that are not installed ({}); install them with: pip install 'mil-zoo[lazyslide]'"
)
_REMEDY = "write the store again"
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_LARGEST = 2**26  # bytes of metadata
_MOST_COMPRESSED = 40_000  # zstd, the strongest of these codecs, reaches 32 768 : 1
_SMALL = 2**20  # bytes that are read whatever the chunks hold
_CODECS = {"blosc", "bytes", "crc32c", "gzip", "lz4", "sharding_indexed", "shuffle", "transpose", "zlib", "zstd"}


class Declared(NamedTuple):
    """What an array says of itself.

    Attributes:
        form: the zarr format, 2 or 3.
        shape: of the array.
        dtype: of its numbers.
        chunks: shape of the part of it that is one file.
    """

    form: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]


def attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a group or an array."""
    if (folder / "zarr.json").exists():
        found = _json(folder / "zarr.json").get("attributes", {})
    else:
        found = _json(folder / ".zattrs") if (folder / ".zattrs").exists() else {}
    return found if isinstance(found, dict) else {}


def declared(folder: Path, *, zeros: bool = False) -> Declared:
    """What an array says of itself, once its chunks are found to be there.

    Args:
        folder: of the array.
        zeros: a chunk that is not there holds zeros; else one is missing.

    Raises:
        InputError: there is no array, it holds no numbers, or its chunks are missing or too small for them.
    """
    if not any((folder / name).is_file() for name in ("zarr.json", ".zarray")):
        raise InputError(f"{folder}: no array of a zarr store; {_REMEDY}")
    with boundary(folder, "a readable array of a zarr store", _REMEDY):
        found = _declared(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.name not in _METADATA and path.is_file()]
    grid = math.prod(-(-side // chunk) for side, chunk in zip(found.shape, found.chunks, strict=True))
    if len(sizes) < grid and not zeros:
        raise InputError(
            f"{folder}: {grid - len(sizes):,} of its {grid:,} chunks are missing (not written, or nothing but zeros); "
            f"{_REMEDY}"
        )
    size = grid * math.prod(found.chunks) * found.dtype.itemsize
    if size > _MOST_COMPRESSED * sum(sizes) + _SMALL:
        raise InputError(
            f"{folder} declares {list(found.shape)}, {size / 2**20:,.1f} MiB, and its chunks hold "
            f"{sum(sizes) / 2**20:,.1f} MiB of it; it is incomplete: {_REMEDY}"
        )
    return found


def read_array(folder: Path, rows: Sequence[int] | None = None, *, zeros: bool = False) -> npt.NDArray[Any]:
    """The numbers of an array, or some of its rows; see :func:`declared`."""
    found = declared(folder, zeros=zeros)
    try:
        import zarr
    except ImportError as error:
        raise InputError(f"{folder}: {NEEDED.format(error.name)}") from None
    if found.form == 3 and zarr.__version__.startswith("2."):
        raise InputError(
            f"{folder} is of zarr format 3, which zarr {zarr.__version__} cannot read; use Python 3.11 or newer"
        )
    with boundary(folder, "a readable array of a zarr store", _REMEDY):
        array = zarr.open_array(str(folder), mode="r")
        if (array.shape, array.dtype) != (found.shape, found.dtype):
            raise ValueError("its metadata contradict each other")
        return np.asarray(array[...] if rows is None else array.oindex[np.asarray(rows, dtype=np.int64)])


def _declared(folder: Path) -> Declared:
    if (folder / "zarr.json").is_file():
        head = _json(folder / "zarr.json")
        if head.get("node_type") != "array":
            raise ValueError("it is a group")
        form, dtype, codecs = 3, head["data_type"], list(_names(head["codecs"], "name"))
        chunks = head["chunk_grid"]["configuration"]["chunk_shape"]
    else:
        head = _json(folder / ".zarray")
        packed = [each for each in (head["compressor"], *(head["filters"] or ())) if each is not None]
        form, dtype, codecs = 2, head["dtype"], list(_names(packed, "id"))
        chunks = head["chunks"]
    if unknown := sorted(set(codecs) - _CODECS):
        raise ValueError(f"it is packed by {', '.join(unknown)}, which is not read")
    if not isinstance(dtype, str) or np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"it holds no numbers ({dtype})")
    sides = [*head["shape"], *chunks]
    if len(sides) != 2 * len(head["shape"]) or any(type(side) is not int or side < 0 for side in sides) or 0 in chunks:
        raise ValueError(f"its shape is {head['shape']} in chunks of {chunks}")
    return Declared(form, tuple(head["shape"]), np.dtype(dtype), tuple(chunks))


def _names(codecs: Sequence[Any], key: str) -> Iterator[str]:
    """The names of codecs, also of those that pack the parts of a shard."""
    for codec in codecs:
        if isinstance(codec, str):
            yield codec
            continue
        yield str(codec[key])
        inner = codec.get("configuration", {})
        for name in ("codecs", "index_codecs"):
            yield from _names(inner.get(name, ()), key)


def _json(path: Path) -> dict[str, Any]:
    with boundary(path, "metadata of a zarr store", _REMEDY):
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found
