"""A pickle machine that cannot reach memory or code: it builds numbers, text, plain containers, arrays and records.

Python's own machine in its readable form (``pickle._Unpickler``), cut down to the opcodes that data need. numpy and
torch objects never see the file: an array is made here from its bytes, its shape and a plain dtype, once the three fit
each other; whatever else a file asks for is refused by name.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

_PLAIN_DTYPE = re.compile(r"([<>=|]?)(b1|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,6}|\?|[bBhHiIlLqQefd])")
_KEYS = (str, bytes, int, float, bool, type(None))  # what a dictionary may be keyed by: cheap to hash
_MOST_AXES = 32

# Opcodes that data do not need: sets (hashed members), extension codes, persistent ids of other files, out-of-band
# buffers, and calls of classes by INST and OBJ.
_LEFT_OUT = (
    pickle.INST + pickle.OBJ + pickle.EXT1 + pickle.EXT2 + pickle.EXT4 + pickle.PERSID + pickle.BINPERSID
    + pickle.EMPTY_SET + pickle.ADDITEMS + pickle.FROZENSET + pickle.NEXT_BUFFER
    + pickle.READONLY_BUFFER
)  # fmt: skip


class Refused(Exception):
    """A file asks for something that data do not need; the text names it."""


class Record:
    """Stands for an object of ``torch_geometric`` or a ``SimpleNamespace``: its attributes, none of its methods."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def fields(self) -> dict[str, Any]:
        """The attributes by name (``Data`` keeps them in a storage since version 2)."""
        store = self.__dict__.get("_store")
        mapping = store.__dict__.get("_mapping", {}) if isinstance(store, Record) else self.__dict__
        return {str(name): value for name, value in mapping.items()} if isinstance(mapping, dict) else {}


class PlainDtype:
    """A dtype by its text; numpy sees it when bytes are read."""

    def __init__(self, text: Any, align: Any = False, copy: Any = False) -> None:
        if isinstance(text, bytes):
            text = text.decode("latin1")
        if not isinstance(text, str) or not _PLAIN_DTYPE.fullmatch(text):
            raise Refused(f"the dtype {str(text)[:40]!r}")
        self.text = text

    def set_state(self, state: Any) -> None:
        """The byte order, which a pickled dtype keeps apart; fields, sub-arrays and objects are refused."""
        if not isinstance(state, tuple) or len(state) != 8:
            raise Refused("a dtype with a state of its own")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]) or state[7] not in (0, 8):
            raise Refused("a dtype with a state of its own")
        self.text = (order if order in "<>" else "") + self.text.lstrip("<>=|")

    def numpy(self) -> npt.NDArray[Any]:
        """An empty array of this dtype."""
        return np.empty(0, dtype=self.text)


class PlainArray:
    """An array whose bytes, shape and dtype follow when it is built."""

    def __init__(self) -> None:
        self.values: npt.NDArray[Any] | None = None

    def set_state(self, state: Any) -> None:
        """``(version, shape, dtype, in Fortran's order, bytes)``, or the same without the version."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("an array with another state than shape, dtype, order and bytes")
        shape, dtype, fortran, content = state[-4:]
        self.values = array_of(content, dtype, shape, "F" if fortran else "C")


def array_of(content: Any, dtype: Any, shape: Any, order: str = "C") -> npt.NDArray[Any]:
    """An array of its own memory from bytes.

    Raises:
        Refused: the dtype is no plain one, or the bytes are not as many as dtype and shape need.
    """
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes) or not isinstance(dtype, PlainDtype):
        raise Refused("an array that is no bytes of a plain dtype")
    shape = _sizes(shape)
    kind = np.dtype(dtype.text)
    if kind.itemsize == 0 or math.prod(shape) * kind.itemsize != len(content):
        raise Refused(f"an array of {len(content)} bytes that declares {list(shape)} of {dtype.text}")
    values: npt.NDArray[Any] = np.frombuffer(content, dtype=kind)
    return np.array(values.reshape(shape, order="F" if order == "F" else "C"), order="C")


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) is int:
        values = (values,)
    if not isinstance(values, tuple) or len(values) > _MOST_AXES or any(type(n) is not int or n < 0 for n in values):
        raise Refused("a shape that is no tuple of sizes")
    return values


def strided(storage: Any, offset: Any, size: Any, stride: Any) -> npt.NDArray[Any]:
    """The tensor that a storage holds, as an array of its own memory.

    Raises:
        Refused: it would reach beyond the storage.
    """
    size, stride = _sizes(size), _sizes(stride)
    if not isinstance(storage, np.ndarray) or type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise Refused("a tensor that is no part of a storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.empty(size, storage.dtype)
    if last >= len(storage) or math.prod(size) > len(storage):
        raise Refused(f"a tensor {list(size)} that reaches beyond its storage of {len(storage)} numbers")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False))


def _scalar(dtype: Any, content: Any) -> Any:
    return array_of(content, dtype, ())[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:  # how old protocols keep bytes
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"text in the encoding {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _reconstruct(kind: Any, shape: Any, code: Any) -> PlainArray:
    if kind is not _NDARRAY:
        raise Refused("an array of another class than numpy.ndarray")
    return PlainArray()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    return array_of(content, dtype, shape, str(order))


def _object(kind: Any, base: Any, state: Any) -> Record:
    if not (isinstance(kind, type) and issubclass(kind, Record)) or base is not _OBJECT or state is not None:
        raise Refused("an object of another class than those of torch_geometric")
    return kind()


class _Name:
    """A name that other calls take as an argument, and that cannot be called."""

    def __init__(self, text: str) -> None:
        self.text = text


_NDARRAY, _OBJECT = _Name("numpy.ndarray"), _Name("object")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric", "numpy")
BUILDERS: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _reconstruct for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_frombuffer"): _frombuffer for module in _NUMPY},
    ("numpy", "dtype"): PlainDtype,
    ("numpy", "ndarray"): _NDARRAY,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("types", "SimpleNamespace"): Record,
    ("copyreg", "_reconstructor"): _object,
    ("copy_reg", "_reconstructor"): _object,
    ("builtins", "object"): _OBJECT,
    ("__builtin__", "object"): _OBJECT,
}


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle.

    Args:
        content: its bytes.
        find: what a name in the file stands for, by module and name; it raises for what is refused.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]]
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for."""
        return self._find(module, name)

    def persistent_load(self, key: Any) -> Any:
        """Nothing: data lie in the file itself."""
        raise Refused("data that lie in another file")

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple) or not callable(function):
            raise Refused("a call of something that is no builder")
        if isinstance(function, type) and issubclass(function, (Record, OrderedDict)):
            if arguments and not (function is OrderedDict and len(arguments) == 1):
                raise Refused(f"a {function.__name__} with arguments")
            pairs = _pairs(arguments[0]) if arguments else []
            return OrderedDict((_key(key), value) for key, value in pairs) if pairs else function()
        return function(*arguments)

    def load_reduce(self) -> None:
        """Calls one of our builders."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, arguments))

    def load_newobj(self) -> None:
        """Makes a record."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not (isinstance(kind, type) and issubclass(kind, (Record, OrderedDict))):
            raise Refused("an object of another class than those of torch_geometric")
        self.append(self._call(kind, arguments))

    def load_newobj_ex(self) -> None:
        """Makes a record; without keywords."""
        if self.stack.pop():
            raise Refused("an object with keywords")
        self.load_newobj()

    def load_build(self) -> None:
        """Gives a record its attributes, an array its bytes, a dtype its byte order."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (PlainDtype, PlainArray)):
            target.set_state(state)
        elif isinstance(target, Record):
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
                if part is not None and not isinstance(part, dict):
                    raise Refused("an object whose state is no dictionary")
                for key, value in (part or {}).items():
                    vars(target)[str(key)] = value
        else:
            raise Refused(f"a state for a {type(target).__name__}")

    def load_dict(self) -> None:
        """A dictionary from what lies above the mark."""
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def load_setitem(self) -> None:
        """One entry of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        _dictionary(self.stack[-1])[_key(key)] = value

    def load_setitems(self) -> None:
        """Several entries of a dictionary."""
        items = self.pop_mark()
        target = _dictionary(self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_append(self) -> None:
        """One more entry of a list."""
        value = self.stack.pop()
        _list(self.stack[-1]).append(value)

    def load_appends(self) -> None:
        """Several more entries of a list."""
        values = self.pop_mark()
        _list(self.stack[-1]).extend(values)

    def load_bytearray8(self) -> None:
        """Bytes that may be written to, as bytes; the machine's own takes their room before it reads them."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_binstring(self) -> None:
        """Bytes of Python 2, which keep arrays' contents: they stay bytes unless they are plain text."""
        (length,) = np.frombuffer(self.read(4), "<i4").tolist()
        if length < 0:
            raise Refused("text of a negative length")
        self.append(_text(self.read(length)))

    def load_short_binstring(self) -> None:
        """See :meth:`load_binstring`."""
        self.append(_text(self.read(self.read(1)[0])))


def _text(content: bytes) -> str | bytes:
    return content.decode("ascii") if content.isascii() else content


def _key(key: Any) -> Any:
    if type(key) not in _KEYS and not (type(key) is tuple and all(type(part) in _KEYS for part in key)):
        raise Refused(f"a dictionary keyed by a {type(key).__name__}")
    return key


def _dictionary(target: Any) -> dict[Any, Any]:
    if type(target) is not dict and type(target) is not OrderedDict:
        raise Refused(f"entries of a {type(target).__name__}")
    known: dict[Any, Any] = target
    return known


def _list(target: Any) -> list[Any]:
    if type(target) is not list:
        raise Refused(f"members of a {type(target).__name__}")
    return target


def _pairs(items: Any) -> list[tuple[Any, Any]]:
    if isinstance(items, dict):
        return list(items.items())
    if not isinstance(items, list) or any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in items):
        raise Refused("an OrderedDict of something else than pairs")
    return [(pair[0], pair[1]) for pair in items]


def _table() -> dict[int, Callable[..., None]]:
    own: dict[str, Callable[..., None]] = {
        "REDUCE": SafeUnpickler.load_reduce,
        "NEWOBJ": SafeUnpickler.load_newobj,
        "NEWOBJ_EX": SafeUnpickler.load_newobj_ex,
        "BUILD": SafeUnpickler.load_build,
        "DICT": SafeUnpickler.load_dict,
        "SETITEM": SafeUnpickler.load_setitem,
        "SETITEMS": SafeUnpickler.load_setitems,
        "APPEND": SafeUnpickler.load_append,
        "APPENDS": SafeUnpickler.load_appends,
        "BYTEARRAY8": SafeUnpickler.load_bytearray8,
        "BINSTRING": SafeUnpickler.load_binstring,
        "SHORT_BINSTRING": SafeUnpickler.load_short_binstring,
    }
    known: dict[int, Callable[..., None]] = pickle._Unpickler.dispatch
    kept = {code: function for code, function in known.items() if code not in _LEFT_OUT}
    return kept | {getattr(pickle, name)[0]: function for name, function in own.items()}


SafeUnpickler.dispatch = _table()
