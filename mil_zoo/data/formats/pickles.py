"""Pickles read without running code: tensors, arrays and plain containers are built, everything else is refused."""

from __future__ import annotations

import io
import pickle
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil_zoo.errors import InputError


class Record:
    """Stands for a ``torch_geometric`` object: its attributes, none of its methods."""

    def fields(self) -> dict[str, Any]:
        """The attributes by name (``Data`` keeps them in a storage since version 2)."""
        store = self.__dict__.get("_store")
        return dict(store.__dict__.get("_mapping", {})) if isinstance(store, Record) else dict(self.__dict__)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric", "numpy")


def _builders() -> dict[tuple[str, str], Any]:
    """What a pickle may call, by module and name; made anew for each file, which may set attributes on them."""

    def storage(content: bytes) -> Any:  # torch's own would load any pickle inside this one
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def tensor(*arguments: Any) -> Any:
        return torch._utils._rebuild_tensor_v2(*arguments)  # type: ignore[no-untyped-call]

    def from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
        return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)

    def encode(text: str, encoding: str) -> bytes:  # how old protocols keep bytes
        return text.encode({"latin1": "latin1"}[encoding])

    multiarray = getattr(np, "_core", None) or np.core  # numpy 2 or 1
    numpy = {
        "_reconstruct": multiarray.multiarray._reconstruct,
        "scalar": multiarray.multiarray.scalar,
        "_frombuffer": from_buffer,
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }
    built: dict[tuple[str, str], Any] = {(module, name): made for module in _NUMPY for name, made in numpy.items()}
    built["torch._utils", "_rebuild_tensor_v2"] = tensor
    built["torch.storage", "_load_from_bytes"] = storage
    built["_codecs", "encode"] = encode
    built["collections", "OrderedDict"] = OrderedDict
    built["types", "SimpleNamespace"] = types.SimpleNamespace
    return built


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, trusted: bool) -> None:
        super().__init__(file)
        self._path, self._trusted = path, trusted
        self._built = _builders()
        self._record = type("Record", (Record,), {})

    def find_class(self, module: str, name: str) -> Any:
        if self._trusted:
            return super().find_class(module, name)
        if (module, name) in self._built:
            return self._built[module, name]
        if module.partition(".")[0] == "torch_geometric":
            return self._record
        raise InputError(
            f"{self._path} is not read: it asks for {module}.{name}, and a pickle that may build anything can run "
            "code; save tensors, arrays, plain containers and torch_geometric Data only, or pass --allow-pickle if you "
            "trust whoever made the file"
        )


def load_pickle(path: Path, trusted: bool = False) -> Any:
    """The content of a pickle.

    Args:
        path: the file.
        trusted: build whatever it asks for. Such a file can run any code: only for files of one's own.

    Returns:
        Tensors, arrays and containers; objects of ``torch_geometric`` as :class:`Record` unless ``trusted``.

    Raises:
        InputError: the file asks for anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, path, trusted).load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is not a readable pickle ({reason}); write it again") from error


def attributes(item: Any) -> dict[str, Any]:
    """The attributes of an object that :func:`load_pickle` built, or the entries of a mapping."""
    if isinstance(item, Record):
        return item.fields()
    if isinstance(item, dict):
        return {str(key): value for key, value in item.items()}
    store = getattr(item, "_store", None)  # a torch_geometric Data of a trusted file
    return dict(store) if store is not None else dict(getattr(item, "__dict__", {}))


def as_array(value: Any) -> Any:
    """A tensor, array or number as a numpy array; None stays None."""
    if value is None:
        return None
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
