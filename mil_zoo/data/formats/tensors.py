"""``.pt`` files: a tensor ``[N, D]``, read without running anything that a file may hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil_zoo.data.formats.boundary import fault
from mil_zoo.errors import InputError


def load_tensor(path: Path) -> Tensor:
    """float32 ``[N, D]``, without gradients; a leading axis of one is dropped.

    Raises:
        InputError: the file is damaged, would run code, or holds something else than one dense tensor of numbers.
    """
    return _tensor(path, mmap=False).float().contiguous()


def tensor_shape(path: Path) -> tuple[int, int]:
    """``(N, D)``, without reading the values where the file allows that."""
    shape = _tensor(path, mmap=True).shape
    if len(shape) != 2:
        raise InputError(f"{path}: features must be [patches, dimensions], not {list(shape)}; extract the slide again")
    return int(shape[0]), int(shape[1])


def tensor_rows(path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
    """float32 ``[len(places), D]``: these rows, without reading the others where the file allows that."""
    rows: npt.NDArray[np.float32] = _tensor(path, mmap=True)[list(places)].float().numpy()
    return rows


def _tensor(path: Path, mmap: bool) -> Tensor:
    content = _load(path, mmap)
    if not isinstance(content, Tensor):
        raise InputError(f"{path} holds a {type(content).__name__}, not one tensor [N, D]; save the features alone")
    if content.layout != torch.strided or content.device.type != "cpu" or content.is_quantized or content.is_complex():
        kind = f"{str(content.layout).removeprefix('torch.')} tensor of {str(content.dtype).removeprefix('torch.')}"
        raise InputError(f"{path} holds a {kind}; save the features as a dense tensor of floats")
    if content.ndim == 0:
        raise InputError(f"{path}: features must be [patches, dimensions], not one number; extract the slide again")
    content = content.detach()
    if content.nbytes > content.untyped_storage().nbytes():
        raise InputError(
            f"{path} declares a tensor {list(content.shape)} that holds one number many times; extract the slide again"
        )
    return content[0] if content.ndim == 3 and len(content) == 1 else content


def _load(path: Path, mmap: bool) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.file_size > member.compress_size for member in archive.infolist()):
                    raise ValueError("it is compressed, as torch.save does not do it")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except RuntimeError:
            if not mmap:
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # a file of torch < 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch says it amid advice to run the code all the same
        reason = f"it asks for {named[1]}" if named else "torch.save did not write it"
        sentence = InputError(
            f"{path} holds more than tensors and is not read, because loading it could run code ({reason}); "
            "save the features as a plain tensor"
        )
        told = fault(path, error, "a readable tensor file", "extract the slide again")
        raise (told if "git-lfs" in str(told) or "is empty" in str(told) else sentence) from error
    except Exception as error:  # a damaged or hostile file can raise anything
        raise fault(path, error, "a readable tensor file", "extract the slide again") from error
