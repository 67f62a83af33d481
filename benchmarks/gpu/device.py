"""The device: its name, versions, clocks, and the rates that floors are made of."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from gpu.common import Check, synchronise, timed

PACKAGES = ("torch", "triton", "numpy", "numba", "torch_geometric", "torchmil", "dgl")


def run(check: Check) -> None:
    """Reports the machine and what it reaches: copying, and products in float32, TF32, bfloat16."""
    device = check.device
    check.report("machine", **machine(device))
    count, side = (2**20, 256) if check.quick else (2**28, 8192)
    rates = {"bytes_per_second": _bandwidth(count, device)}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False), ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False)
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x = torch.randn(side, side, device=device).to(dtype)
        spent = timed(lambda x=x: x @ x, device)
        rates[f"{name}_operations_per_second"] = 2 * side**3 / (1e-3 * spent["fastest"])
    torch.backends.cuda.matmul.allow_tf32 = False
    x = torch.ones(1, device=device)
    synchronise(device)
    rates["launch_microseconds"] = 1e3 * timed(lambda: [x.add_(1) for _ in range(100)], device)["milliseconds"] / 100
    (check.out / "facts.json").write_text(json.dumps(rates))
    check.report("rates", **rates)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _bandwidth(count: int, device: torch.device) -> float:
    """Bytes read and written a second by a copy of ``count`` numbers."""
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return 8 * count / (1e-3 * timed(lambda: target.copy_(source), device)["fastest"])


def machine(device: torch.device) -> dict[str, Any]:
    """Names and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    found: dict[str, Any] = {"python": platform.python_version(), "versions": versions, "device": str(device)}
    found["commit"] = _commit()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
        }
        query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            found["driver_and_clocks"] = done.stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            found["driver_and_clocks"] = f"unknown ({type(error).__name__})"
    return found
