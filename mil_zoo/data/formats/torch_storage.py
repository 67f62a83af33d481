"""The bytes that ``torch`` puts into a pickle for the numbers of a tensor, read without ``torch``."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mil_zoo.data.formats.unpickler import Refused, SafeUnpickler

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # numpy has no bfloat16: widened below
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read_storage(content: Any) -> npt.NDArray[Any]:
    """The numbers ``[n]`` of one storage, as ``torch.save`` writes it in its old format (the one inside of pickles).

    Raises:
        Refused: it is something else, or not as long as it declares.
    """
    if not isinstance(content, bytes):
        raise Refused("a storage that is no bytes")
    file = io.BytesIO(content)
    reader = _Reader(file)
    if reader.load() != _MAGIC or reader.load() != _PROTOCOL:
        raise Refused("a storage in another format than torch.save's old one")
    system = reader.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("a storage of a big-endian machine")
    name, count = reader.load_storage()
    if len(reader.load()) != 1:
        raise Refused("several storages in one")
    numbers = file.read()
    kind = np.dtype(_STORAGES[name])
    if len(numbers) != 8 + count * kind.itemsize or int.from_bytes(numbers[:8], "little") != count:
        raise Refused(f"a storage of {len(numbers)} bytes that declares {count} numbers")
    values = np.frombuffer(numbers, kind, offset=8)
    if name == "BFloat16Storage":
        return (values.astype("<u4") << 16).view("<f4")
    return values


class _Reader:
    """Reads one pickle after the other from a file."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def load(self) -> Any:
        return SafeUnpickler(self._file, _refuse).load()

    def load_storage(self) -> tuple[str, int]:
        reader = _StorageUnpickler(self._file, _find_storage)
        made = reader.load()
        if not isinstance(made, _Storage):
            raise Refused("something else than a storage")
        return made.name, made.count


class _Storage:
    def __init__(self, key: Any) -> None:
        if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or key[1] not in _STORAGES:
            raise Refused("a storage of unknown numbers")
        if type(key[4]) is not int or key[4] < 0 or (len(key) == 6 and key[5] is not None):
            raise Refused("a storage that is a view of another one")
        self.name, self.count = key[1], key[4]


class _StorageUnpickler(SafeUnpickler):
    """Knows storages by their persistent ids."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(SafeUnpickler.dispatch)

    def persistent_load(self, key: Any) -> _Storage:
        """The storage that a persistent id describes."""
        return _Storage(key)

    def load_binpersid(self) -> None:
        """A persistent id from the stack."""
        self.append(self.persistent_load(self.stack.pop()))


_StorageUnpickler.dispatch[ord("Q")] = _StorageUnpickler.load_binpersid


def _find_storage(module: str, name: str) -> str:
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return name
    raise Refused(f"{module}.{name}")


def _refuse(module: str, name: str) -> Any:
    raise Refused(f"{module}.{name}")
