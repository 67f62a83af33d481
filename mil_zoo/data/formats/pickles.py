"""Pickles read without running code: tensors, arrays and plain containers are built, everything else is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil_zoo.data.formats.torch_storage import read_storage
from mil_zoo.data.formats.unpickler import BUILDERS, PlainArray, PlainDtype, Record, Refused, SafeUnpickler, strided
from mil_zoo.errors import InputError


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Any:
    return strided(storage, offset, size, stride)


def _parameter(tensor: Any, *others: Any) -> Any:
    return tensor


_TORCH = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): read_storage,
}


def _find(path: Path) -> Any:
    record = type("Record", (Record,), {})  # anew for each file

    def find(module: str, name: str) -> Any:
        known = BUILDERS.get((module, name)) or _TORCH.get((module, name))
        if known is not None:
            return known
        if module.partition(".")[0] == "torch_geometric":
            return record
        raise InputError(
            f"{path} is not read: it asks for {module}.{name}, and a pickle that may build anything can run "
            "code; save tensors, arrays, plain containers and torch_geometric Data only, or pass --allow-pickle if you "
            "trust whoever made the file"
        )

    return find


def load_pickle(path: Path, trusted: bool = False) -> Any:
    """The content of a pickle.

    Args:
        path: the file.
        trusted: build whatever it asks for. Such a file can run any code: only for files of one's own.

    Returns:
        Arrays and containers; objects of ``torch_geometric`` as :class:`Record`. Of a ``trusted`` file what it holds.

    Raises:
        InputError: the file asks for anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if trusted:
                return pickle.load(file)
            return SafeUnpickler(io.BytesIO(file.read()), _find(path)).load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Refused as error:
        raise InputError(
            f"{path} is not read: it asks for {error}, which no features need; write it again, or pass --allow-pickle "
            "if you trust whoever made the file"
        ) from error
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
    """A tensor, array or number as a numpy array of numbers or text; None stays None.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, PlainArray):
        value = value.values
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)):
        value = [as_array(each) if isinstance(each, PlainArray) else each for each in value]
    if isinstance(value, (PlainDtype, Record, dict)):
        raise ValueError(f"a {type(value).__name__} stands where an array is expected")
    array = np.asarray(value)
    if array.dtype.kind not in "biufcSU":
        raise ValueError(f"values of {array.dtype} stand where an array of numbers is expected")
    return array
