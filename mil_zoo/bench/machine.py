"""The machine that a trial runs on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine_name(device: str) -> str:
    """The processor, how many of its cores this process may use, and the GPU where ``device`` is one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = f"{processor()}, {usable} core{'s' * (usable != 1)}"
    return f"{cores}; {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else cores


def processor() -> str:
    """The name that the processor gives itself, without marks; on systems that hide it, its architecture."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(named, name).replace("(R)", "").replace("(TM)", "").strip()
