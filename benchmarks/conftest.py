"""What the suites share: the device, what the machine can do, and how a step is measured."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mil_zoo.bench.memory import peak_memory
from mil_zoo.kernels import linear

PACKAGES = ("torch", "triton", "numba", "numpy", "dgl", "torch_geometric", "torchmil", "mil-zoo")


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="Where the suites run.")
    parser.addoption("--tiny", action="store_true", help="Sizes so small that the numbers mean nothing: a rehearsal.")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda, and torch sees no CUDA device", returncode=4)
    return torch.device(name)


@pytest.fixture(scope="session")
def tiny(request) -> bool:
    return request.config.getoption("--tiny")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], device: torch.device, rounds: int = 8) -> float:
    """Of the fastest of some rounds."""
    times = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache
def rates(device: torch.device) -> dict[str, float]:
    """What the machine reaches now: bytes a second of ``a = b + s c`` over arrays that no cache holds (the triad of
    STREAM: two reads, one write), and operations a second of a matrix product, in float32 and bfloat16."""
    count = 2**28 if device.type == "cuda" else 2**26
    arrays = [torch.ones(count, device=device) for _ in range(3)]
    triad = seconds(lambda: torch.add(arrays[1], arrays[2], alpha=0.5, out=arrays[0]), device)
    arrays.clear()
    found = {"bytes_per_second": 12 * count / triad}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_operations_per_second"] = _rate_of_products(dtype, device)
    return found


def _rate_of_products(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second, of the smaller of two sizes where the larger would take seconds, as bfloat16 may."""
    rate = 0.0
    for side in (256, 8192 if device.type == "cuda" else 2048):
        operations = 2 * side**3
        if rate and operations / rate > 2:  # seconds
            break
        x = torch.randn(side, side, device=device).to(dtype)
        rate = operations / seconds(lambda x=x: linear(x, x), device, rounds=4)  # by the fastest library
    return rate


@pytest.fixture
def measure(benchmark, device):
    """``measure(step, side, floor_bytes=..., ...)``: times a step and notes its floor and its peak memory."""

    def run(
        step: Callable[[], object],
        side: str,
        *,
        floor_bytes: int,
        size: int,
        floor_operations: int = 0,
        dtype: torch.dtype = torch.float32,
        baseline: bool = False,
        rounds: int = 5,
        inner: int = 1,
    ) -> None:
        """Times ``step``.

        Args:
            step: what is timed.
            side: what ran, by name; sides of one group are compared with those that are a ``baseline``.
            floor_bytes: what must be read and written once.
            size: N, for the plots.
            floor_operations: multiplications and additions of the matrix products that it needs.
            dtype: in which these products are.
            baseline: whether others are compared with it.
            rounds: how often it is timed.
            inner: steps in a round, for what takes microseconds.
        """

        def synchronised() -> None:
            for _ in range(inner):
                step()
            synchronise(device)

        synchronised()  # compiles, tunes and fills caches
        memory = _peak_of(synchronised, device)
        benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=1)
        rate, name = rates(device), str(dtype).removeprefix("torch.")
        products = floor_operations / rate.get(f"{name}_operations_per_second", 1)
        floor = max(floor_bytes / rate["bytes_per_second"], products)
        fastest = benchmark.stats.stats.min / inner
        benchmark.extra_info.update(
            side=side,
            baseline=baseline,
            size=size,
            device=device.type,
            threads=torch.get_num_threads(),
            milliseconds=1e3 * fastest,
            floor_bytes=floor_bytes,
            floor_operations=floor_operations,
            floor_milliseconds=1e3 * floor,
            times_the_floor=fastest / floor,
            peak_memory_mib=memory,
        )

    return run


def _peak_of(function: Callable[[], object], device: torch.device) -> float:
    """MiB that a call needed on top of what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with peak_memory() as peak:
        function()
    return peak.mib


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Adds what the ratios rest on."""
    device = torch.device(config.getoption("--device"))
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    output_json["mil_zoo"] = {
        "device": device.type,
        "machine": machine_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "rates": rates(device),
        "tiny": config.getoption("--tiny"),
    }


def machine_name(device: torch.device) -> str:
    """Of the GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        name = next((value.strip() for key, value in lines.items() if key.strip() == "model name"), name)
    return f"{name.replace('(R)', '').replace('(TM)', '')}, {torch.get_num_threads()} threads"
