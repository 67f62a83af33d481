"""``.npy`` files, mapped rather than read, and without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError


def load_npy(path: Path) -> npt.NDArray[Any]:
    """The array in a ``.npy`` file, mapped: its values are read when they are used.

    Raises:
        InputError: the file is missing, shorter than it declares, or would need pickle.
    """
    try:
        if path.stat().st_size and np.lib.format.read_magic(path.open("rb")):
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:
        if "empty file" in str(error) or "zero-size" in str(error):  # an array of no rows cannot be mapped
            return np.asarray(np.load(path, allow_pickle=False))
        raise InputError(f"{path} is not a readable .npy file ({error}); write it again with numpy.save") from error
    except OSError as error:
        raise InputError(f"{path} is not a readable .npy file ({error}); write it again with numpy.save") from error
    raise InputError(f"{path} is empty; write it again with numpy.save")
