"""How the Numba kernels are compiled, and how tensors are handed to them.

Where ``REORDER`` is given the compiler may reorder sums; it may nowhere assume that there is no NaN or infinity.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from filelock import FileLock
from numba.core.compiler_lock import global_compiler_lock
from torch import Tensor

REORDER = frozenset({"contract", "reassoc"})


def _shared_sources() -> str:
    """A hash of the files whose functions all kernels inline: what was compiled from others is compiled again."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_SHARED = _shared_sources()


def jit(
    parallel: bool = False,
    fastmath: frozenset[str] = frozenset({"contract"}),
    allocates: bool | None = None,
    inline: bool = False,
):
    """``numba.njit`` with a cache on disk, wherever there is a place to write one.

    A function that does not allocate gets arrays that its caller keeps, so it counts no references to them: atomic
    additions, two for each slice, took most of the time of loops over short rows.

    Args:
        parallel: whether it has a ``prange``.
        fastmath: always given, as Numba hands the caller's on to functions that leave it open.
        allocates: whether it makes arrays; None where that is as ``parallel``. One that does without saying so does not
            compile.
        inline: whether it is always made part of its caller. A call hands over each array in seven words: between loops
            over a row of 25 edges that is a tenth of the time.
    """
    counts = parallel if allocates is None else allocates
    options = {"parallel": parallel, "fastmath": set(fastmath), "error_model": "numpy", "_nrt": counts}
    options["forceinline"] = inline

    def decorate(function):
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            _say_once("no place to keep compiled kernels: every run compiles them again (set NUMBA_CACHE_DIR)")
            return numba.njit(**options)(function)
        # Numba notices a change in the function's own file, not in one of a function that it calls and has inlined.
        cached = compiled._cache._cache_file
        cached._source_stamp = cached._source_stamp, _SHARED
        _forgive(compiled._cache)
        _compile_once(compiled)
        return compiled

    return decorate


def _forgive(cache: Any) -> None:
    """Makes a cache that cannot be read or written (damaged, a full disk) cost a compilation, and never a run."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            found = load(signature, context)
            if found is None:
                _say_once("compiling kernels, once (about a minute)", logging.INFO)
            return found
        except Exception as error:  # a pickle that is damaged can raise anything
            _say_once(f"a cached kernel cannot be read ({type(error).__name__}) and is compiled again")
            with contextlib.suppress(OSError):
                os.unlink(cache._cache_file._index_path)  # or it would be neither read nor replaced
            return None

    def save_overload(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except Exception as error:
            _say_once(
                f"compiled kernels cannot be kept in {cache.cache_path} ({error}); the next run compiles them again"
            )

    cache.load_overload, cache.save_overload = load_overload, save_overload


def _compile_once(compiled: Any) -> None:
    """Makes a process wait for another one that compiles the same kernel at the moment, and take what that one keeps.

    Trials that start beside each other would else compile every kernel once each.
    """
    cache, compile_kernel = compiled._cache, compiled.compile
    load, lock = cache.load_overload, FileLock(Path(cache._cache_file._index_path).with_suffix(".lock"), timeout=600)

    def load_overload(signature: Any, context: Any) -> Any:
        found = load(signature, context)
        if found is None:
            with contextlib.suppress(OSError, NotImplementedError):  # no lock, or not in time: it compiles too
                lock.acquire()
                found = load(signature, context)
        return found

    def compile_alone(signature: Any) -> Any:
        with global_compiler_lock:  # before the file's: the other order could leave two threads waiting for each other
            try:
                return compile_kernel(signature)
            finally:
                lock.release(force=True)

    cache.load_overload, compiled.compile = load_overload, compile_alone


@functools.cache
def _say_once(sentence: str, level: int = logging.WARNING) -> None:
    logging.getLogger("mil_zoo").log(level, "mil-zoo: %s", sentence)


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory, or a copy of it that is contiguous; the bits of bfloat16 as uint16 (see ``storage``)."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy(force=True).view(np.uint16)
    return tensor.contiguous().numpy(force=True)


def array_or_empty(tensor: Tensor | None, like: np.ndarray, *shape: int) -> np.ndarray:
    """A tensor's memory, or for None an array without elements of ``like``'s dtype and the given shape."""
    return np.empty(shape, like.dtype) if tensor is None else array(tensor)
