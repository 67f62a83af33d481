"""OpenMP's threads: how those that wait are kept from taking the cores of those that work.

torch, Numba and DGL each keep a team of threads, in copies of an OpenMP library of their own. A thread of GNU's library
that has nothing to do spins for milliseconds before it sleeps, so that while one team works the others' threads hold
the cores: an SRMIL step on two cores took 1.5 s instead of .3 s.
"""

from __future__ import annotations

import os
import sys


def wait_asleep() -> None:
    """Makes waiting threads sleep, whether torch is loaded later or was loaded before.

    A library that is loaded later reads OMP_WAIT_POLICY, which is set here unless the user has set it. One that is
    loaded already read it then; GNU's spins 300 times less, though, as long as it has more threads than there are
    cores, so it is given one that sleeps.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if "torch" in sys.modules:
        for library in _loaded():
            _add_sleeper(library)


def _loaded() -> list[str]:
    """Paths of all copies of GNU's OpenMP library in this process; none where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {row.rstrip("\n").split(maxsplit=5)[-1] for row in maps if "libgomp" in row}
    except OSError:
        return []
    return sorted(path for path in paths if os.path.exists(path))


def _add_sleeper(library: str) -> None:
    """A second team of a library: of a thread that waits until the process ends, and one that waits with it."""
    import ctypes  # here, for ``import mil_zoo`` stays instant where torch is not there yet
    import threading

    try:
        parallel = ctypes.CDLL(library).GOMP_parallel
    except (OSError, AttributeError):
        return
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # what the team does once: free(NULL)
    ready, never = threading.Event(), threading.Event()

    def sleep() -> None:
        parallel(nothing, None, ctypes.c_uint(2), ctypes.c_uint(0))
        ready.set()
        never.wait()

    threading.Thread(target=sleep, name="mil_zoo-openmp", daemon=True).start()
    ready.wait()
