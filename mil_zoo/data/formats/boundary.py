"""One boundary around everything that reads a file: whatever a file can cause becomes one sentence that names it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe

LFS = b"version https://git-lfs"
_JUST_NOW = 60  # seconds: a damaged file that is younger may still be written


@contextmanager
def boundary(path: Path, what: str = "a readable file", remedy: str = "write it again") -> Iterator[None]:
    """Turns every error of reading ``path`` into an ``InputError``.

    Args:
        path: the file that is read.
        what: what it should be, for the sentence ("is not WHAT").
        remedy: what to do about it.
    """
    refuse_pipe(path)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything
        raise fault(path, error, what, remedy) from error


def pointer(path: Path) -> InputError:
    """The sentence for a file of which only its entry in git is here."""
    return InputError(f"{path} is a pointer of git-lfs and not the file itself; fetch it with git lfs pull")


def fault(path: Path, error: Exception, what: str, remedy: str) -> InputError:
    """The sentence for an error of reading a file, once it is known what the file is instead."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} is a link to a file that is gone" if path.is_symlink() else f"{path}: no such file")
    if isinstance(error, PermissionError):
        return InputError(f"{path} may not be read ({error.strerror}); change its permissions")
    try:
        state = path.stat()
        start = b""
        if not path.is_dir():
            with path.open("rb") as file:
                start = file.read(len(LFS))
    except OSError as second:
        return InputError(f"{path} cannot be read ({second}); check the disk or the network")
    if start == LFS:
        return pointer(path)
    age = time.time() - state.st_mtime
    written = f" (it was changed {age:.0f} s ago and may still be written)" if 0 <= age < _JUST_NOW else ""
    if not path.is_dir() and state.st_size == 0:
        return InputError(f"{path} is empty{written}; {remedy}")
    if isinstance(error, MemoryError):
        return InputError(f"{path} needs more memory than there is{written}; {remedy}")
    lines = str(error).strip().splitlines() or [""]
    reason = (
        lines[0] if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: {lines[0]}"
    )
    return InputError(f"{path} is not {what} ({reason}){written}; {remedy}")


def numbers(path: Path, values: Any, what: str, dtype: Any = np.float32) -> npt.NDArray[Any]:
    """``values`` as an array of ``dtype`` in memory, in this machine's byte order.

    Raises:
        InputError: they are no real numbers (text, objects, complex numbers, records).
    """
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: {what} are no numbers ({values.dtype}); write them as floats")
    return np.array(values, dtype=dtype, order="C")
