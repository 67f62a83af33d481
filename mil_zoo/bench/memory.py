"""Resident memory of this process: now, and at its peak."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def reset_peak() -> float:
    """Starts the peak anew where the system can (Linux). Returns what is resident now, in MiB (elsewhere: the peak)."""
    if sys.platform != "linux":
        return peak_mib()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """Peak since the reset, in MiB."""
    if sys.platform == "linux":
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
