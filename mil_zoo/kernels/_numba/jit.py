"""How the Numba kernels are compiled, and how tensors are handed to them.

Where ``REORDER`` is given the compiler may reorder sums; it may nowhere assume that there is no NaN or infinity.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numba
import numpy as np
from torch import Tensor

REORDER = frozenset({"contract", "reassoc"})


def _shared_sources() -> str:
    """A hash of the files whose functions all kernels inline: what was compiled from others is compiled again."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_SHARED = _shared_sources()


def jit(parallel: bool = False, fastmath: frozenset[str] = frozenset({"contract"})):
    """``numba.njit`` with a cache on disk, wherever there is a place to write one.

    ``fastmath`` is always given, as Numba hands the caller's on to functions that leave it open.
    """
    options = {"parallel": parallel, "fastmath": set(fastmath), "error_model": "numpy"}

    def decorate(function):
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return numba.njit(**options)(function)
        # Numba notices a change in the function's own file, not in one of a function that it calls and has inlined.
        cached = compiled._cache._cache_file
        cached._source_stamp = cached._source_stamp, _SHARED
        return compiled

    return decorate


def array(tensor: Tensor | None, like: Tensor, *empty: int) -> np.ndarray:
    """A tensor's memory, or for None an array without elements of ``like``'s dtype and the shape ``empty``."""
    return (like.new_empty(empty) if tensor is None else tensor.detach().contiguous()).numpy()
