"""Memory that a piece of work takes: the peak of this process above what it held before."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 0.05  # seconds between two looks where the system keeps no peak that can be started anew


class Peak:
    """The peak of resident memory since the start, above what was resident then.

    Attributes:
        mib: in MiB; NaN where the system tells nothing.
    """

    def __init__(self) -> None:
        self.mib = math.nan


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the memory that the body takes; the result is there when it ends.

    What earlier work freed is given back to the system first, so that the same work takes as much after other work as
    alone. A system that keeps a peak which can be started anew is asked for it (Linux); elsewhere a thread looks
    ``1 / INTERVAL`` times a second. Where memory cannot be told, as in some sandboxes, the result is NaN: a number that
    is only looked at costs no work.
    """
    peak = Peak()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
    before = _resident()
    if _start_anew() and before is not None:
        yield peak
        highest = _kept_peak()
    else:
        with _watched() as looks:
            yield peak
        highest = max(looks, default=None)
    if before is not None and highest is not None:
        peak.mib = max(0.0, highest - before)


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """Spares the body's garbage collections all objects that exist now: modules, plans and datasets, a million of them.

    ``peak_memory`` then collects what trials left in a hundredth of the third of a second that it would take.
    """
    if gc.get_freeze_count() > 10_000:  # who called has done it (Python's own are some hundreds), and undoes it
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def available() -> float | None:
    """Memory that new processes can have without the others being swapped out, in MiB; None where that is not told."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 2**10
    with suppress(ImportError):
        import psutil

        return float(psutil.virtual_memory().available / 2**20)
    return None


def _resident() -> float | None:
    """What is resident now, in MiB; None where that cannot be told."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    with suppress(ImportError):
        import psutil

        return float(psutil.Process().memory_info().rss / 2**20)
    return None


def _start_anew() -> bool:
    """Starts the peak of the system anew; whether it did."""
    if sys.platform != "linux":
        return False
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        now, kept = _resident(), _kept_peak()
        return now is not None and kept is not None and kept <= now + 8
    return False


def _kept_peak() -> float | None:
    """The peak that the system keeps, in MiB; None where it keeps none."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return None


@contextmanager
def _watched() -> Iterator[list[float]]:
    """What was resident at each look while the body ran."""
    looks: list[float] = []
    stop = threading.Event()

    def look() -> None:
        while True:
            now = _resident()
            if now is not None:
                looks.append(now)
            if now is None or stop.wait(INTERVAL):
                return

    thread = threading.Thread(target=look, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        stop.set()
        thread.join()
        if (now := _resident()) is not None:
            looks.append(now)
